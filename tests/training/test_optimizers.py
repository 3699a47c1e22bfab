"""The learning rate of each step, and what the optimizers are given."""

import pytest
import torch

import train
import utils
from training import optimizers

FLAGS = ["--dataset", "x", "--G_lr", "2e-4", "--D_lr", "1e-4"]


def test_learning_rates_fall_linearly_between_two_steps():
    args, _ = train.parse_args([*FLAGS, "--lr_decay_start", "10", "--lr_decay_end", "30", "--lr_decay_to", "0.5"])
    expected = {1: 1, 10: 1, 11: 1, 21: 0.75, 31: 0.5, 1000: 0.5}
    for step, factor in expected.items():
        assert optimizers.learning_rates(args.optimizers, step) == pytest.approx((2e-4 * factor, 1e-4 * factor))
    to_zero = train.parse_args([*FLAGS, "--lr_decay_end", "4"])[0].optimizers
    assert [optimizers.learning_rates(to_zero, step)[1] / 1e-4 for step in (1, 2, 5)] == pytest.approx([1, 0.75, 0])
    assert optimizers.learning_rates(train.parse_args(FLAGS)[0].optimizers, 10**6) == (2e-4, 1e-4)


def test_beta2_rises_with_the_learning_rates_fall_by_a_cosine():
    flags = "--lr_decay_end 4 --lr_decay_to 0.25 --lr_decay_shape cosine --G_B2 0.9 --D_B2 0.8 --B2_to 0.99".split()
    options = train.parse_args([*FLAGS, *flags])[0].optimizers
    pair = optimizers.make_optimizers(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), options)
    for step, progress in ((1, 0), (2, (1 - 0.5**0.5) / 2), (3, 0.5), (5, 1), (100, 1)):
        optimizers.set_learning_rates(*pair, options, step, 0.5)
        for opt, lr, B2 in zip(pair, (2e-4, 1e-4), (0.9, 0.8), strict=True):
            (group,) = opt.param_groups
            assert group["lr"] == pytest.approx(0.5 * lr * (1 - 0.75 * progress))
            assert group["betas"] == pytest.approx((0.0, B2 + (0.99 - B2) * progress))


def test_optimizers_have_the_flags_values():
    args, _ = train.parse_args([*FLAGS, "--G_B1", "0.5", "--D_B2", "0.9", "--adam_eps", "1e-6"])
    opt_G, opt_D = optimizers.make_optimizers(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), args.optimizers)
    assert opt_G.defaults["betas"] == (0.5, 0.999) and opt_D.defaults["betas"] == (0.0, 0.9)
    assert (opt_G.defaults["lr"], opt_D.defaults["lr"], opt_D.defaults["eps"]) == (2e-4, 1e-4, 1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr_decay_start", "5"], "--lr_decay_end 0 must lie after --lr_decay_start 5"),
        (["--lr_decay_end", "-3"], "--lr_decay_end -3"),
        (["--lr_decay_end", "5", "--lr_decay_to", "2"], "--lr_decay_to 2.0"),
        (["--B2_to", "0.99"], "--B2_to 0.99 goes with --lr_decay_end"),
        (["--D_B1", "1"], "--D_B1"),
        (["--adam_eps", "0"], "--adam_eps"),
        (["--G_lr", "1000"], "--G_lr 1000.0: must be positive and below 10"),
    ],
)
def test_bad_values_are_one_line(flags, words):
    with pytest.raises(utils.UserError) as error:
        train.parse_args([*FLAGS, *flags])
    assert words in str(error.value) and "\n" not in str(error.value)
