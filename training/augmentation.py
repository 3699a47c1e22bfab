"""What D's images go through before it sees them, reals and fakes alike, so that few images do not suffice to know all.

Everything is differentiable, twice too: shifts and turns are index lookups, which `--deterministic` takes as well.
Images are float (N,3,R,R) in [-1,1]; random numbers come in as tensors of a row for each image, u in [0,1), e normal.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import utils
from utils import BELOW_1, POSITIVE, Check, Options, option

POLICIES = ("color", "translation", "cutout")  # of --diffaug, in the order in which they are applied
ADA_POLICIES = ("blit", "geometry", "color")
SHIFT, CUTOUT = 1 / 8, 1 / 2  # of the side
ADA_UPDATES = 4  # of D, from one change of ADA's strength to the next


def _of(policies, others=()):
    def holds(text):
        words = text.split("_")
        return text in others or (set(words) <= set(policies) and len(set(words)) == len(words))

    return Check(holds, f"be of {', '.join(policies)}, each once, joined by _")


def _policies(text: str) -> str:
    """argparse type: with either spelling of colour."""
    return text.replace("colour", "color")


@dataclass(frozen=True)
class AugmentationOptions(Options):
    """What is done to all images that D sees, and how strongly."""

    title = "augmentation of what D sees"

    diffaug: str = option(
        "none",
        "DiffAugment: color_translation_cutout, or some of these; published: CIFAR translation_cutout, "
        "ImageNet-128 translation",
        kind=_policies,
        check=_of(POLICIES, ["none"]),
    )
    ada_target: float = option(
        0.0, "ADA: the mean sign of D's logits of reals that its strength holds; published: 0.6; 0: off", check=BELOW_1
    )
    ada_kimg: float = option(500.0, "thousands of real images in which ADA's strength can rise by 1", check=POSITIVE)
    ada_policy: str = option(
        "blit_geometry_color", "what ADA does, or some of these", kind=_policies, check=_of(ADA_POLICIES)
    )

    def __post_init__(self):
        super().__post_init__()
        if self.diffaug != "none" and self.ada_target:
            raise utils.UserError("--diffaug and --ada_target are two ways to the same: give one of them")
        for name in ("ada_kimg", "ada_policy"):
            if not self.ada_target and getattr(self, name) != getattr(AugmentationOptions, name):
                raise utils.UserError(f"--{name} goes with --ada_target")

    @property
    def on(self) -> bool:
        return self.diffaug != "none" or self.ada_target > 0


# ---------------------------------------------------------------------------------------------------------------------
# DiffAugment (Zhao et al. 2020)

DIFFAUG_NUMBERS = 7  # uniform ones for an image


def diffaugment(x: Tensor, u: Tensor, policies: str) -> Tensor:
    """Some of POLICIES, joined by _; u (N,7)."""
    words = policies.split("_")
    u = u.to(x.dtype)
    if "color" in words:
        x = jitter_colors(x, u[:, :3])
    if "translation" in words:
        x = shift(x, u[:, 3:5])
    return cut_out(x, u[:, 5:]) if "cutout" in words else x


def jitter_colors(x: Tensor, u: Tensor) -> Tensor:
    """Brightness + U(-0.5,0.5), saturation x U(0,2), contrast x U(0.5,1.5), in this order; u (N,3)."""
    brightness, saturation, contrast = (u[:, i, None, None, None] for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (0.5 + contrast)


def shift(x: Tensor, u: Tensor) -> Tensor:
    """By up to 1/8 of the side, whole pixels in both directions, zeros coming in; u (N,2)."""
    side = x.shape[-1]
    most = _rounded(side * SHIFT)
    rows, columns = _places(side, whole(u, -most, most))
    inside = (_within(rows, side) & _within(columns, side))[:, None]
    return _look_up(x, rows.clamp(0, side - 1), columns.clamp(0, side - 1)) * inside


def cut_out(x: Tensor, u: Tensor) -> Tensor:
    """Zeros in a square of half the side, whose centre is anywhere in the image; u (N,2)."""
    side = x.shape[-1]
    size = _rounded(side * CUTOUT)
    rows, columns = _places(side, whole(u, 0, side - size % 2) - size // 2)
    return x * ~(_within(rows, size) & _within(columns, size))[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# ADA (Karras et al. 2020, appendix B)

ADA_UNIFORM, ADA_NORMAL = 21, 7  # numbers for an image


def ada(x: Tensor, u: Tensor, e: Tensor, p: Tensor, policies: str) -> Tensor:
    """Some of ADA_POLICIES, joined by _, each transformation with probability p (0-dim); u (N,21), e (N,7).

    The published pipeline oversamples by a wavelet filter where we interpolate bilinearly; beyond the border images are
    mirrored, as there. Images for which nothing is drawn stay as they are, bit by bit: all of them where p is 0.
    """
    words = policies.split("_")
    moves = (_blit(x.shape[-1], u, e, p) if "blit" in words else []) + (
        _geometry(x.shape[-1], u, e, p) if "geometry" in words else []
    )
    if moves:
        gates, matrices = zip(*moves, strict=True)
        y = _resample(x, _product(gates, matrices))
        x = torch.where(torch.stack(gates).any(0)[:, None, None, None], y, x)
    if "color" in words:
        gates, matrices = zip(*_color(u, e, p), strict=True)
        matrix = _product(gates[::-1], matrices[::-1]).to(x.dtype)[..., None, None]  # (N,4,4,1,1): the last one first
        y = (matrix[:, :3, :3] * x[:, None]).sum(2) + matrix[:, :3, 3]
        x = torch.where(torch.stack(gates).any(0)[:, None, None, None], y, x)
    return x


# Each gives (whether it is drawn (N,), matrix (N,3,3) or (N,4,4) in float64) of its transformations, in the published
# order. Those of places map a position of the result (column, row, 1), from the centre, to one nearer to the source.
def _blit(side, u, e, p):
    u = u.double()
    one, zero = torch.ones_like(u[:, 0]), torch.zeros_like(u[:, 0])
    return [
        (u[:, 0] < p, _scaling(1 - 2 * whole(u[:, 1], 0, 1).double(), one)),
        (u[:, 2] < p, _turn(whole(u[:, 3], 0, 3) * (math.pi / 2))),
        (u[:, 4] < p, _translation(*torch.round((2 * u[:, 5:7] - 1) * SHIFT * side).T, zero)),
    ]


def _geometry(side, u, e, p):
    u, e = u.double(), e.double()
    turning = 1 - (1 - p.double()).sqrt()  # before and after the stretching: one of them at least with probability p
    size, stretch = torch.exp2(0.2 * e[:, 0]), torch.exp2(0.2 * e[:, 1])
    return [
        (u[:, 7] < p, _scaling(1 / size, 1 / size)),
        (u[:, 8] < turning, _turn((2 * u[:, 9] - 1) * math.pi)),
        (u[:, 10] < p, _scaling(1 / stretch, stretch)),
        (u[:, 11] < turning, _turn((2 * u[:, 12] - 1) * math.pi)),
        (u[:, 13] < p, _translation(*(e[:, 2:4] * SHIFT * side).T, torch.zeros_like(size))),
    ]


def _color(u, e, p):
    u, e = u.double(), e.double()
    identity = torch.eye(4, dtype=u.dtype, device=u.device).expand(len(u), 4, 4)
    grey = torch.zeros_like(identity)
    grey[:, :3, :3] = 1 / 3  # projects on the axis of grey colours
    across = identity - grey - _corner(identity)  # and on the plane of colours without brightness
    brightness = identity.clone()
    brightness[:, :3, 3] = 0.2 * e[:, 4:5]
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=u.dtype, device=u.device) / math.sqrt(3)
    turn = torch.zeros_like(identity)
    turn[:, :3, :3] = cross  # a quarter turn about the axis of grey
    angle = ((2 * u[:, 19] - 1) * math.pi)[:, None, None]
    contrast, saturation = (torch.exp2(t)[:, None, None] for t in (0.5 * e[:, 5], e[:, 6]))
    mirrored = whole(u[:, 17], 0, 1).double()[:, None, None]
    return [
        (u[:, 14] < p, brightness),
        (u[:, 15] < p, contrast * (grey + across) + _corner(identity)),
        (u[:, 16] < p, identity - 2 * mirrored * grey),
        (u[:, 18] < p, grey + across * angle.cos() + turn * angle.sin() + _corner(identity)),
        (u[:, 20] < p, grey + across * saturation + _corner(identity)),
    ]


def _corner(identity):
    corner = torch.zeros_like(identity)
    corner[:, 3, 3] = 1
    return corner


def _product(gates, matrices):
    """The product (N,d,d), in this order, of the matrices whose gates (N,) are open."""
    result = identity = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype, device=matrices[0].device)
    for gate, matrix in zip(gates, matrices, strict=True):
        result = result @ torch.where(gate[:, None, None], matrix, identity)
    return result


def _scaling(columns, rows):
    return torch.diag_embed(torch.stack([columns, rows, torch.ones_like(rows)], 1))


def _turn(angle):
    """Of the image by `angle` (N,), anti-clockwise."""
    c, s, zero, one = angle.double().cos(), angle.double().sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], 1).unflatten(1, (3, 3)).double()


def _translation(columns, rows, zero):
    one = zero + 1
    return torch.stack([one, zero, -columns, zero, one, -rows, zero, zero, one], 1).unflatten(1, (3, 3))


def _resample(x, transform):
    """Each pixel of the result from where `transform` (N,3,3) puts it, between four pixels, mirrored at the border."""
    side = x.shape[-1]
    line = torch.arange(side, dtype=transform.dtype, device=x.device) - (side - 1) / 2
    grid = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones_like(line).expand(side, side)], -1)
    position = (grid.flatten(0, 1) @ transform.transpose(1, 2))[..., :2] + (side - 1) / 2  # (N,RR,2)
    position = torch.round(position * 1024) / 1024  # whole shifts and quarter turns take pixels as they are
    first = position.floor()
    columns, rows = first.long().unflatten(1, (side, side)).unbind(-1)  # (N,R,R)
    shares = (position - first).to(x.dtype).unflatten(1, (side, side))[:, None]  # (N,1,R,R,2)
    right, down = shares.unbind(-1)
    result = 0
    for i, of_rows in enumerate((1 - down, down)):
        for j, of_columns in enumerate((1 - right, right)):
            result = result + of_rows * of_columns * _look_up(x, _mirror(rows + i, side), _mirror(columns + j, side))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The images and themselves again, for consistency (Zhang et al. 2020): flipped, and shifted by whole pixels

CONSISTENCY_NUMBERS = 3


def flip_and_shift(x: Tensor, u: Tensor) -> Tensor:
    """Flipped with probability 1/2, then shifted by up to 1/8 of the side, mirrored at the border; u (N,3)."""
    side = x.shape[-1]
    rows, columns = _places(side, whole(u[:, 1:], -int(side * SHIFT), int(side * SHIFT)))
    columns = _mirror(columns, side)
    columns = torch.where(u[:, :1, None] < 0.5, side - 1 - columns, columns)
    return _look_up(x, _mirror(rows, side), columns)


# ---------------------------------------------------------------------------------------------------------------------


def whole(u: Tensor, low: int, high: int) -> Tensor:
    """int64 uniform in low, ..., high, from u in [0,1)."""
    return (low + (u.double() * (high - low + 1)).floor().long()).clamp(max=high)


def _rounded(x):
    return int(x + 0.5)


def _places(side, moved):
    """Rows (N,R,1) and columns (N,1,R) of all pixels less `moved` (N,2): how far each image goes down and right."""
    line = torch.arange(side, device=moved.device)
    return line[None, :, None] - moved[:, :1, None], line[None, None, :] - moved[:, 1:, None]


def _within(places, size):
    return (places >= 0) & (places < size)


def _mirror(places, side):
    """Places beyond the border as those mirrored at the pixels of the border."""
    places = places.abs() % (2 * (side - 1))
    return torch.minimum(places, 2 * (side - 1) - places)


def _look_up(x, rows, columns):
    """x (N,3,R,R) at rows (N,R,R) and columns (N,R,R), or what broadcasts to these."""
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x[images, :, rows, columns].permute(0, 3, 1, 2)
