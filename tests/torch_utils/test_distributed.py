"""What ranks agree on."""

import pytest
import torch

import utils
from torch_utils import distributed
from torch_utils.distributed import Ranks, on_ranks

CPU = torch.device("cpu")


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
