"""Penalties against direct computations in float64: autograd of autograd, and finite differences."""

import pytest
import torch
from whole_steps import ATTENTION, networks

import utils
from training import penalties
from training.penalties import PenaltyOptions

MODELS = [ATTENTION, {"D_cond": "concat", "D_ch_mult": (1, 2, 2)}, {"model": "BigGANdeep"}]


def discriminator(**model):
    """In evaluation: spectral norm's vectors stay, so that logits are a function of the weights."""
    return networks(**model)[1].eval()


def images(n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1, torch.arange(n)


@pytest.mark.parametrize("model", MODELS)
def test_squared_gradient_is_that_of_each_image_by_itself(model):
    D = discriminator(**model)
    x, y = images()
    x.requires_grad_()
    value = penalties.squared_gradient(D(x, y), x)
    alone = [torch.autograd.functional.jacobian(lambda one, i=i: D(one[None], y[i : i + 1])[0], x[i]) for i in range(3)]
    assert value.item() == pytest.approx(sum(g.square().sum().item() for g in alone) / 3, rel=1e-8)
    step, direction = 1e-6, torch.randn_like(x)
    with torch.no_grad():
        slopes = (D(x + step * direction, y) - D(x - step * direction, y)) / (2 * step)
    expected = [(g * direction[i]).sum().item() for i, g in enumerate(alone)]
    assert slopes.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_its_own_gradient_is_that_of_finite_differences(model):
    """Through the fused convolutions, spectral norm and attention."""
    D = discriminator(**model)
    x, y = images()
    x.requires_grad_()

    def penalty():
        return penalties.squared_gradient(D(x, y), x)

    weights = [p for p in D.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(penalty(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    step, values = 1e-6, []
    for sign in (1, -2):
        for weight, direction in zip(weights, directions, strict=True):
            weight.data.add_(direction, alpha=sign * step)
        values.append(penalty().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_squared_difference_is_the_squared_slope_along_the_noise():
    n, weight = torch.randn(5, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    x = torch.randn(5, 12, dtype=torch.float64)
    squares = penalties.squared_difference(x @ weight, (x + penalties.DIFFERENCE * n) @ weight)
    torch.testing.assert_close(squares, (n @ weight).square(), rtol=1e-8, atol=0)
    many = torch.randn(20_000, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares = penalties.squared_difference(torch.zeros(1), penalties.DIFFERENCE * many @ weight)
    assert squares.mean().item() == pytest.approx(weight.square().sum().item(), rel=0.05)


def test_lecam_counts_what_is_beyond_the_average_of_the_other_kind():
    real, fake = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 3.0])
    value = penalties.lecam(real, fake, torch.tensor(1.0), torch.tensor(-0.5))
    assert value.item() == pytest.approx((2.5**2 + 0 + 1) / 3 + (1 + 0) / 2)


def test_consistency_is_a_mean_square():
    assert penalties.consistency(torch.tensor([1.0, 2]), torch.tensor([3.0, 2])).item() == 2


@pytest.mark.parametrize(
    "options, line",
    [
        ({"cr": 10.0, "bcr": 10.0}, "--cr is part of --bcr"),
        ({"r1_every": 16}, "--r1_every goes with --r1_gamma"),
        ({"r1_gamma": 1.0, "r2_approx": True}, "--r2_approx goes with --r2_gamma"),
        ({"r1_gamma_to": 0.1}, "--r1_gamma_to goes with --r1_gamma"),
        ({"lecam": -1.0}, "--lecam -1.0: must be 0 or positive"),
        ({"r1_gamma": float("nan")}, "--r1_gamma nan"),
        ({"lecam_start": 10}, "--lecam_start goes with --lecam"),
        ({"zcr": 1.0, "zcr_radius": 0.0}, "--zcr_radius 0.0: must be positive"),
        ({"lecam": 0.3, "lecam_decay": 1.0}, r"--lecam_decay 1.0: must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_one_line(options, line):
    with pytest.raises(utils.UserError, match=line):
        PenaltyOptions(**options)
