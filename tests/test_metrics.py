"""Moments, distances and scores of features: against numpy, closed forms and other implementations."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import metrics
import utils
from metrics import RunningMoments, frechet_distance, inception_score

# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_equal_numpy(offset):
    features = np.random.default_rng(0).normal(offset, np.arange(1, 21), (1000, 20))
    moments, parts = RunningMoments(), [RunningMoments() for _ in range(3)]
    for i, batch in enumerate(torch.from_numpy(features).split(37)):
        moments.update(batch)
        parts[i % 3].update(batch)
    moments.update(torch.empty(0, 20))
    merged = RunningMoments()
    for part in (RunningMoments(), *parts):
        merged.merge(part)
    for result in (moments, merged):
        mu, sigma = result.finalize()
        expected = np.cov(features, rowvar=False)
        assert mu.dtype == sigma.dtype == torch.float64 and result.count == 1000
        assert np.abs(mu.numpy() - features.mean(0)).max() <= 1e-10 * np.abs(features.mean(0)).max()
        assert np.abs(sigma.numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_merging_leaves_the_other_alone():
    part, whole = RunningMoments(), RunningMoments()
    part.update(torch.randn(10, 3))
    before = part.mean.clone()
    whole.merge(part)
    whole.update(torch.randn(10, 3) + 5)
    assert torch.equal(part.mean, before)
    with pytest.raises(utils.UserError):
        RunningMoments().finalize()


# --- Frechet distance ------------------------------------------------------------------------------------------------


def covariance(n, d, seed, scale=1.0):
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.logspace(0, -3, d) * scale
    return x.mean(0), np.cov(x, rowvar=False)


def test_frechet_distance_of_commuting_gaussians():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    a, b = rng.uniform(0.1, 4, (2, 12))
    mu1, mu2 = rng.normal(size=(2, 12))
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, q @ np.diag(a) @ q.T, mu2, q @ np.diag(b) @ q.T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [300, 20, 2])
def test_frechet_distance_of_equal_statistics_is_zero(n):
    mu, sigma = covariance(n, 64, 1)
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) <= 1e-6 * np.trace(sigma)


def test_frechet_distance_is_symmetric_and_finite_for_rank_deficient_covariances():
    full, thin = covariance(500, 64, 2), covariance(10, 64, 3)
    there, back = frechet_distance(*thin, *full), frechet_distance(*full, *thin)
    assert there == pytest.approx(back, rel=1e-5)
    zero = (np.zeros(64), np.zeros((64, 64)))
    assert frechet_distance(*zero, *zero) == 0
    assert frechet_distance(*zero, *full) == pytest.approx((full[0] ** 2).sum() + np.trace(full[1]))
    with pytest.raises(utils.UserError, match="not finite"):
        frechet_distance(np.full(64, np.nan), full[1], *full)


def test_frechet_distance_equals_pytorch_fid():
    theirs = pytest.importorskip("pytorch_fid.fid_score")
    one, two = covariance(400, 48, 4), covariance(400, 48, 5, scale=1.5)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs.calculate_frechet_distance(*one, *two)
    except TypeError:  # scipy 1.18 no longer has the argument that pytorch-fid passes
        import scipy.linalg

        expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1])
        expected -= 2 * np.trace(scipy.linalg.sqrtm(one[1] @ two[1])).real
    assert frechet_distance(*one, *two) == pytest.approx(expected, rel=1e-7)


# --- Inception score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, splits", [(100, 10), (103, 10), (7, 7), (50, 1)])
def test_splits_are_cut_as_in_torch_fidelity(n, splits):
    expected = torch.empty(n, dtype=torch.int64)
    for i in range(splits):
        expected[i * n // splits : (i + 1) * n // splits] = i
    assert torch.equal(metrics.contiguous_splits(n, splits), expected)


def test_inception_score_equals_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 5 * torch.randn(5003, 30, generator=torch.Generator().manual_seed(0))
    expected = theirs.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert inception_score(logits, 10) == pytest.approx(tuple(expected.values()), rel=1e-10)


def test_inception_score_bounds():
    assert inception_score(torch.zeros(100, 7), 10) == pytest.approx((1, 0))
    certain = 1000.0 * F.one_hot(torch.arange(100) % 10).float()
    assert inception_score(certain, 10) == pytest.approx((10, 0))
    with pytest.raises(utils.UserError, match="10 splits"):
        inception_score(torch.zeros(9, 7), 10)
