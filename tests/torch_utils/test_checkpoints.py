"""Checkpoint files: what is read, and what is not finite in them."""

import argparse
import os

import pytest
import torch

import utils
from torch_utils import checkpoints


class Command:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("entry, name", [(argparse.Namespace(a=1), "argparse.Namespace"), (Command(), "posix.system")])
def test_what_could_be_run_is_named_and_not_read(entry, name, as_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"G": {}, "extra": entry}, "in.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(utils.UserError, match=f"in.pth holds {name}, which is not read.*convert_weights.py") as error:
        checkpoints.load("in.pth")
    assert "\n" not in str(error.value) and os.listdir() == ["in.pth"]


def test_the_first_tensor_that_is_not_finite_is_named():
    good = {"step": torch.tensor(3), "a": [torch.ones(2), {"b": torch.zeros(0)}], "loss": float("nan")}
    assert checkpoints.not_finite(good) is None
    assert checkpoints.not_finite({**good, "opt": {"state": {0: (torch.ones(1), torch.tensor([torch.inf]))}}}) == (
        "opt.state.0.1"
    )
    checkpoints.check_finite(good, "x.pth", "G")
    with pytest.raises(utils.UserError, match="x.pth: w of G holds values that are not finite"):
        checkpoints.check_finite({"w": torch.tensor(-torch.inf)}, "x.pth", "G")
