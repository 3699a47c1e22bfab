"""Losses and the orthogonal penalty against their formulas."""

import pytest
import torch

from training import losses


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    terms = losses.d_hinge(real, fake)
    assert terms["D_loss_real"].item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert terms["D_loss_fake"].item() == pytest.approx((0 + 1.25) / 2)
    assert losses.g_hinge(fake)["G_loss"].item() == pytest.approx(2.75 / 2)


def test_non_saturating_is_cross_entropy():
    real, fake = torch.randn(5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    d_loss, g_loss = losses.LOSSES["non_saturating"]
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    terms = d_loss(real, fake)
    torch.testing.assert_close(terms["D_loss_real"], cross_entropy(real, torch.ones_like(real)))
    torch.testing.assert_close(terms["D_loss_fake"], cross_entropy(fake, torch.zeros_like(fake)))
    torch.testing.assert_close(g_loss(fake)["G_loss"], cross_entropy(fake, torch.ones_like(fake)))
    assert all(torch.isfinite(value) for value in d_loss(torch.tensor([-1e4]), torch.tensor([1e4])).values())


def test_wasserstein_is_a_difference_of_means():
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([-3.0, 1.0, 5.0])
    d_loss, g_loss = losses.LOSSES["wasserstein"]
    assert sum(d_loss(real, fake).values()).item() == pytest.approx(1 - 3)
    assert g_loss(fake)["G_loss"].item() == pytest.approx(-1)


def test_orthogonal_penalty_has_the_gradient_of_the_reference_family():
    weight, bias = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(4, requires_grad=True)
    losses.orthogonal_penalty([weight, bias], 1e-2).backward()
    W = weight.detach().flatten(1)
    expected = 1e-2 * 2 * ((W @ W.t()) * (1 - torch.eye(4, dtype=torch.float64))) @ W
    torch.testing.assert_close(weight.grad.flatten(1), expected)
    assert bias.grad is None


def test_orthogonal_rows_cost_nothing():
    rows = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0][:4] * torch.tensor([[1.0], [2], [3], [0.5]])
    assert losses.orthogonal_penalty([rows], 1.0).item() == pytest.approx(0, abs=1e-20)
