"""Moving averages of G: the ramp, power-law averages, how they are stored, and that a resumed run has the same."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import train
import utils
from image_datasets import writing
from torch_utils import checkpoints, power_law
from torch_utils.distributed import Ranks
from training import rollback
from training.ema import EMAOptions, MovingAverage, PowerAverages, ramped_decay
from training.options import TrainOptions
from training.watchdog import Finding, Watchdog


def parsed(*flags):
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(["--dataset", "x", *flags])
    return TrainOptions.of(defaults | given)


def test_the_ramp_is_the_smaller_half_life():
    images, decay = 64, 0.999
    longest = images * math.log(0.5) / math.log(decay)  # images until half is forgotten
    for seen in (64, 6400, 10**6, 10**9):
        half_life = min(longest, 0.05 * seen)
        assert ramped_decay(decay, 0.05, seen, images) == pytest.approx(0.5 ** (images / half_life), rel=1e-12)
    assert ramped_decay(decay, 0.05, 10**9, images) == decay  # bit for bit, once it is over
    assert ramped_decay(decay, 0.05, 0, images) == 0 and ramped_decay(decay, 0, 0, images) == decay


def test_a_ramped_average_starts_as_a_copy_and_ends_as_the_plain_one():
    G = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ramped, plain = MovingAverage(G, 0.9, 0, 0.05), MovingAverage(G, 0.9, 0)
    for step in range(1, 4):
        nn.init.normal_(G[0].weight)
        ramped.update(step, (step - 1) * 8, 8)
        plain.update(step)
        assert torch.equal(ramped.module[0].weight, G[0].weight) == (step == 1)
    assert not torch.equal(ramped.module[0].weight, plain.module[0].weight)
    late = MovingAverage(G, 0.9, 0, 0.05)
    late.module.load_state_dict(plain.module.state_dict())
    nn.init.normal_(G[0].weight)
    late.update(9, 10**6, 8)
    plain.update(9, 10**6, 8)
    assert torch.equal(late.module[0].weight, plain.module[0].weight)


def test_power_averages_equal_the_weighted_sum():
    G = nn.Linear(3, 2).double()
    averages, path = PowerAverages(G, (0.05, 0.1)), []
    for step in range(1, 31):
        nn.init.normal_(G.weight)
        path.append(G.weight.detach().clone())
        averages.update(step)
    for width in (0.05, 0.1):
        gamma = power_law.exponent(width)
        shares = np.diff((np.arange(31) / 30) ** (gamma + 1))
        direct = sum(share * weight for share, weight in zip(shares, path, strict=True))
        torch.testing.assert_close(averages.state_dict()[str(width)]["weight"], direct, rtol=1e-12, atol=1e-14)


def test_flags():
    assert parsed().ema == EMAOptions() and parsed("--ema", "--ema_ramp").ema.ema_ramp == 0.05
    ema = parsed("--ema", "--ema_ramp", "0.09", "--ema_power", "0.1_0.05", "--ema_power_every", "10").ema
    assert (ema.ema_ramp, ema.ema_power, ema.number) == (0.09, (0.05, 0.1), 3)
    assert [step for step in range(1, 26) if ema.stores_at(step, step == 25)] == [10, 20, 25]
    assert [ema.num_stored(*steps) for steps in ((0, 25), (10, 25), (0, 20), (25, 25))] == [3, 2, 2, 0]
    assert EMAOptions().num_stored(0, 10**6) == 0 and not EMAOptions().stores_at(5000, True)
    with pytest.raises(utils.UserError, match="--ema_ramp goes with --ema"):
        parsed("--ema_ramp")
    with pytest.raises(utils.UserError, match="--ema_ramp -1"):
        parsed("--ema", "--ema_ramp", "-1")
    with pytest.raises(utils.UserError, match="--allow_change ema_power: --ema_power cannot change"):
        parsed("--allow_change", "ema_power")


def test_going_back_after_a_collapse_takes_later_averages_along(tmp_path, monkeypatch):
    monkeypatch.setattr(rollback.run_folder, "examined", lambda path: (checkpoints.load(path), None))
    for step in (2, 4):  # of full checkpoints what counts here
        checkpoints.save({"step": step, "best": None}, tmp_path / "weights" / f"ckpt_{step:08d}.pth")
    (tmp_path / "averages").mkdir()
    for step in (1, 2, 3, 4):
        (tmp_path / "averages" / f"average_{step:08d}.pth").touch()
    cpu = torch.device("cpu")
    rollback.go_back(tmp_path, 5, Watchdog(cpu), Finding("not_finite", "it is", 2), 0.5, Ranks(0, 1, cpu))
    assert [checkpoints.step_of(path) for path in checkpoints.averages_of(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_averages(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16)).astype(np.uint8)
    writing.write_hdf5(tmp_path / "made.hdf5", images, np.arange(20) % 2, ["a", "b"], "made", "none")
    flags = "--dataset made --G_ch 4 --G_ch_mult 1-1-1 --D_ch 4 --D_ch_mult 1-1 --dim_z 4 --G_attn 0 --D_attn 0 "
    flags += "--batch_size 4 --num_D_steps 1 --test_every 0 --sample_every 0 --save_every 2 --device cpu --ema "
    flags += "--ema_ramp --ema_power 0.05_0.1 --ema_power_every 2"
    where = ["--data_root", str(tmp_path), "--runs_root", str(tmp_path)]

    def run(name, steps):
        train.main([*flags.split(), *where, "--experiment_name", name, "--num_iters", str(steps)])
        return checkpoints.load(tmp_path / name / "weights" / f"ckpt_{steps:08d}.pth")

    monkeypatch.setattr("training.intervals.draw_curves", lambda *arguments: None)
    whole = run("whole", 5)
    assert [path.name[-6:] for path in checkpoints.averages_of(tmp_path / "whole")] == ["02.pth", "04.pth", "05.pth"]
    run("parts", 3)
    stale = tmp_path / "parts" / "averages" / "average_00000004.pth"  # of a killed run that got further
    stale.write_bytes(b"cut")
    parts = run("parts", 5)
    for key in ("G_power", "G_ema"):
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=0)
    names = ["average_00000002.pth", "average_00000003.pth", "average_00000004.pth", "average_00000005.pth"]
    assert [path.name for path in checkpoints.averages_of(tmp_path / "parts")] == names
    one, other = (checkpoints.load(tmp_path / name / "averages" / names[2]) for name in ("whole", "parts"))
    torch.testing.assert_close(one["averages"], other["averages"], rtol=0, atol=0)
    assert one["step"] == 4 and one["model_config"] == whole["model_config"] and "linear.u" in one["buffers"]
