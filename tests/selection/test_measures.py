"""Density measures against scikit-learn and brute force, and where there is next to nothing to measure."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch._subclasses import FakeTensorMode

from selection import measures
from selection.measures import DENSITY_MEASURES

SHAPES = [(30, 8), (8, 30), (200, 50), (50, 200), (40, 40), (3, 5), (5, 1)]


def made(n, d, seed=0):
    """Correlated features (n,d), off the origin, whose variances span several powers of ten."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.geomspace(1, 0.01, d) @ rng.standard_normal((d, d)) + 3


def published_ppca(x):
    shares = PCA(min(x.shape)).fit(x).explained_variance_ratio_
    return PCA(int((shares.cumsum() < 0.95).sum()), svd_solver="full").fit(x).score_samples(x)


def distances(x):
    return np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)  # column 0: to itself


PUBLISHED = {
    "gaussian": lambda x: GaussianMixture(1, reg_covar=1e-5).fit(x).score_samples(x),
    "ppca": published_ppca,
    "nn_dist": lambda x: -distances(x)[:, min(5, len(x) - 1)],
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("measure", DENSITY_MEASURES)
def test_equal_to_the_published_measures(measure, shape):
    x = made(*shape)
    ours, theirs = DENSITY_MEASURES[measure](torch.from_numpy(x)).numpy(), PUBLISHED[measure](x)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    if shape != (5, 1):  # where the farthest of 5 points is measured to, distances tie
        assert np.array_equal(np.argsort(ours), np.argsort(theirs))


@pytest.mark.parametrize("shape", [(60, 8), (20, 30)], ids=str)
@pytest.mark.parametrize("measure", DENSITY_MEASURES)
def test_chunks_and_types_do_not_matter(measure, shape, monkeypatch):
    x = torch.from_numpy(made(*shape)).float()
    whole = DENSITY_MEASURES[measure](x.double())
    monkeypatch.setattr(measures, "CHUNK", 7)
    torch.testing.assert_close(DENSITY_MEASURES[measure](x), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measure", DENSITY_MEASURES)
def test_alike_images_are_equally_dense(measure):
    for shape in ((1, 4), (7, 4), (3, 9), (9, 1)):
        scores = DENSITY_MEASURES[measure](torch.full(shape, 0.1))
        assert scores.shape == shape[:1] and scores.isfinite().all() and (scores == scores[0]).all()


@pytest.mark.parametrize("measure", DENSITY_MEASURES)
def test_an_outlier_is_sparsest(measure):
    x = torch.from_numpy(made(100, 6))
    x[17] += 20
    assert DENSITY_MEASURES[measure](x).argmin() == 17


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_gaussian_scores_stay_on_the_device(shape):
    with FakeTensorMode():
        scores = measures.gaussian_scores(torch.empty(shape, device="cuda"))
    assert scores.device.type == "cuda" and scores.shape == shape[:1]
