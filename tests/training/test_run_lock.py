"""A run folder in use: refused while a process has it, free as soon as that has ended, however that was."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import utils
from torch_utils.distributed import Ranks
from training import run_folder, run_lock
from training.run_lock import NAME, locked

ONE = Ranks(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, torch
from pathlib import Path
from torch_utils.distributed import Ranks
from training.run_lock import locked
with locked(Path(sys.argv[1]), Ranks(0, 1, torch.device("cpu"))):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    folder = tmp_path / "runs" / "run"
    with locked(folder, ONE):
        (tmp_path / "same").symlink_to(folder)
        for path in (folder, tmp_path / "same", Path(os.path.relpath(folder))):
            with pytest.raises(utils.UserError, match=f"in use.*process {os.getpid()} on"), locked(path, ONE):
                raise AssertionError
        with locked(folder.with_name("other"), ONE):
            pass
    assert not folder.parent.exists()  # nothing had been there, and nothing was written
    folder.mkdir(parents=True)
    (folder / "log.jsonl").touch()
    with locked(folder, ONE):
        pass
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_a_folder_that_another_run_takes_away_is_made_again(tmp_path, monkeypatch):
    """As it ends without having written anything, between two system calls of this one."""
    taken = []

    def opened(path, mode):
        if not taken:
            taken.append(path.parent.rmdir())
        return open(path, mode)

    monkeypatch.setattr(run_lock, "open", opened, raising=False)
    with locked(tmp_path / "runs" / "run", ONE):
        assert taken and (tmp_path / "runs" / "run" / NAME).exists()


def test_a_killed_process_leaves_no_lock(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert held.stdout.readline() == "held\n"
    words = f"in use by another run .process {held.pid} on .*--experiment_name"
    with pytest.raises(utils.UserError, match=words) as error, locked(tmp_path / "run", ONE):
        raise AssertionError
    assert "\n" not in str(error.value)
    held.send_signal(signal.SIGKILL)
    held.communicate()
    assert (tmp_path / "run" / NAME).exists()
    with locked(tmp_path / "run", ONE):
        pass


def test_a_run_that_moves_an_earlier_one_aside_holds_its_own_folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "weights").mkdir(parents=True)
    with locked(folder, ONE) as lock:
        run_folder.prepare(folder, True, 0, (), lock)
        with pytest.raises(utils.UserError, match="in use"), locked(folder, ONE):
            raise AssertionError
        with locked(tmp_path / "run.old1", ONE):  # it is nobody's any more
            pass
        (folder / "log.jsonl").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log.jsonl", "run", "run.old1", "weights"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "run", ONE):
        pass
    assert capsys.readouterr().err.count("cannot be locked") == 1


def test_only_the_first_rank_locks(tmp_path, monkeypatch):
    both_well = [(None, None)] * 2
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda box, own: box.__setitem__(slice(2), both_well))
    with locked(tmp_path / "run", ONE), locked(tmp_path / "run", Ranks(1, 2, torch.device("cpu"))):
        pass
