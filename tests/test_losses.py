"""Losses and the orthogonal penalty against their formulas."""

import pytest
import torch

import losses


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    terms = losses.d_hinge(real, fake)
    assert terms["D_loss_real"].item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert terms["D_loss_fake"].item() == pytest.approx((0 + 1.25) / 2)
    assert losses.g_hinge(fake)["G_loss"].item() == pytest.approx(2.75 / 2)


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
