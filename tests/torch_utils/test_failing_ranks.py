"""Ranks that fail, hang or are left alone: all of them end, and the first one's line is the last on the screen."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch

import utils
from torch_utils import distributed

FORK = multiprocessing.get_context("fork")  # the imports of new processes would take many seconds
SCRIPT = f"""
import sys
sys.path.insert(0, {str(utils.ROOT)!r})
import torch, utils
from torch_utils import distributed

def main():
    if sys.argv[1] == "flags":
        raise utils.UserError("--flag: bad")
    with distributed.process_group("cpu") as ranks:
        if ranks.rank == 1:
            raise {{"user": utils.UserError, "fault": ValueError}}[sys.argv[1]]("GPU 1 is full")
        torch.distributed.barrier()

if __name__ == "__main__":
    utils.run_main(main)
"""


@pytest.fixture
def as_rank(tmp_path, monkeypatch):
    """A function that makes this process a rank of torchrun's; and a list of what is said when torchrun is done."""
    said_last = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: said_last.append(command[-1]))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in utils.TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, "0")

    def become(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        (tmp_path / str(rank)).mkdir(exist_ok=True)

    return become, said_last


def ended(error, capsys):
    """What a rank that ends with an error prints, and its status."""

    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        utils.run_main(main)
    return capsys.readouterr().err, stop.value.code


def test_what_ranks_say_alike_is_said_once_and_comes_last(as_rank, capsys):
    become, said_last = as_rank
    become(1)
    assert ended(utils.UserError("bad"), capsys) == ("rank 1: train.py: error: bad\n", 2)
    for rank in (0, 2):
        become(rank)
        assert ended(utils.UserError("bad"), capsys) == ("", 2)
    assert said_last == ["rank 1: train.py: error: bad"]


def test_another_error_of_any_rank_is_printed_too_but_not_that_it_lost_the_first(as_rank, capsys):
    become, said_last = as_rank
    become(2)
    text, status = ended(ValueError("a fault"), capsys)
    assert status == 1 and text.startswith("Traceback") and text.endswith("\nrank 2: train.py: ValueError: a fault\n")
    become(0)
    assert ended(utils.LostProcess("connection lost"), capsys) == ("", 2)
    become(3)
    assert ended(utils.UserError("also full"), capsys) == ("rank 3: train.py: error: also full\n", 2)
    assert said_last == ["rank 2: train.py: ValueError: a fault"]


def test_a_line_comes_after_torchruns_and_not_without_it(as_rank, monkeypatch):
    become, said_last = as_rank
    become(0)
    line = "stopped at step 2; the same command goes on from there"
    utils.say_last(line)
    assert said_last == [line]
    for name in utils.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name)
    utils.say_last(line)
    assert said_last == [line]


def test_a_lost_process_is_told_of_where_it_has_said_nothing(as_rank, capsys):
    become, said_last = as_rank
    become(0)
    assert ended(utils.LostProcess("it is gone"), capsys) == ("train.py: error: it is gone\n", 2)
    assert said_last == ["train.py: error: it is gone"]


def test_mistyped_flags_are_told_once(as_rank, capsys):
    for rank in range(2):
        as_rank[0](rank)
        with pytest.raises(SystemExit, match="2"):
            utils.ArgumentParser("Do.").parse_args(["--typo"])
    assert capsys.readouterr().err.count("--typo") == 1


def in_process_group(rank, port, minutes, act, said):
    os.environ |= dict.fromkeys(utils.TORCHRUN_VARIABLES, "2") | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    try:
        with distributed.process_group("cpu", minutes) as ranks:
            torch.distributed.barrier()
            if rank == 1:
                act()
            torch.distributed.all_reduce(torch.zeros(1))
            said.put(f"rank {ranks.rank} is done")
    except utils.LostProcess as error:
        said.put(str(error))


@pytest.mark.parametrize(
    "act, minutes, message",
    [
        (lambda: os._exit(1), 1, "another process has ended, without a word"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 1, "another process has ended, without a word"),
        (lambda: time.sleep(100), 0.03, "another process has not answered for 0.03 minutes"),
    ],
    ids=["ended", "killed", "hangs"],
)
def test_ranks_notice_that_another_is_gone_or_hangs(act, minutes, message):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = FORK.Queue()
    processes = [FORK.Process(target=in_process_group, args=(rank, port, minutes, act, said)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        assert message in said.get(timeout=50)
    finally:
        for process in processes:
            process.kill()


def test_other_errors_are_not_taken_for_a_lost_process(monkeypatch):
    assert distributed._lost("CUDA error: an illegal memory access", 1, False) is None
    assert "not answered" in distributed._lost("wait timeout after 1000ms", 1, True)


def left_alone(ends):
    os.setsid()
    child = os.fork()
    if child:
        time.sleep(0.5)
        os._exit(0)
    distributed.end_with_parent()
    time.sleep(100)
    ends.send("still there")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_rank_ends_with_its_torchrun():
    here, there = FORK.Pipe(duplex=False)
    launcher = FORK.Process(target=left_alone, args=(there,))
    launcher.start()
    there.close()  # the rank's copy of it is then the last one
    launcher.join()
    assert here.poll(10)
    with pytest.raises(EOFError):
        here.recv()


@pytest.mark.slow
@pytest.mark.parametrize("what, line", [("flags", "error: --flag: bad"), ("fault", "ValueError: GPU 1 is full")])
def test_under_torchrun_the_line_comes_last(what, line, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, script, what], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode and done.stderr.splitlines()[-1].endswith(f"script.py: {line}")


@pytest.mark.slow
def test_parallel_ends_with_the_line_and_the_status_of_the_rank_that_failed(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    code = "import sys; from torch_utils import distributed; sys.exit(distributed.launch(2, sys.argv[1:]))"
    where = {"cwd": utils.ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    command = [sys.executable, "-c", code, tmp_path / "script.py", "user"]
    done = subprocess.run(command, **where, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and set(done.stderr.splitlines()) == {"rank 1: script.py: error: GPU 1 is full"}


def test_parallel_starts_a_process_for_each_gpu(monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(distributed, "launch", lambda *how: started.append(how) or 2)
    monkeypatch.setattr(distributed, "sys", SimpleNamespace(argv=["train.py", "--parallel"], exit=sys.exit))
    with pytest.raises(SystemExit, match="2"):
        distributed.launch_per_gpu()
    assert started == [(3, ["train.py", "--parallel"])]
