"""The training state: what a checkpoint holds, how large it is, and that it is all there is."""

from pathlib import Path

import pytest
import torch

import utils
from model_config import ModelConfig
from torch_utils import checkpoints
from training import messages
from training.options import TrainOptions
from training.state import TrainingState, begin
from training.steps import d_step, g_step

CONFIG = ModelConfig(resolution=16, n_classes=3, dim_z=6, G_ch=8, D_ch=8, G_ch_mult=(2, 2, 1), D_ch_mult=(1, 2))


def options_of(*flags):
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(["--dataset", "x", *flags])
    return TrainOptions.of(defaults | given)


def state(*flags, seed=0):
    torch.manual_seed(seed)
    return TrainingState(CONFIG, options_of(*flags), torch.device("cpu"))


def train(made, steps):
    g = torch.Generator().manual_seed(made.step)
    for step in range(made.step + 1, made.step + 1 + steps):
        x, z = torch.randn(4, 3, 16, 16, generator=g), torch.randn(4, 6, generator=g)
        y = torch.tensor([0, 1, 2, 0])
        d_step(made.G, made.D, made.D, made.opt_D, [(x, y, z, y)], 1, 0)
        g_step(made.G, made.D, made.G, made.opt_G, [(z, y)], 1, 0)
        made.finish_step(step)


@pytest.mark.parametrize("flags", [["--ema"], [], ["--ema", "--ema_ramp", "--ema_power", "0.05_0.1"]])
def test_a_loaded_state_goes_on_as_the_saved_one(flags, tmp_path):
    one, other = state(*flags), state(*flags, seed=1)
    train(one, 2)
    one.best = {"step": 1, "metric": "FD", "value": 2.0}
    checkpoints.save(one.state_dict(), tmp_path / "c.pth")
    other.load_state_dict(checkpoints.load(tmp_path / "c.pth"), tmp_path)
    assert (other.step, other.best) == (2, one.best)
    for made in (one, other):
        train(made, 1)
    for name, part in one.parts.items():
        if part is not None:
            a, b = part.state_dict(), other.parts[name].state_dict()
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def begun(saved, *flags, before=()):
    """A new state of a command's, begun from a saved one of another command's."""
    made, options = state(*flags), options_of(*flags)
    about = {"model_config": {}, "data": {}, "args": options.record()}
    checkpoint = saved.state_dict() | about | {"args": options_of(*before).record()}
    return made, begin(made, options, about, Path("runs/x"), checkpoint, None, None)


def test_what_allow_change_names_counts_from_the_checkpoint_on():
    saved = state("--G_B2", "0.9")
    train(saved, 1)
    saved.best = {"step": 1, "metric": "IS", "value": 2.0}
    with pytest.raises(utils.UserError, match="--G_B2 was 0.9 and is now 0.5. Add --allow_change G_B2 to go on all"):
        begun(saved, "--G_B2", "0.5", before=["--G_B2", "0.9"])
    made, (report, changes) = begun(saved, "--G_B2", "0.5", "--allow_change", "G_B2", before=["--G_B2", "0.9"])
    assert changes == {"G_B2": [0.9, 0.5]} and report is None and made.best == saved.best
    assert made.opt_G.param_groups[0]["betas"] == (0.0, 0.5) and (made.step, made.images_seen) == (1, saved.images_seen)
    assert made.opt_G.state_dict()["state"].keys() == saved.opt_G.state_dict()["state"].keys()
    # other numbers than those of the best evaluation so far
    saved = state()
    saved.best = {"step": 0, "metric": "IS", "value": 2.0}
    train(saved, 1)
    made, (_, changes) = begun(saved, "--bn_mode", "batch", "--allow_change", "bn_mode")
    assert list(changes) == ["bn_mode"] and made.best is None


def test_distances_that_are_measured_otherwise_are_no_collapse():
    saved = state()
    saved.watchdog.examine_metrics(1, {"fd": 0.5}, 3.0)
    for flags, found in ((["--bn_mode", "batch", "--allow_change", "bn_mode"], []), ([], ["fd"])):
        made, _ = begun(saved, *flags)
        assert [it.kind for it in made.watchdog.examine_metrics(2, {"fd": 30.0}, 3.0)] == found


def test_a_collapse_that_was_but_told_of_is_acted_on_where_that_is_asked_for():
    saved = state()
    for step in (10, 600):
        saved.watchdog.examine_losses(step, {"D_loss": 0.0}, "hinge", {}, saved_options := options_of().watch)
    assert saved.watchdog.memory.told == ["D_loss_floor"]
    for action, found in (("stop", ["D_loss_floor"]), ("warn", [])):
        made, _ = begun(saved, "--on_collapse", action)
        assert [
            it.kind for it in made.watchdog.examine_losses(610, {"D_loss": 0.0}, "hinge", {}, saved_options)
        ] == found


def test_going_back_to_before_a_technique_was_asked_for_begins_it_anew(tmp_path):
    """As a process that starts there would."""
    before = state().state_dict()
    made = state("--ada_target", "0.6", "--amp", "fp16")
    made.regularisation.strength.fill_(0.9)
    made.scaler_G.skipped = made.scaler_G.in_a_row = 40
    saved = made.state_dict()
    made.load_state_dict(saved, tmp_path)
    assert made.regularisation.strength == 0.9 and made.scaler_G.in_a_row == 40 and made.scaler_G.newly_skipped() == 0
    made.load_state_dict(before, tmp_path)
    assert made.regularisation.strength == 0 and made.scaler_G.in_a_row == 0 and made.scaler_D is not made.scaler_G


@pytest.mark.parametrize(("name", "flags"), [("cross_replica", ["--cross_replica"]), ("ssm", ["--ssm", "gain"])])
def test_a_flag_of_after_a_checkpoint_counts_as_its_default_there(name, flags):
    options = options_of(*flags)
    args = {key: value for key, value in options_of().record().items() if key != name}
    about = {"model_config": {}, "data": {}, "args": options.record()}
    with pytest.raises(utils.UserError, match=f"--{name} was (False|none) and is now"):
        options.changes_since({"step": 3, **about, "args": args}, about)
    about["args"] = options_of().record()
    assert options_of().changes_since({"step": 3, **about, "args": args}, about) == {}


def test_a_checkpoint_without_a_part_is_one_line(tmp_path):
    made = state("--ema")
    with pytest.raises(utils.UserError, match="holds no G_ema"):
        made.load_state_dict(state().state_dict(), tmp_path)
    made = state("--ema_power", "0.05")
    assert "G_power" not in state().state_dict()  # nor have checkpoints of before
    with pytest.raises(utils.UserError, match="holds no G_power"):
        made.load_state_dict(state().state_dict(), tmp_path)
    with pytest.raises(utils.UserError, match=r"its G_power does not fit this model \('0.05'\)"):
        made.load_state_dict(state("--ema_power", "0.1").state_dict(), tmp_path)


def test_a_checkpoint_of_before_the_watchdog_is_taken_for_healthy(tmp_path):
    saved, made = state(), state()
    train(saved, 2)
    old = {name: part for name, part in saved.state_dict().items() if name not in ("watchdog", "evaluating")}
    made.load_state_dict(old, tmp_path)
    memory = made.watchdog.memory
    assert (memory.healthy, memory.evaluated, made.evaluating) == (2, 2, False) and memory.sigmas["D/linear"] > 0
    assert all(weight.requires_grad for weight in made.D.parameters())


@pytest.mark.parametrize("flags", [["--ema"], [], ["--ema", "--ema_ramp", "--ema_power", "0.05_0.1"]])
def test_the_estimated_size_is_that_of_the_file(flags, tmp_path):
    made = state(*flags)
    train(made, 1)
    contents = [made.state_dict(), made.best_state_dict(), *([made.power_state_dict()] if made.power else [])]
    for content, size in zip(contents, made.checkpoint_bytes(), strict=False):
        checkpoints.save(content, tmp_path / "c.pth")
        written = (tmp_path / "c.pth").stat().st_size
        assert size <= written < size + 200_000  # names, and a frame for each tensor


def test_where_a_run_goes_from_and_to():
    told = [messages.steps_text(*steps, "x") for steps in ((0, 250), (100, 250), (250, 250), (300, 250))]
    assert told[:2] == ["from step 0 to 250 in x", "resuming at step 100 to 250 in x"]
    assert told[2:] == ["complete at step 250 in x", "complete at step 300 in x, past the 250 that are asked for"]
