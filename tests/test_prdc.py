"""PRDC against a dense float64 twin, with ties, duplicates and collapsed sets."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import prdc
import utils


def twin(real, fake, k):
    """All distances from differences, whole matrices, straight from the definitions."""
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)

    def distances(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radii(points):
        own = distances(points, points)
        np.fill_diagonal(own, np.inf)
        return np.sort(own, axis=1)[:, k - 1]

    between = distances(real, fake)
    in_real, in_fake = between < radii(real)[:, None], between < radii(fake)[None]
    return {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": in_real.any(1).mean(),
    }


def sets(name):
    g = torch.Generator().manual_seed(3)
    gauss = torch.randn(90, 6, generator=g)
    other = torch.randn(70, 6, generator=g) + 0.3
    grid = torch.randint(0, 3, (90, 3), generator=g).float()
    return {
        "gaussian": (gauss, other),
        "float64": (gauss.double() / 3, other.double() / 7),
        "grid with ties": (grid, torch.randint(0, 3, (70, 3), generator=g).float()),
        "identical": (gauss, gauss.clone()),
        "one of them twice": (gauss, gauss[:35].repeat(2, 1)),
        "duplicates": (gauss[:10].repeat(9, 1), gauss[:10].repeat(7, 1)),
        "collapsed": (gauss, gauss[:1].repeat(70, 1)),
        "nearly collapsed": (gauss, gauss[:1] * (1 + 1e-7 * torch.randn(70, 1, generator=g))),
        # the product form |a|^2 + |b|^2 - 2ab has no correct digit left here
        "far from the origin": (gauss.double() * 1e-3 + 1e6, other.double() * 1e-3 + 1e6),
        "one far point": (torch.cat([gauss, torch.full((1, 6), 1e8)]), other),
        "constant": (torch.ones(90, 6), torch.ones(70, 6)),
        "one-hot": (torch.eye(90), torch.eye(90)[:70] * 1.5),
    }[name]


NAMES = ["gaussian", "float64", "grid with ties", "identical", "one of them twice", "duplicates", "collapsed"]
NAMES += ["nearly collapsed", "far from the origin", "one far point", "constant", "one-hot"]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_twin_exactly(name, k):
    real, fake = sets(name)
    expected = twin(real, fake, k)
    for chunk in (512, 13):
        assert prdc.prdc(real=real, fake=fake, k=k, chunk=chunk) == pytest.approx(expected, abs=1e-13)
    swapped = prdc.prdc(real=fake, fake=real, k=k)
    assert (swapped["precision"], swapped["recall"]) == pytest.approx((expected["recall"], expected["precision"]))


def test_radii_equal_the_twin_where_everything_is_doubtful():
    points = sets("far from the origin")[0]
    squared = (points[:, None] - points[None]).square().sum(-1)
    expected = squared.fill_diagonal_(torch.inf).sort(1).values[:, 4]
    torch.testing.assert_close(prdc.radii(points, 5, 32), expected, rtol=1e-13, atol=0)


def test_the_error_bound_holds():
    real, fake = sets("far from the origin")
    squared, error = prdc.fast_squared(real, fake)
    direct = prdc.direct_squared(real[:, None], fake[None])
    assert not torch.allclose(squared, direct, rtol=1e-3)
    assert ((squared - direct).abs() <= error).all()


@pytest.mark.parametrize("d", [1, 2, 7, 100, 2048])
def test_direct_distances_do_not_depend_on_how_many_are_computed(d):
    a, b = torch.randn(2, 40, d, dtype=torch.float64)
    together = prdc.direct_squared(a, b)
    assert torch.equal(together, torch.stack([prdc.direct_squared(a[i], b[i]) for i in range(40)]))
    assert torch.equal(together, prdc.direct_squared(b, a))
    torch.testing.assert_close(together, (a - b).square().sum(-1))


def test_a_collapsed_generator_has_precision_and_no_recall():
    real = torch.randn(300, 8)
    collapsed = real[:1] + 1e-3 * torch.randn(300, 8)
    result = prdc.prdc(real=real, fake=collapsed)
    assert result["precision"] > 0.99 and result["recall"] < 0.05 and result["coverage"] < 0.1


def test_refuses_what_it_cannot_measure():
    points = torch.randn(20, 4)
    with pytest.raises(TypeError):
        prdc.prdc(points, points)
    with pytest.raises(utils.UserError, match="k = 5 needs at least 6"):
        prdc.prdc(real=points, fake=points[:5])
    with pytest.raises(utils.UserError, match="features"):
        prdc.prdc(real=points, fake=points[:, :3])


def test_tensor_parts_stay_on_their_device():
    with FakeTensorMode():
        real = torch.empty(50, 16, device="cuda", dtype=torch.float64)
        squared, error = prdc.fast_squared(real, real)
        found, sure = prdc.nearest(real, real, squared, error, 5)
        inside, doubtful = prdc.compare(squared, error, found[:, None])
        for result in (found, sure, inside.sum(0), doubtful.sum(1)):
            assert result.shape == (50,) and result.device.type == "cuda"
        with pytest.raises(RuntimeError):
            prdc.fast_squared(real, torch.empty(50, 16, dtype=torch.float64))
