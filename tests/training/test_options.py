"""The options of train.py: a field is a flag, an entry of the checkpoint, and says whether it may change."""

import json

import pytest

import utils
from model_config import ModelConfig
from training.options import TrainOptions


def parsed(*flags):
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(["--dataset", "x", *flags])
    return TrainOptions.of(defaults | given), given


def test_every_field_is_a_flag_and_an_entry_of_the_checkpoint():
    options, _ = parsed()
    names = {field.name for kind in TrainOptions.concerns().values() for field in kind.fields()}
    names |= {field.name for field in ModelConfig.fields()} | {"legacy_notes"}
    record = options.record()
    assert record.keys() == names and json.loads(json.dumps(record)) == record
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    assert {f"--{name}" for name in names - {"legacy_notes"}} <= parser._option_string_actions.keys()


def test_what_is_given_is_told_from_defaults():
    options, given = parsed("--G_lr", "5e-5", "--no-ema", "--shuffle", "--G_attn", "0")
    assert given.keys() == {"dataset", "G_lr", "ema", "legacy_notes", "G_attn"}  # also where it is the default's value
    assert options.optimizers.G_lr == 5e-5 and not options.ema.ema and len(options.legacy_notes) == 1
    assert options.model["G_attn"] == () and options.record()["G_attn"] == []


def test_what_may_change_on_resume():
    changeable = TrainOptions.changeable()
    assert {"num_iters", "test_every", "device", "num_workers", "data_root", "inception_weights"} <= changeable
    fixed = {"seed", "dataset", "batch_size", "loss", "G_lr", "ema_decay", "bn_mode", "retention_ratio", "which_best"}
    assert not changeable & (fixed | {field.name for field in ModelConfig.fields()})


def test_what_may_change_where_it_is_named():
    named = TrainOptions.changeable_by_name()
    assert {"G_lr", "batch_size", "G_ortho", "ema_decay", "bn_mode", "feature_network", "which_best", "flip"} <= named
    fixed = {"dataset", "crop_size", "seed", "ema", "unconditional", "retention_ratio", "init_from"}
    assert not named & (fixed | {field.name for field in ModelConfig.fields()} | TrainOptions.changeable())
    assert parsed("--allow_change=--G_lr")[0].run.allow_change == ["G_lr"]
    assert parsed("--allow_change", "G_lr", "num_iters", "--ema")[0].run.allow_change == ["G_lr", "num_iters"]


def test_the_length_in_epochs_counts_images_that_were_seen_in_steps_of_other_sizes():
    options, _ = parsed("--batch_size", "50", "--num_D_steps", "1", "--num_epochs", "5")
    assert options.run_length(100) == 10 and options.run_length(100, step=4, images_seen=100) == 12
    assert options.run_length(100, step=20, images_seen=1000) == 10  # past the end, as undisturbed


def test_sizes_and_length_follow_from_the_options():
    options, _ = parsed("--batch_size", "8", "--num_D_steps", "2", "--num_D_accumulations", "3", "--num_epochs", "5")
    assert (options.images_per_D_step, options.images_per_step) == (24, 48)
    assert options.run_length(100) == 11  # 500 images in steps of 48
    shorter, _ = parsed("--num_iters", "7", "--num_epochs", "100")
    assert shorter.run_length(10**6) == 7 and parsed()[0].run_length(128) == 100


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--G_ortho", "nan"], "--G_ortho nan: must be 0 or positive"),
        (["--seed", str(2**63)], "--seed 9223372036854775808: must be below"),
        (["--retention_ratio", "0"], "--retention_ratio 0.0: must be a percentage above 0"),
        (["--class_mapping", "x"], "--class_mapping goes with --init_from"),
        (["--allow_change", "ssm"], "--allow_change ssm: --ssm cannot change within a run.*--experiment_name"),
        (["--allow_change", "G_lr", "dataset"], "--dataset cannot change"),
        (["--allow_change", "ema"], "--ema cannot change"),
        (["--allow_change", "seed"], "--seed cannot change"),
        (["--allow_change", "D_rl"], "there is no flag --D_rl; did you mean D_lr"),
        (["--lr_decay_to", "1.5"], r"--lr_decay_to 1.5: must lie in \[0, 1\]"),
    ],
)
def test_values_that_cannot_be_are_one_line(flags, line):
    with pytest.raises(utils.UserError, match=line):
        parsed(*flags)
