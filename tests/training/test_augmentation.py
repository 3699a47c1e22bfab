"""What D's images go through: the stated ranges, gradients, and nothing at strength 0."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import utils
from training import augmentation
from training.augmentation import ADA_NORMAL, ADA_UNIFORM, DIFFAUG_NUMBERS, AugmentationOptions

ALL_DIFFAUG, ALL_ADA = "color_translation_cutout", "blit_geometry_color"


def pictures(n=4, side=16):
    return torch.randn(n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def numbers(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, ADA_UNIFORM, generator=generator), torch.randn(n, ADA_NORMAL, generator=generator)


def strength(p):
    return torch.tensor(p, dtype=torch.float64)


def test_colors_have_the_stated_ranges_and_order():
    x, u = pictures(3), torch.tensor([[0.5, 0.5, 0.5], [0.0, 1 - 1e-12, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    y = augmentation.jitter_colors(x, u)
    torch.testing.assert_close(y[0], x[0])  # brightness + 0, saturation and contrast x 1
    grey = x[1].mean(0) - 0.5
    torch.testing.assert_close(y[1], grey + 2 * (x[1] - 0.5 - grey))
    grey = x[2].mean(0, keepdim=True) + 0.5  # all colour gone, then half of the contrast
    torch.testing.assert_close(y[2], (grey.mean() + (grey - grey.mean()) / 2).expand(3, -1, -1))


def test_shifts_go_up_to_an_eighth_and_bring_zeros():
    x = 1 + pictures(1, 16).abs()
    line = torch.linspace(0, 1 - 1e-6, 30)
    u = torch.cartesian_prod(line, line)
    found = set()
    for y in augmentation.shift(x.expand(len(u), -1, -1, -1), u):
        inside = y[0] != 0
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        down = int(rows[0]) if rows[0] else int(rows[-1]) - 15
        right = int(columns[0]) if columns[0] else int(columns[-1]) - 15
        expected = torch.zeros_like(y)
        to = [slice(max(d, 0), 16 + min(d, 0)) for d in (down, right)]
        of = [slice(max(-d, 0), 16 + min(-d, 0)) for d in (down, right)]
        expected[:, to[0], to[1]] = x[0][:, of[0], of[1]]
        assert torch.equal(y, expected)
        found.add((down, right))
    assert found == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


@pytest.mark.parametrize("side", [16, 32])
def test_cutout_is_half_the_side_around_any_pixel(side):
    x = torch.ones(1000, 3, side, side)
    y = augmentation.cut_out(x, torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)))
    assert set(y.unique().tolist()) == {0, 1}
    rows, columns = ((y[:, 0] == 0).any(d).sum(1) for d in (2, 1))
    assert (rows * columns == (y[:, 0] == 0).sum((1, 2))).all()  # rectangles
    for sizes in (rows, columns):
        assert sizes.max() == side // 2 and sizes.min() == side // 4  # where the centre is at the border
    assert (y == 0).flatten(1).any(1).all()


def test_each_image_has_numbers_of_its_own():
    x = pictures(1).expand(8, -1, -1, -1)
    for y in (
        augmentation.diffaugment(x, torch.rand(8, DIFFAUG_NUMBERS), ALL_DIFFAUG),
        augmentation.ada(x, *numbers(8), strength(1.0), ALL_ADA),
    ):
        assert len({tuple(one.flatten().tolist()) for one in y}) == 8


@pytest.mark.parametrize("policies", ["", "color", "translation", "cutout", "color_cutout"])
def test_policies_are_those_that_are_named(policies):
    x, u = pictures(), torch.rand(4, DIFFAUG_NUMBERS, dtype=torch.float64)
    expected = x
    for name, function, part in (
        ("color", augmentation.jitter_colors, u[:, :3]),
        ("translation", augmentation.shift, u[:, 3:5]),
        ("cutout", augmentation.cut_out, u[:, 5:]),
    ):
        expected = function(expected, part) if name in policies else expected
    assert torch.equal(augmentation.diffaugment(x, u, policies), expected)


def test_ada_of_strength_0_is_the_identity_bit_by_bit():
    x = pictures().float()
    assert torch.equal(augmentation.ada(x, *numbers(), strength(0.0), ALL_ADA), x)


def test_ada_touches_as_many_images_as_its_strength_says():
    x = pictures(1).expand(2000, -1, -1, -1)
    u, e = numbers(2000)
    for name, chance in (("blit", 1 - (1 - 0.3 / 2) * (1 - 0.3 * 3 / 4) * (1 - 0.3 * 24 / 25)), ("color", None)):
        y = augmentation.ada(x, u, e, strength(0.3), name)
        share = (y != x).flatten(1).any(1).double().mean().item()
        chance = chance or 1 - 0.7**4 * (1 - 0.3 / 2)  # the mirroring of brightness is drawn for half of them
        assert share == pytest.approx(chance, abs=0.03)


def test_blit_moves_whole_pixels():
    """Flips, quarter turns and shifts, mirrored at the border: every pixel is one of the image, bit by bit."""
    x = pictures(64)
    u, e = numbers(64)
    y = augmentation.ada(x, u, e, strength(1.0), "blit")
    assert all(torch.isin(a, b).all() for a, b in zip(y.flatten(1), x.flatten(1), strict=True))
    only = torch.ones_like(u)  # no gate is open at strength 0.5 ...
    for i, value, expected in ((0, (1, 0.9), x.flip(3)), (2, (3, 0.99), None), (2, (3, 0.5), x.flip(2, 3))):
        chosen = only.clone()
        chosen[:, i], chosen[:, value[0]] = 0, value[1]  # ... but this one
        y = augmentation.ada(x, chosen, e, strength(0.5), "blit")
        assert expected is None or torch.equal(y, expected)
        assert (
            expected is not None
            or torch.equal(y, torch.rot90(x, 3, (2, 3)))
            or torch.equal(y, torch.rot90(x, 1, (2, 3)))
        )
    chosen = only.clone()
    chosen[:, 4], chosen[:, 5], chosen[:, 6] = 0, 0.5 + 1 / 4, 0.5  # columns: half of an eighth of 16, to the right
    y = augmentation.ada(x, chosen, e, strength(0.5), "blit")
    assert torch.equal(y[..., 1:], x[..., :-1]) and torch.equal(y[..., 0], x[..., 1])


def test_ada_colors_are_matrices_of_the_published_kind():
    """Hue and saturation keep the mean of the channels; contrast and brightness do not touch its place in the image."""
    x, (u, e) = pictures(64), numbers(64)
    grey = x.mean(1, keepdim=True)
    for gate in (18, 20):
        only = torch.ones_like(u)
        only[:, gate], only[:, 19] = 0, u[:, 19]
        y = augmentation.ada(x, only, e, strength(0.5), "color")
        torch.testing.assert_close(y.mean(1, keepdim=True), grey)
        lengths = (y - grey).square().sum(1).sqrt() / (x - grey).square().sum(1).sqrt()
        expected = torch.ones(64, dtype=torch.float64) if gate == 18 else torch.exp2(e[:, 6].double())
        torch.testing.assert_close(lengths, expected[:, None, None].expand_as(lengths))
    only = torch.ones_like(u)
    only[:, 14] = only[:, 15] = 0
    factor, offset = torch.exp2(0.5 * e[:, 5].double()), 0.2 * e[:, 4].double()
    y = augmentation.ada(x, only, e, strength(0.5), "color")
    torch.testing.assert_close(y, factor[:, None, None, None] * (x + offset[:, None, None, None]))


def test_consistency_flips_and_shifts():
    x = pictures(1).expand(400, -1, -1, -1)
    y = augmentation.flip_and_shift(x, torch.rand(400, 3, generator=torch.Generator().manual_seed(0)))
    known = {}
    padded = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")[0]
    for i in range(5):
        for j in range(5):
            window = padded[:, i : i + 16, j : j + 16]
            known[tuple(window.flatten().tolist())] = (i, j, 0)
            known[tuple(window.flip(2).flatten().tolist())] = (i, j, 1)
    assert {known[tuple(one.flatten().tolist())] for one in y} == set(known.values())


@pytest.mark.parametrize(
    "augment",
    [
        lambda x, u, e: augmentation.diffaugment(x, u[:, :7], ALL_DIFFAUG),
        lambda x, u, e: augmentation.ada(x, u, e, strength(0.8), ALL_ADA),
        lambda x, u, e: augmentation.flip_and_shift(x, u[:, :3]),
    ],
)
def test_gradients_are_those_of_finite_differences_twice(augment):
    u, e = numbers(2, seed=3)
    x = pictures(2, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, u, e), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, u, e), x, fast_mode=True)


def test_everything_stays_on_the_device():
    with FakeTensorMode():
        x, u, e = (torch.empty(4, *shape, device="cuda") for shape in ((3, 16, 16), (21,), (7,)))
        p = torch.zeros((), dtype=torch.float64, device="cuda")
        for y in (
            augmentation.diffaugment(x, u[:, :7], ALL_DIFFAUG),
            augmentation.ada(x, u, e, p, ALL_ADA),
            augmentation.flip_and_shift(x, u[:, :3]),
        ):
            assert y.device.type == "cuda" and y.shape == x.shape


@pytest.mark.parametrize(
    "options, line",
    [
        ({"diffaug": "color_blur"}, "--diffaug color_blur: must be of color, translation, cutout, each once"),
        ({"diffaug": "color_color"}, "--diffaug color_color: must be"),
        ({"diffaug": "color_"}, "--diffaug color_: must be"),
        ({"ada_kimg": 20.0}, "--ada_kimg goes with --ada_target"),
        ({"ada_target": 0.6, "ada_policy": ""}, "--ada_policy : must be of blit"),
        ({"ada_target": 0.6, "ada_policy": "cutout"}, "--ada_policy cutout: must be of blit"),
        ({"diffaug": "cutout", "ada_target": 0.6}, "--diffaug and --ada_target are two ways"),
        ({"ada_target": 1.0}, "--ada_target 1.0: must lie"),
        ({"ada_target": 0.6, "ada_kimg": 0.0}, "--ada_kimg 0.0: must be positive"),
    ],
)
def test_what_cannot_be_is_one_line(options, line):
    with pytest.raises(utils.UserError, match=line):
        AugmentationOptions(**options)
