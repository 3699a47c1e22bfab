"""Moments, distances and scores of features: against numpy, closed forms and other implementations."""

import warnings

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import utils
from metrics import functional
from metrics.functional import RunningMoments, frechet_distance, inception_score

# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [1, 100, 4096])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_equal_numpy(offset, waiting, monkeypatch):
    monkeypatch.setattr(functional, "WAITING_ROWS", waiting)
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


@pytest.mark.slow
def test_features_wait_as_they_were_and_are_counted_at_once(monkeypatch):
    monkeypatch.setattr(functional, "WAITING_ROWS", 64)
    moments, x = RunningMoments(), torch.randn(300, 3)
    for i, batch in enumerate(x.split(20)):
        buffer = batch.clone()
        moments.update(buffer)
        buffer.fill_(torch.nan)
        assert moments.count == 20 * (i + 1) and sum(map(len, moments.waiting)) < 64
    torch.testing.assert_close(moments.finalize()[1], x.double().T.cov())


def test_merging_leaves_the_other_alone():
    part, whole = RunningMoments(), RunningMoments()
    part.update(torch.randn(10, 3))
    before = part.finalize()
    whole.merge(part)
    whole.update(torch.randn(10, 3) + 5)
    whole.merge(part)
    assert whole.count == 30 and part.count == 10
    assert all(torch.equal(new, old) for new, old in zip(part.finalize(), before, strict=True))
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


@pytest.mark.parametrize("n", [2, 60, 64, 65, 70, 500])
def test_both_roots_give_the_same_frechet_distance(n):
    moments = [torch.as_tensor(moment) for moment in (*covariance(n, 64, 6), *covariance(500, 64, 7))]
    root = functional._cholesky(moments[1])
    assert (root is not None) == (n > 64)  # n images determine n - 1 directions
    expected = functional.frechet_tensor(*moments).item()
    assert frechet_distance(*moments) == pytest.approx(expected, abs=1e-9 * moments[1].trace().item())


@pytest.mark.slow
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


@pytest.mark.parametrize("n, m", [(2, 90), (30, 40), (90, 5), (90, 80)])
def test_frechet_distance_of_few_features_is_that_of_their_moments(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.gamma(1.0, np.logspace(0, -2, 64), (n, 64)), rng.gamma(1.2, np.logspace(0, -2, 64), (m, 64))
    expected = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert functional.frechet_of_features(x, y) == pytest.approx(expected, rel=1e-6)
    assert functional.frechet_of_features(x, x) <= 1e-10 * expected
    with pytest.raises(utils.UserError, match="needs 2 images of each kind, not 1"):
        functional.frechet_of_features(x[:1], y)


@pytest.mark.slow
def test_fid_equals_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    g = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(300, 40, generator=g) ** power for power in (1, 2))
    expected = theirs.fid_statistics_to_metric(*map(theirs.fid_features_to_statistics, (real, fake)), verbose=False)
    distance = frechet_distance(*functional.moments_of(real).finalize(), *functional.moments_of(fake).finalize())
    assert distance == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


# --- Inception score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, splits", [(100, 10), (103, 10), (7, 7), (50, 1)])
def test_splits_are_cut_as_in_torch_fidelity(n, splits):
    expected = torch.empty(n, dtype=torch.int64)
    for i in range(splits):
        expected[i * n // splits : (i + 1) * n // splits] = i
    assert torch.equal(functional.contiguous_splits(n, splits), expected)


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


def test_inception_score_equals_torch_fidelitys_shuffle():
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 5 * torch.randn(1000, 30, generator=torch.Generator().manual_seed(0))
    expected = theirs.isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    shuffled = logits[np.random.RandomState(2020).permutation(1000)]
    assert inception_score(shuffled, 10) == pytest.approx(tuple(expected.values()), rel=1e-10)


def test_merged_inception_scores_are_those_of_the_whole():
    logits, split = 3 * torch.randn(100, 7), functional.contiguous_splits(100, 4)[torch.randperm(100)]
    whole, one, other = (functional.RunningInceptionScore(4) for _ in range(3))
    whole.update(logits, split)
    one.update(logits[:33], split[:33])
    other.update(logits[33:], split[33:])
    one.merge(other)
    one.merge(functional.RunningInceptionScore(4))
    torch.testing.assert_close(one.scores(), whole.scores(), rtol=1e-12, atol=0)


def test_outputs_that_are_no_classes_are_left_out():
    logits = torch.randn(60, 1008, generator=torch.Generator().manual_seed(0))
    padded = logits.clone()
    padded[:, 0], padded[:, 1001:] = 50, -50
    kept = functional.imagenet_logits(padded)
    assert torch.equal(kept, logits[:, 1:1001]) and inception_score(kept, 2)[0] > 1.1
    assert inception_score(padded, 2)[0] == pytest.approx(1, abs=1e-6)  # one dummy output takes all of the mass


# --- kernel distance -------------------------------------------------------------------------------------------------


def two_sets(n=150, m=90, d=24):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, d, generator=g), 0.1 + 0.8 * torch.rand(m, d, generator=g) ** 1.5


def test_polynomial_mmd_is_the_mean_over_pairs():
    x, y = two_sets(7, 5, 3)

    def kernel(a, b):
        return (0.4 * sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) + 1.5) ** 2

    def pairs(a, b, same):
        values = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return sum(values) / len(values)

    expected = pairs(x, x, True) + pairs(y, y, True) - 2 * pairs(x, y, False)
    estimate = functional.polynomial_mmd(x, y, degree=2, gamma=0.4, coef0=1.5)
    assert estimate.dtype == torch.float64 and estimate.item() == pytest.approx(expected, rel=1e-10)


def test_kid_equals_torch_fidelity_with_its_draws():
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    fake, real = two_sets()
    options = {"kid_subsets": 20, "kid_subset_size": 50, "rng_seed": 2020, "verbose": False}
    expected = theirs.kid_features_to_metric(fake.double(), real.double(), **options)
    random = np.random.RandomState(2020)
    draws = [tuple(random.choice(n, 50, replace=False) for n in (150, 90)) for _ in range(20)]
    distance = functional.kernel_distance(fake, real, draws=draws)
    assert distance == pytest.approx(tuple(expected.values()), rel=1e-8)
    assert abs(functional.kernel_distance(fake, real, 100, 50)[0] - distance[0]) < distance[1]  # draws of our own


def test_kid_is_unbiased_seeded_and_checked():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 400, 16, generator=g)  # one distribution: the mean is near 0, and below it half of the time
    mean, std = functional.kernel_distance(x, y, subsets=50, subset_size=100)
    assert abs(mean) < std and functional.kernel_distance(x, y, 50, 100) == (mean, std)
    assert functional.kernel_distance(x, y, 50, 100, seed=1) != (mean, std)
    assert functional.kernel_distance(x, x[:100], 3, 100)[1] > 0
    for size in (1, 101):
        with pytest.raises(utils.UserError, match=f"subsets of {size} of 100 images"):
            functional.kernel_distance(x, y[:100], 3, size)


# --- by class --------------------------------------------------------------------------------------------------------


def test_accuracy():
    logits = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()
    assert functional.accuracy(logits, torch.tensor([0, 2, 2, 1])) == 0.75


def test_tensor_parts_stay_on_their_device():
    """Fake CUDA tensors raise wherever a CPU tensor meets them."""
    with FakeTensorMode(), torch.device("cuda"):
        x, y = torch.empty(30, 16), torch.empty(20, 16)
        rows = functional.rows_at(x, np.arange(7))
        assert rows.device.type == "cuda" and rows.shape == (7, 16)
        for result in (functional.polynomial_mmd(rows, y), functional.low_rank_frechet_tensor(x, y)):
            assert result.device.type == "cuda" and result.shape == () and result.dtype == torch.float64
        with pytest.raises(RuntimeError):
            functional.polynomial_mmd(x, torch.empty(20, 16, device="cpu"))
