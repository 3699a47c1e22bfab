"""PRDC against a dense float64 twin, with ties, duplicates and collapsed sets."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import prdc
import utils
from metrics import distances


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
        "absolute values": (torch.randn(90, 512, generator=g).abs(), torch.randn(70, 512, generator=g).abs()),
        "mixed types": (gauss.double() * 1e-3 + 1e6 / 3, (other.double() * 1e-3 + 1e6 / 3).float()),
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
        "two far clusters": (torch.cat([gauss, other + 2e4]), torch.cat([other, gauss + 2e4])),
        "tiny": (gauss * 1e-38, other * 1e-38),  # subnormal in part
        "too tiny for squares": (gauss.double() * 1e-170, other.double() * 1e-170),
        "huge": (gauss * 1e37, other * 1e37),  # squares pass float32
        "huge float64": (gauss.double() * 1e140, other.double() * 1e140),
        "of all sizes": (
            gauss.double() * 10.0 ** torch.arange(-60, 30)[:, None],
            other.double() * 10.0 ** torch.arange(-40, 30)[:, None],
        ),
    }[name]


NAMES = [
    "gaussian",
    "float64",
    "absolute values",
    "mixed types",
    "grid with ties",
    "identical",
    "one of them twice",
    "duplicates",
    "collapsed",
]
NAMES += ["nearly collapsed", "far from the origin", "one far point", "constant", "one-hot", "two far clusters"]
NAMES += ["tiny", "too tiny for squares", "huge", "huge float64", "of all sizes"]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_twin_exactly(name, k, monkeypatch):
    real, fake = sets(name)
    expected = twin(real, fake, k)
    for tile in (1024, 16):
        monkeypatch.setattr(prdc, "LARGEST_TILE", tile)
        assert prdc.prdc(real=real, fake=fake, k=k) == pytest.approx(expected, abs=1e-13)
    swapped = prdc.prdc(real=fake, fake=real, k=k)
    assert (swapped["precision"], swapped["recall"]) == pytest.approx((expected["recall"], expected["precision"]))


@pytest.mark.parametrize("name", NAMES)
def test_radii_are_those_of_direct_differences_to_the_bit(name, monkeypatch):
    monkeypatch.setattr(prdc, "LARGEST_TILE", 32)
    for points in sets(name):
        squared = distances.direct_squared(points[:, None], points[None]).fill_diagonal_(torch.inf)
        assert torch.equal(prdc.radii(points, 5), squared.sort(1).values[:, 4])


ORIGINAL_MAKE_BLOCK = distances.make_block


def inflated(points, frame, dtype):
    """A Block whose bounds hold, and settle nothing."""
    block = ORIGINAL_MAKE_BLOCK(points, frame, dtype)
    norms = block.lower + block.error
    error = 10 * norms + block.error
    return block._replace(lower=norms - error, error=error)


LEVELS = {  # by name: pairs per row of a tile that may stay in doubt, further settings
    "float32 tiles": (10**6, {}),
    "float32 and float64 tiles": (0, {}),
    "direct": (10**6, {"make_block": inflated}),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["gaussian", "grid with ties", "nearly collapsed", "two far clusters", "of all sizes"])
def test_each_level_gives_the_twin_s_counts(name, level, monkeypatch):
    doubts, settings = LEVELS[level]
    direct, pairs = [], distances.direct_pairs
    monkeypatch.setattr(distances, "direct_pairs", lambda a, b, i, j: direct.append(len(i)) or pairs(a, b, i, j))
    for name_of_limit, value in {"DOUBTS": doubts, "LARGEST_TILE": 32}.items():
        monkeypatch.setattr(prdc, name_of_limit, value)
    for attribute, value in settings.items():
        monkeypatch.setattr(distances, attribute, value)
    real, fake = sets(name)
    assert prdc.prdc(real=real, fake=fake) == pytest.approx(twin(real, fake, 5), abs=1e-13)
    assert level != "direct" or sum(direct) >= len(real) * len(fake)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_bounds_hold(name, dtype):
    real, fake = sets(name)
    frame = distances.make_frame(real, fake)
    a, b = (distances.make_block(points, frame, dtype) for points in (real, fake))
    lower = distances.lower_bounds(a, b)
    upper = distances.upper_bounds(lower, a.error[:, None], b.error)
    direct = distances.direct_squared(real[:, None], fake[None]) * frame.scale**2
    assert (lower <= direct).all() and (direct <= upper).all()
    assert (a.points.abs().max() <= 2) and (b.points.abs().max() <= 2)


def test_the_bounds_hold_where_float32_has_no_correct_digit():
    """Features of one sign, far from the centre, with every rounding in the same direction."""
    real = torch.full((40, 2048), 1.0 + 2**-12) + 2.0**-23 * torch.arange(40)[:, None]
    other = torch.cat([-real, real])
    frame = distances.Frame(torch.zeros(2048), 1.0)
    a, b = (distances.make_block(points, frame, torch.float32) for points in (real, other))
    lower = distances.lower_bounds(a, b)
    upper = distances.upper_bounds(lower, a.error[:, None], b.error)
    direct = distances.direct_squared(real[:, None], other[None])
    assert not torch.allclose((lower[:, 40:] + upper[:, 40:]).double() / 2, direct[:, 40:], rtol=0.5)
    assert (lower <= direct).all() and (direct <= upper).all()


@pytest.mark.parametrize("name", ["gaussian", "float64", "two far clusters"])
def test_differences_are_formed_for_few_pairs(name, monkeypatch):
    """Where float32 settles little, float64 bounds settle nearly all the rest: never all pairs."""
    pairs, direct = [], distances.direct_pairs
    monkeypatch.setattr(distances, "direct_pairs", lambda a, b, i, j: pairs.append(len(i)) or direct(a, b, i, j))
    monkeypatch.setattr(prdc, "DOUBTS", 2)
    real, fake = (points.repeat(5, 1) + torch.randn(5 * len(points), 6) / 100 for points in sets(name))
    prdc.prdc(real=real, fake=fake)
    assert sum(pairs) < 10 * (len(real) + len(fake))  # of 800 times as many


@pytest.mark.parametrize("d", [1, 2, 7, 100, 2048])
def test_direct_distances_do_not_depend_on_how_many_are_computed(d):
    a, b = torch.randn(2, 40, d, dtype=torch.float64)
    together = distances.direct_squared(a, b)
    assert torch.equal(together, torch.stack([distances.direct_squared(a[i], b[i]) for i in range(40)]))
    assert torch.equal(together, distances.direct_squared(b, a))
    torch.testing.assert_close(together, (a - b).square().sum(-1))


def test_autocast_does_not_reach_the_products():
    real, fake = sets("gaussian")
    expected = prdc.prdc(real=real, fake=fake)
    with torch.autocast("cpu", torch.bfloat16):
        assert prdc.prdc(real=real, fake=fake) == expected
        block = distances.make_block(real, distances.make_frame(real), torch.float32)
        assert distances.lower_bounds(block, block).dtype == torch.float32


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
    for broken in (torch.nan, torch.inf, 1e200):
        with pytest.raises(utils.UserError, match="finite"):
            prdc.prdc(real=points, fake=torch.cat([points, torch.full((1, 4), broken, dtype=torch.float64)]))
    with pytest.raises(utils.UserError, match="MiB"):
        prdc.prdc(real=points, fake=points, memory_mb=1)


def test_arrays_and_half_precision_are_measured_as_they_are():
    real, fake = (points.half() for points in sets("gaussian"))
    expected = prdc.prdc(real=real.double(), fake=fake.double())
    assert prdc.prdc(real=real, fake=fake) == expected
    assert prdc.prdc(real=real.numpy(), fake=fake.numpy()) == expected


@pytest.mark.parametrize("memory_mb", [8, 64, 1024, 10**6])
@pytest.mark.parametrize("d", [1, 64, 2048])
def test_working_memory_fits_what_is_allowed(d, memory_mb):
    size, keep = prdc.tiling(d, memory_mb)
    assert 16 <= size <= prdc.LARGEST_TILE
    assert 4 * size * (keep * d + 8 * size) <= memory_mb * 2**20


def test_tensor_parts_stay_on_their_device():
    with FakeTensorMode():
        real = torch.empty(50, 16, device="cuda")
        frame = distances.Frame(torch.empty(16, device="cuda"), 0.5)
        for dtype in (torch.float32, torch.float64):
            a, b = (distances.make_block(real, frame, dtype) for _ in range(2))
            lower = distances.lower_bounds(a, b)
            upper = distances.upper_bounds(lower, a.error[:, None], b.error)
            index = torch.zeros(50, 8, dtype=int, device="cuda")
            nearest, index = prdc.merge_nearest(lower[:, :8], index, lower, 7)
            found, unsettled = prdc.decide_kth(nearest, nearest, 5)
            near = prdc.may_be_inside(lower, found[:, 0], found[:, 1])
            direct = distances.direct_squared(real[index[:, 0]], real)
            for result in (direct, found[:, 0], unsettled.sum(1), upper.amin(0), near.count_nonzero(1)):
                assert result.shape == (50,) and result.device.type == "cuda"
        with pytest.raises(RuntimeError):
            distances.make_block(real, distances.Frame(torch.empty(16), 0.5), torch.float32)


def test_deterministic_training_may_use_kth_values_and_medians(monkeypatch):
    """GPUs refuse these under --deterministic, for indices that nobody looks at; afterwards all is as it was."""
    seen = []
    for name in ("kthvalue", "median"):
        own = getattr(torch.Tensor, name)

        def asked(*args, own=own, **kwargs):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return own(*args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, asked)
    torch.use_deterministic_algorithms(True)
    try:
        prdc.prdc(real=torch.randn(40, 4), fake=torch.randn(30, 4), k=3)
        assert seen and not any(seen) and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
