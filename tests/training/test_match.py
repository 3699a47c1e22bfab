"""--match: the width at which one configuration costs what another does."""

import re
import shlex

import h5py
import numpy as np
import pytest
from small_models import save_checkpoint, small_generator

import train
import utils
from image_datasets import loading
from image_datasets.hdf5 import HDF5Dataset
from training import match

SLOW = pytest.mark.slow
SMALL = "--dataset tiny --G_ch_mult 4-4-2-1 --D_ch 4 --G_attn 0 --D_attn 0 --batch_size 8 --device cpu"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    with h5py.File(root / "tiny.hdf5", "w") as file:
        file["imgs"], file["labels"] = np.zeros((2, 3, 32, 32), dtype=np.uint8), np.array([0, 3])
    return root


@pytest.fixture
def ask(data_root, capsys):
    """Runs train.py with these flags; returns the numbers of its difference, and the flags of the line it prints."""

    def asked(flags, target, *more):
        capsys.readouterr()
        train.main([*shlex.split(f"{SMALL} {flags}"), "--data_root", str(data_root), "--match", target, *more])
        out = capsys.readouterr().out
        excess = float(re.search(r"^difference .*?: ([+-][\d.]+)%", out, re.M)[1])
        return excess, shlex.split(re.search(r"^python train.py (.*)", out, re.M)[1])

    return asked


def configuration(flags):
    options, _ = train.parse_args(flags)
    return match.configuration(options)


@pytest.mark.parametrize(
    "flags, target, by",
    [
        ("--ssm none", "--ssm voxel", []),
        ("--ssm none", "--ssm=voxel", ["--by", "parameters"]),
        pytest.param(
            "--ssm group_gain", "python train.py --ssm voxel", ["--by", "multiply_adds"], marks=pytest.mark.slow
        ),
        pytest.param("--model BigGANdeep --G_shared --hier", "--ssm voxel --G_ch 5", [], marks=pytest.mark.slow),
    ],
)
def test_the_command_that_is_printed_costs_what_the_target_costs(ask, flags, target, by):
    excess, line = ask(f"{flags} --G_ch 5", target, *by)
    assert abs(excess) <= 1 and "--match" not in str(line) and "--by" not in line and line.count("--G_ch") == 1
    words = shlex.split(target)[2 if "python" in target else 0 :]
    other = [*shlex.split(f"{SMALL} {flags} --G_ch 5"), "--data_root", line[line.index("--data_root") + 1], *words]
    costs = [getattr(configuration(words), by[-1] if by else "multiply_adds") for words in (line, other)]
    assert costs[0] / costs[1] - 1 == pytest.approx(excess / 100, abs=1e-4)


def test_a_run_and_a_checkpoint_are_targets(ask, data_root, tmp_path):
    G = small_generator(ssm="voxel", G_ch=48, D_ch=64)
    path = save_checkpoint(tmp_path / "ckpt_00000007.pth", G, args={"batch_size": 8})
    excess, _ = ask("--ssm none", str(path))
    assert abs(excess) <= 1
    run = tmp_path / "run"
    options, _ = train.parse_args([*shlex.split(SMALL), "--data_root", str(data_root), "--ssm", "gain"])
    model_config = match.configuration(options).config.to_dict()
    utils.save_json({"model_config": model_config, "args": options.record()}, run / "config.json")
    excess, line = ask("--ssm gain --G_ch 3", str(run))
    assert excess == 0 and line[-2:] == ["--G_ch", "64"]


@pytest.mark.parametrize(
    "target, message",
    [
        ("nowhere", "no such run folder or checkpoint"),
        ("--ssm 'voxel", "not flags as a shell reads them"),
        ("--D_ch 1 --G_ch 1", "D and the batches stay as they are"),
        ("", "no such run folder"),
        ("--ssm gain --init_from some/run", "name it itself, --match some/run"),
        ("--ssm gain --match x", "--match belongs outside"),
        ("--ssm gain --by seconds", "--by belongs outside"),
    ],
)
def test_what_cannot_be_matched_is_told(ask, target, message):
    with pytest.raises(utils.UserError, match=message):
        ask("", target)


def test_flags_that_make_no_sense_here(ask, data_root, capsys):
    for wrong in (["--match", "--sssm voxel"], ["--match", "--ssm x"], ["--match"]):
        with pytest.raises(SystemExit) as stop:
            train.main([*shlex.split(SMALL), "--data_root", str(data_root), *wrong])
        assert stop.value.code == 2 and "--match" in capsys.readouterr().err
    with pytest.raises(utils.UserError, match="--by goes with --match"):
        train.main([*shlex.split(SMALL), "--by", "seconds"])


def test_seconds_are_matched_by_what_guesses_take(data_root):
    """With a made clock, on which a multiply-add of SSM takes twice as long."""
    base = [*shlex.split(SMALL), "--data_root", str(data_root), "--G_ch", "8"]
    own, target = configuration(base), configuration([*base, "--ssm", "voxel"])

    def clock(options, config, device):
        return match.Configuration(options, config).multiply_adds * (1 if config.ssm == "none" else 2)

    found, excess = match.match_seconds(own, target, clock)
    assert abs(excess) <= 0.01 and found.multiply_adds == pytest.approx(2 * target.multiply_adds, rel=0.011)
    small = configuration([*base, "--D_ch", "1", "--G_ch", "1"])
    with pytest.raises(utils.UserError, match="with --G_ch 1 a step of this configuration takes .* times as long"):
        match.match_seconds(own, small, clock)


def test_of_the_data_only_the_size_is_looked_at(data_root, monkeypatch):
    read = []

    class Watched(HDF5Dataset):
        def __init__(self, path, load_in_mem=False):
            read.append(load_in_mem)
            super().__init__(path, load_in_mem)

    monkeypatch.setattr(loading, "HDF5Dataset", Watched)
    words = [*shlex.split(SMALL), "--data_root", str(data_root), "--load_in_mem", "--G_ch", "4"]
    train.main([*words, "--match", "--ssm gain"])
    assert read and not any(read)
