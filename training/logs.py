"""What a run writes as it goes: a JSON line per event, and TensorBoard."""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import utils
from torch_utils import schema
from training.wandb_run import WandbRun

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")  # of TensorBoard, with the time when it was begun


class RunLog:
    """log.jsonl and TensorBoard of one run folder.

    Each line of log.jsonl is an object with `event`, `step`, `time` (Unix seconds) and then the event's own entries.
    A run that goes on from step `step` drops the lines of later steps that the interrupted run had still written, so
    that the finished log is that of a run that was never interrupted; `step` None starts the log afresh. What led on
    from that very step (changed flags, a rollback) is dropped too: it will be written again, if it is still so. So is
    its evaluation, and what follows it, where the step is not `evaluated`.

    Where the disk is full, lines wait until it is not, and TensorBoard goes without; both say so, once.
    """

    def __init__(self, folder: Path, step: int | None = None, evaluated: bool = True, wandb_config: dict | None = None):
        """wandb_config: what Weights & Biases is told of the run, None: it is not used."""
        self.folder, self.path = Path(folder), Path(folder) / "log.jsonl"
        told = wandb_config is not None
        self.wandb = WandbRun(self.folder, wandb_config, step is not None, warn) if told else None
        events, bad = ([], []) if step is None else read_lines(self.path)
        if bad:
            print(f"note: {self.path}: {bad_lines(bad)} left out")
        kept = [line for line in events if _is_past(line, step)]
        if not evaluated:
            kept = list(itertools.takewhile(lambda line: (line["event"], line["step"]) != ("eval", step), kept))
        with utils.atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (open for the life of the run)
        self.pending, self.waits = b"", False
        self.board, self.without_board = None, False
        self.excepthook, threading.excepthook = threading.excepthook, _without_boards(threading.excepthook)
        _put_in_order(self.folder / "tensorboard")
        self._to_board(lambda board: None, purge_step=0 if step is None else step + 1)

    def write(self, event: str, step: int, entries: dict) -> None:
        """Append one event; its numbers also go to TensorBoard, and W&B where it is used, as event/name."""
        line = {"event": event, "step": step, "time": round(time.time(), 3), **entries}
        self.pending += (json.dumps(line) + "\n").encode()
        self._flush()
        numbers = {
            f"{event}/{name}": value
            for name, value in entries.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers:
            self._to_board(lambda board: [board.add_scalar(name, value, step) for name, value in numbers.items()])
        if numbers and self.wandb:
            self.wandb.numbers(step, numbers)

    def image(self, name: str, step: int, picture: Image.Image) -> None:
        """A PIL image to TensorBoard and W&B."""
        self._to_board(lambda board: board.add_image(name, np.asarray(picture), step, dataformats="HWC"))
        if self.wandb:
            self.wandb.image(step, name, picture)

    def close(self) -> None:
        self._flush()
        self.file.close()
        if self.board:
            self._to_board(lambda board: board.close())
        if self.wandb:
            self.wandb.finish()
        threading.excepthook = self.excepthook

    def _flush(self):
        """Append the pending lines, whole or, where they cannot be written, not at all."""
        end = self.file.seek(0, os.SEEK_END)
        try:
            rest = self.pending
            while rest:
                rest = rest[self.file.write(rest) :]
            self.pending, self.waits = b"", False
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.truncate(end)
            if not self.waits:
                warn(f"cannot write {self.path}: {error.strerror}; its lines wait until that is possible")
            self.waits = True

    def _to_board(self, add, purge_step=None):
        """Call add(SummaryWriter), whose thread passes on what went wrong in it before; a new one is then made."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import: only a run that trains pays

        try:
            if self.board is None:
                folder = _text_path(self.folder / "tensorboard")
                self.board = SummaryWriter(folder, purge_step=purge_step)
            add(self.board)
        except OSError as error:
            self.board = None
            if not self.without_board:
                warn(f"cannot write {self.folder / 'tensorboard'}: {error.strerror}; what is missing is in log.jsonl")
            self.without_board = True


def _without_boards(hook):
    """threading.excepthook less what ends TensorBoard's thread on a full disk, which `RunLog` tells by itself."""

    def reduced(args):
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            hook(args)

    return reduced


def _put_in_order(folder):
    """Rename TensorBoard's files of a later time than now, as they are there after the clock has been set back.

    It reads files in the order of the times in their names, and none before the newest that it has seen.
    """
    stamps = {path: EVENT_FILE.match(path.name) for path in folder.glob("events.out.tfevents.*")}
    later = sorted((int(found[1]), path) for path, found in stamps.items() if found and int(found[1]) >= time.time())
    now = int(time.time())
    for i, (stamp, path) in enumerate(later):
        name = path.name.replace(f".{stamp:010d}.", f".{now - len(later) + i:010d}.", 1)
        with contextlib.suppress(OSError):
            path.rename(path.with_name(name))


def warn(text: str) -> None:
    """One line on stderr, above a progress bar; also where that is a file on the full disk that it tells of."""
    with contextlib.suppress(OSError):
        tqdm.write(f"warning: {utils.printable(text)}", file=sys.stderr)


def _is_past(event, step):
    """Whether a run that goes on from a step has the event behind it."""
    return event["step"] < step or (event["step"] == step and event["event"] not in ("change", "rollback"))


def _text_path(folder):
    """A path to a folder, made if need be, that is text: TensorBoard takes no other names, where the system does."""
    try:
        return str(folder).encode().decode()
    except UnicodeEncodeError:
        folder.mkdir(parents=True, exist_ok=True)
        return f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"  # open for the life of the process, as the log is


def read_log(path: str | Path) -> list[dict]:
    """The events of a log.jsonl, as dicts; empty if there is none. A line that is no event is left out."""
    return read_lines(path)[0]


def read_lines(path: str | Path) -> tuple[list[dict], list[int]]:
    """The events of a log.jsonl, and the numbers, from 1, of the lines that are none.

    A last line that is cut, as a killed run leaves it, is neither.
    """
    events, bad = [], []
    lines = Path(path).read_bytes().split(b"\n") if Path(path).exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            events.append(_event(line))
        except (ValueError, RecursionError):
            bad.append(number)
    return events, [number for number in bad if number < len(lines)]


def _event(line):
    """The event of a line, bytes. Raises: ValueError or RecursionError where it is none."""
    event = json.loads(line)
    if problem := schema.problem(event, EVENT) or schema.problem(event, EVENTS.get(event["event"], {})):
        raise ValueError(problem)
    return event


def bad_lines(numbers: list[int]) -> str:
    """What to say of such lines."""
    which = utils.listed([str(number) for number in numbers])
    return f"line {which} is no event, and is" if len(numbers) == 1 else f"lines {which} are no events, and are"


# Fields of a line of log.jsonl: of all, and of those that are read again.
EVENT = {"event": str, "step": schema.COUNT, "time?": float}
METRICS = (
    "fid",
    "fd",
    "is_mean",
    "is_std",
    "kid_mean",
    "kid_std",
    "precision",
    "recall",
    "density",
    "coverage",
    "accuracy",
)
EVENTS = {
    "init_from": {"checkpoint": str},
    "change": {"flags": {str: schema.Check(lambda x: isinstance(x, list) and len(x) == 2, "be a pair")}},
    "eval": {"protocol?": (None, dict)} | {f"{name}?": float for name in METRICS},
    "collapse": {"action": str, "text": str, "rollbacks": schema.COUNT, "command?": str},
    "rollback": {"number": schema.COUNT, "noticed": schema.COUNT},
}


class Speedometer:
    """Images per second since the last restart."""

    def __init__(self, step: int, images_per_step: int):
        self.images_per_step = images_per_step
        self.restart(step)

    def restart(self, step: int) -> None:
        self.start, self.start_step = time.perf_counter(), step

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.perf_counter() - self.start

    def at(self, step: int) -> float:
        return (step - self.start_step) * self.images_per_step / self.elapsed


def peak_memory_mb(device: torch.device) -> int:
    """Peak memory of this process in MiB: of the GPU's allocator on CUDA, else of resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
