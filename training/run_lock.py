"""A run folder that is in use: the lock that a run holds on it, which ends with the process whatever ends that."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import utils
from torch_utils.distributed import Ranks, on_ranks

NAME = ".lock"  # in the run folder, so that other paths to the same folder are the same lock


@contextlib.contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Hold a run folder, made if need be, for as long as the context lasts; folders that are still empty then go again.

    Rank 0 holds it for all. Yields: what is to be called on rank 0 when the folder has been moved aside: it makes and
    locks another in its place.
    Raises: utils.UserError where another process has the folder; nothing in it has been touched then.
    """
    with contextlib.ExitStack() as held:

        def lock():
            held.enter_context(_held(folder))

        on_ranks(ranks, lock)
        yield lock


@contextlib.contextmanager
def _held(folder):
    path = folder / NAME
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        file = _opened_and_locked(path)
    except BlockingIOError as error:
        raise utils.UserError(
            f"{folder} is in use by another run ({_holder(path)}): wait for it or stop it, or use another "
            "--experiment_name"
        ) from error
    except OSError as error:
        raise utils.CannotWrite(f"cannot write {folder}: {error.strerror}") from error
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if _is_at(file, path):  # else the folder has been moved, and its lock with it
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # they hold something
                    for place in made:
                        place.rmdir()


def _opened_and_locked(path):
    """The open lock file, in its folder, which is made if need be.

    Raises: BlockingIOError where another process holds it, OSError where it cannot be made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+")  # noqa: SIM115  (open for as long as the lock is held)
        except FileNotFoundError:
            if path.parent.exists():
                raise
            continue  # another run has just ended, and taken its empty folder away
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise BlockingIOError from error
        except OSError as error:  # some network file systems have no locks
            print(
                f"warning: {path} cannot be locked ({error.strerror}): a second run in this folder will not be noticed",
                file=sys.stderr,
            )
        if _is_at(file, path):  # else the same with its lock
            return file
        file.close()


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _holder(path):
    try:
        return path.read_text().strip() or "it has just begun"
    except (OSError, ValueError):
        return "unknown"
