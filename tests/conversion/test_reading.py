"""Reading files that hold more than weights: tensors come out, and nothing that the file names is run."""

import argparse
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import convert_weights
import utils
from conversion import peers, reading


class HistoryBuffer:
    """Like mmengine's: attributes, among them arrays and functions."""

    def __init__(self):
        self.history, self.counts = np.arange(3.0), collections.deque([1, 2], maxlen=5)
        self.statistics = {"mean": np.mean, "ends": {"first", "last"}}

    def __setstate__(self, state):
        raise AssertionError("a method of the file's was run")


class StateDict(collections.OrderedDict):
    """A state dict of a class of its own."""


class Command:
    """Unpickling it would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def weights():
    state = StateDict({"linear.weight": torch.arange(6.0).view(2, 3), "linear.bias": torch.nn.Parameter(torch.ones(2))})
    state._metadata = collections.OrderedDict(version=1)
    return state


def extras(tmp_path):
    return {
        "history": HistoryBuffer(),
        "args": argparse.Namespace(lr=1e-4, out=tmp_path),
        "fid": np.float64(3.5),
        "scores": np.arange(4),
        "names": np.array(["a", None], dtype=object),
        "by_path": {Path("x"): np.dtype("f4")},
        "default": collections.defaultdict(list, a=[1]),
        "command": Command(tmp_path / "ran"),
    }


SAVED = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}
SAVED |= {f"protocol {n}": {"pickle_protocol": n} for n in (3, 4, 5)}


@pytest.mark.parametrize("how", SAVED)
def test_weights_are_read_and_nothing_is_run(how, tmp_path, capsys):
    path = tmp_path / "in.pth"
    torch.save({"state_dict": weights(), **extras(tmp_path)}, path, **SAVED[how])
    content, unread = reading.load(path)
    assert not (tmp_path / "ran").exists() and f"{os.system.__module__}.system" in unread
    assert {"argparse.Namespace", f"{__name__}.HistoryBuffer"} <= set(unread)
    assert isinstance(content["command"], reading.Stub)
    networks = peers.read_networks(path, "ajbrock")
    assert {key: value.tolist() for key, value in networks["G"].items()} == {
        "linear.weight": [[0, 1, 2], [3, 4, 5]],
        "linear.bias": [1, 1],
    }
    assert "only tensors are read" in capsys.readouterr().out


def test_a_plain_pickle_of_tensors_is_not_read(tmp_path):
    """Tensors within a plain pickle are files of torch.save's of their own, which would be read without restriction."""
    (tmp_path / "in.pth").write_bytes(pickle.dumps({"w": torch.ones(2), "run": Command(tmp_path / "ran")}))
    with pytest.raises(utils.UserError, match="not a readable checkpoint"):
        reading.load(tmp_path / "in.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": torch.nn.Linear(2, 2), "epoch": 3}, r"model \(torch.nn.modules.linear.Linear\), epoch \(int\)"),
        ({"G": {"linear.weight": np.zeros((2, 2))}}, r"linear.weight \(numpy._core.multiarray._reconstruct\)"),
        ([torch.ones(2)], "but list"),
        ({"module.a.w": torch.ones(2), "a.w": torch.ones(2)}, "is there a second time"),
    ],
)
def test_what_holds_no_state_dict_is_named_with_the_remedy(content, words, tmp_path):
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(utils.UserError, match=words) as error:
        convert_weights.main(["--from", "ajbrock", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    assert "in.pth" in str(error.value) and "\n" not in str(error.value)
    assert "second time" in words or "model.state_dict()" in str(error.value)


def test_programs_and_damaged_files_are_one_line(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pth")
    torch.save({**weights(), **extras(tmp_path)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-500])
    (tmp_path / "text.pth").write_text("no weights")
    cases = {"program": "is a program", "cut": "damaged", "text": "damaged, truncated", "none": "no such file"}
    for name, words in cases.items():
        with pytest.raises(utils.UserError, match=words) as error:
            reading.load(tmp_path / f"{name}.pth")
        assert f"{name}.pth" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "module._orig_mod.linear.weight",
        "_orig_mod.module.linear.weight",
        "module.module.linear.weight",
        "linear._orig_mod.weight",
        "_fsdp_wrapped_module.linear._checkpoint_wrapped_module.module.weight",
    ],
)
def test_wrappers_leave_the_keys_in_any_order(key, tmp_path):
    # one key alone is wrapped, as where only a part of the network was compiled
    state = {key: torch.ones(2, 2), "shared.weight": torch.ones(3, 2), "n_averaged": torch.tensor(7)}
    torch.save(state, tmp_path / "G")
    assert peers.read_networks(tmp_path / "G", "ajbrock")["G"].keys() == {"linear.weight", "shared.weight"}
    mmgen = {f"module.generator.{key}": torch.ones(2, 2), f"_orig_mod.discriminator.{key}": torch.ones(2, 2)}
    torch.save({"meta": HistoryBuffer(), "state_dict": mmgen}, tmp_path / "mmgen.pth")
    networks = peers.read_networks(tmp_path / "mmgen.pth", "mmgen")
    assert {kind: list(state) for kind, state in networks.items()} == {"G": ["linear.weight"], "D": ["linear.weight"]}
