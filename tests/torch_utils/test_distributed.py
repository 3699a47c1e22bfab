"""What ranks agree on."""

import signal
import subprocess
import sys

import pytest
import torch

import utils
from torch_utils import distributed
from torch_utils.distributed import Ranks, StopSignal, on_ranks

CPU = torch.device("cpu")
ONE = Ranks(0, 1, CPU)


def as_rank(rank, outcomes, monkeypatch):
    """This process as one of two, of which each has told the others `outcomes` but for its own."""

    def gather(box, own):
        box[:] = outcomes
        box[rank] = own

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    return Ranks(rank, 2, CPU)


def test_what_rank_0_gets_is_returned_on_all(monkeypatch):
    assert on_ranks(Ranks(0, 1, CPU), lambda: 7) == 7
    assert on_ranks(as_rank(0, [None, (None, None)], monkeypatch), lambda: 7) == 7
    assert on_ranks(as_rank(1, [(None, 7), None], monkeypatch), lambda: pytest.fail("not for rank 1")) == 7


def test_with_every_each_rank_returns_its_own(monkeypatch):
    for rank in range(2):
        assert on_ranks(as_rank(rank, [(None, None)] * 2, monkeypatch), lambda rank=rank: rank, every=True) == rank


def test_a_problem_of_any_rank_is_raised_on_all(monkeypatch):
    """Rank 0 has none, rank 1 has one: each hears of it."""

    def problem():
        raise utils.UserError("bad")

    for rank, function in ((0, lambda: 7), (1, problem)):
        with pytest.raises(utils.UserError, match="bad"):
            on_ranks(as_rank(rank, [(None, None), ("bad", None)], monkeypatch), function, every=True)
    with pytest.raises(utils.UserError, match="bad"):  # of rank 0 alone
        on_ranks(as_rank(1, [("bad", None), None], monkeypatch), problem)


def test_devices_that_are_not_there_are_one_line():
    for name in ("cuda:77", "gpu"):
        with pytest.raises(utils.UserError, match=f"--device {name}"):
            distributed.resolve_device(name)


@pytest.mark.parametrize("number", StopSignal.NUMBERS)
def test_signals_that_ask_to_end_are_noted(number, capsys):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested(ONE)
        signal.raise_signal(number)
        assert stop.requested(ONE) and stop.received == number
    assert signal.getsignal(number) == before and "once more stops at once" in capsys.readouterr().err


def test_a_terminal_that_is_closed_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested(ONE)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_ends_at_once_and_without_a_word(number):
    """0.2 s after the first, while a step is being computed."""
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(utils.ROOT)!r})
import utils
from torch_utils.distributed import StopSignal

def main():
    try:
        with StopSignal():
            os.kill(os.getpid(), {int(number)})
            time.sleep(0.2)
            os.kill(os.getpid(), {int(number)})
            time.sleep(30)
    finally:
        print("not at once")

utils.run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -number and not done.stdout
    assert done.stderr.strip() == "stopping after this step, with a checkpoint; once more stops at once"
