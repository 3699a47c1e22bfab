"""Several of the project's scripts at a time, each a process of its own that ends when this one is told to."""

import concurrent.futures
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import utils

ROOT = Path(__file__).resolve().parent.parent


class Stopped(Exception):
    """Raised where a script was to be called after `stop`, or ended by it."""


class Workers:
    """Calls functions at once, in threads, and scripts for them, in processes.

    A terminal's Ctrl-C does not reach those: each has a session of its own, so that it hears once that it is to end,
    which train.py does after its step, with a checkpoint.
    """

    def __init__(self, count: int):
        self.count = count
        self._processes: set[subprocess.Popen] = set()
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def each(self, function: Callable, items: Iterable) -> None:
        """Call a function with each item, `count` at a time, in their order; the first error of any ends it all."""
        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def call(self, *command: str, said: Path | None = None, answer: bool = False) -> str:
        """Run a script to its end. What it says goes to the terminal, or to the end of a file.

        Returns: where an answer is wanted, its standard output, which then goes nowhere else.
        Raises: utils.UserError where it fails, with the last line of what it said in a file; Stopped.
        """
        if said is None:
            print(f"$ python {shlex.join(command)}", flush=True)
            return self._run(command, None, answer)
        said.parent.mkdir(parents=True, exist_ok=True)
        with said.open("a", encoding="utf-8") as file:
            print(f"$ python {shlex.join(command)}", file=file, flush=True)
            try:
                return self._run(command, file, answer)
            except utils.UserError as error:
                raise utils.UserError(f"{error}: {last_line(said)} (all that was said: {said})") from None

    def _run(self, command, file, answer):
        with self._lock:
            if self._stopped.is_set():
                raise Stopped
            output = subprocess.PIPE if answer else file
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=file, text=True, start_new_session=True
            )
            self._processes.add(process)
        try:
            text, _ = process.communicate()
        finally:  # by a signal, where this is the main thread
            if process.poll() is None:
                process.terminate()
                process.wait()
            with self._lock:
                self._processes.discard(process)
        if self._stopped.is_set():
            raise Stopped
        if process.returncode:
            raise utils.UserError(f"{command[0]} has ended with status {process.returncode}")
        return text or ""

    def stop(self) -> None:
        """Tell all that run to end; `each` then waits for them."""
        with self._lock:
            self._stopped.set()
            for process in self._processes:
                process.terminate()


def last_line(path: Path) -> str:
    """The last line of a file that is not empty; of a bar of progress what it showed last."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
