"""How far a data set that is being made has got, kept in a file that survives any interruption."""

import contextlib
import fcntl
import io
import json
import os
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import utils


class Progress(typing.NamedTuple):
    """How far the pixels are: of the first `done` images all but the `unreadable` (index, reason) are in the file."""

    done: int = 0
    unreadable: tuple[tuple[int, str], ...] = ()

    def then(self, start: int, done: int, unreadable: Iterable) -> "Progress":
        """What it is after the images `start` to `done`; what was known of any after `start` no longer counts."""
        before = (entry for entry in self.unreadable if entry[0] < start)
        return Progress(done, (*before, *map(tuple, unreadable)))


class Journal:
    """A file of JSON lines: one about what is being made, then one per commit.

    A commit says: images `start` to `done` are in the file but for the `unreadable` ones among them. If it begins
    before the last one's end, it takes back what lies after `start`. `committed` is what they amount to.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.committed = file, Progress()  # unbuffered, for reading and writing

    def read(self) -> list[dict]:
        """The lines before the first damaged one, from which on it is cut off (a write may have been cut short)."""
        lines, end = [], 0
        self.file.seek(0)
        for line in self.file.readall().splitlines(keepends=True):
            entry = None
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
            if not isinstance(entry, dict) or not line.endswith(b"\n"):
                break
            lines.append(entry)
            end += len(line)
        self.file.truncate(end)
        return lines

    def replay(self, commits: list[dict]) -> Progress:
        """What these lines of it, all but the first, amount to; it becomes `committed`."""
        self.committed = Progress()
        for line in commits:
            self.committed = self.committed.then(line["start"], line["done"], line["unreadable"])
        return self.committed

    def append(self, line: dict) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps(line).encode() + b"\n")

    def commit(self, progress: Progress, pixels: io.FileIO) -> None:
        """Enter what has been done since the last commit, once the pixels, in that file, are on the disk."""
        if progress != self.committed:
            os.fsync(pixels.fileno())
            unreadable = progress.unreadable[len(self.committed.unreadable) :]
            self.append({"start": self.committed.done, "done": progress.done, "unreadable": unreadable})
            self.committed = progress


@contextlib.contextmanager
def locked(path: Path) -> Iterator[io.FileIO]:
    """Yield a file, made if need be, open for one process at a time. Raises: UserError if another one has it."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process; its forks do not hold it
            except (BlockingIOError, PermissionError):
                raise utils.UserError(f"another process is writing {path.with_suffix('')} right now") from None
            except OSError:
                pass  # some network file systems cannot lock
            if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                continue  # the other process has just finished and removed it
            try:
                yield file
            finally:
                if path.exists() and not path.stat().st_size:  # nothing came of it
                    path.unlink()
            return
