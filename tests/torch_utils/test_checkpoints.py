"""Checkpoint files: what is read, and what is not finite in them."""

import argparse
import errno
import os
import zipfile

import numpy as np
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


def like_a_checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(20, 7, generator=generator) for i in range(8)}
    return {"format": 1, "step": 3, "G": weights, "best": None, "args": {"dataset": "digits"}}


def assert_same(read):
    wanted = like_a_checkpoint()
    torch.testing.assert_close(read.pop("G"), wanted.pop("G"), rtol=0, atol=0)
    assert read == wanted


def flip(path, content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "c.pth"
    checkpoints.save(like_a_checkpoint(), path)
    content = path.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(content), 400, replace=False).tolist()
    last = range(8 * (len(content) - 100), 8 * len(content), 5)  # the end of the zip, and the checksum itself
    for bit in [*bits, *last]:
        flip(path, content, bit)
        with pytest.raises(checkpoints.Damaged, match="c.pth is not a readable checkpoint"):
            checkpoints.load(path)
    path.write_bytes(content)
    assert_same(checkpoints.load(path))
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(checkpoints.Damaged):
            checkpoints.load(path)


def test_of_a_folder_whose_best_is_damaged_another_is_named(tmp_path):
    for name in ("ckpt_00000003", "best_00000002", "best_00000003"):
        checkpoints.save(like_a_checkpoint(), tmp_path / "weights" / f"{name}.pth")
    path = tmp_path / "weights" / "best_00000003.pth"
    path.write_bytes(path.read_bytes()[:-9])
    words = "best_00000003.pth is not .*; name another file of .*weights: best_00000002.pth, ckpt_00000003.pth$"
    with pytest.raises(checkpoints.Damaged, match=words):
        checkpoints.read_model(tmp_path)
    with pytest.raises(checkpoints.Damaged, match="or another format.$"):
        checkpoints.read_model(str(path))


def test_checkpoints_without_a_checksum_of_their_own_are_read_and_checked_by_that_of_their_members(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(like_a_checkpoint(), path)  # as earlier versions wrote them
    content = path.read_bytes()
    assert checkpoints.load(path)["step"] == 3
    flip(path, content, 8 * content.index(like_a_checkpoint()["G"]["layer5.weight"].numpy().tobytes()) + 11)
    torch.load(path, weights_only=True)  # which does not find it
    with pytest.raises(checkpoints.Damaged):
        checkpoints.load(path)
    torch.save(like_a_checkpoint(), path, _use_new_zipfile_serialization=False)
    assert checkpoints.load(path)["step"] == 3


def test_torch_alone_and_zip_programs_read_a_checkpoint_with_its_checksum(tmp_path):
    checkpoints.save(like_a_checkpoint(), tmp_path / "c.pth")
    for mmap in (False, True):
        assert_same(torch.load(tmp_path / "c.pth", weights_only=True, mmap=mmap))
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"sha256 ")


def test_what_cannot_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    checkpoints.save(like_a_checkpoint(), tmp_path / "c.pth")
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    for name, text in (("folder", "is a folder"), ("none", "no such file"), ("pipe", "is not a file")):
        with pytest.raises(utils.UserError, match=f"{name}.pth: {text}") as error:
            checkpoints.load(tmp_path / f"{name}.pth")
        assert not isinstance(error.value, checkpoints.Damaged)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "_check_bytes", refuse)
    with pytest.raises(utils.UserError, match="cannot read .*c.pth: Permission denied") as error:
        checkpoints.load(tmp_path / "c.pth")
    assert not isinstance(error.value, checkpoints.Damaged)


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_is_not_used_of_a_model_stays_in_its_file(as_zip, tmp_path):
    about = {"format": 1, "step": 3, "model_config": {"resolution": 16, "n_classes": 2}}
    entries = {**about, "G_ema": {"w": torch.ones(3)}, "opt_G": {"state": {0: torch.ones(64 * 2**18)}}}
    torch.save(entries, tmp_path / "a.pth", _use_new_zipfile_serialization=as_zip)
    entries = None
    before = resident_mb()
    checkpoint, _ = checkpoints.read_model(tmp_path / "a.pth")
    assert checkpoint["G_ema"]["w"].tolist() == [1, 1, 1] and len(checkpoint["opt_G"]["state"][0]) == 64 * 2**18
    assert resident_mb() < before + 16 or not as_zip  # old PyTorch's format is read whole
