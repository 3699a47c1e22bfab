"""Squared distances between features: direct ones in float64, and rigorous bounds on these from matrix products.

Symbols: n points, d features, c and e points of two blocks, p pairs, s the scale of a frame.
Points become Blocks in a Frame; two Blocks give a tile of bounds by |a|^2 + |b|^2 - 2ab, which is fast, but has few
correct digits where a distance is small beside the norms. `direct_squared` is what the bounds are bounds on.
From make_block on, shapes do not depend on values, and nothing leaves the device.
"""

import functools
import math
from typing import NamedTuple

import torch

import utils
from torch_utils.precision import full_precision

MEMORY_MB = 1024  # working memory of PRDC, unless said otherwise
LARGEST = 1e150  # features whose squared distance float64 can hold
DIRECT_BYTES = 2**18 - 1  # of differences at once: so few (below 2^15) torch computes without waking other threads


class Frame(NamedTuple):
    """Where distances are measured: points become scale * (point - centre), which leaves their order."""

    centre: torch.Tensor  # (d,), of the widest type among the features; in their midst norms, hence errors, are small
    scale: float  # a power of 2, hence exact; no scaled feature passes 2


class Block(NamedTuple):
    """Points in a frame, c of them, and what bounds on their distances to others are made of."""

    points: torch.Tensor  # (c,d)
    lower: torch.Tensor  # (c,) squared norms less the error
    error: torch.Tensor  # (c,) this point's share of the error of a squared distance


def make_frame(*sets: torch.Tensor) -> Frame:
    """The frame of sets of features (n,d), centred amid the first. Raises: UserError where they are not finite."""
    reach = torch.stack([end.double().abs() for points in sets for end in points.aminmax()]).max().item()
    if not reach <= LARGEST:
        raise utils.UserError(f"PRDC needs finite features up to {LARGEST:g}: the images or the weights are broken")
    dtype = functools.reduce(torch.promote_types, (points.dtype for points in sets))
    limit = 126 if dtype == torch.float32 else 500  # so that neither scale nor scale**2 overflows
    exponent = min(max(-math.frexp(reach)[1], -limit), limit)
    return Frame(sets[0][:: 1 + len(sets[0]) // 128].median(dim=0).values.to(dtype), 2.0**exponent)


def make_blocks(points: torch.Tensor, frame: Frame, dtype: torch.dtype, size: int, keep: int):
    """A function from a start to the Block of `size` points from there, which remembers the `keep` newest."""
    return functools.lru_cache(keep)(lambda start: make_block(points[start : start + size], frame, dtype))


def direct_pairs(a: torch.Tensor, b: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Squared distances (p,) float64 of the points a[i] to b[j], i and j int64 (p,), some pairs at a time."""
    some = max(1, DIRECT_BYTES // (8 * a.shape[1]))  # index_select wakes no thread either, unlike a[x]
    parts = zip(i.split(some), j.split(some), strict=True)
    return torch.cat([direct_squared(a.index_select(0, x), b.index_select(0, y)) for x, y in parts])


def make_block(points: torch.Tensor, frame: Frame, dtype: torch.dtype) -> Block:
    """The Block of points (c,d), computed in `dtype`, float32 or float64.

    The bound. Let u be half of eps of dtype and v that of float64, A = scale * (a - centre) exactly, A' as rounded
    here, the same for b, and N = |A'|^2 + |B'|^2. Products and sums of length d, in any order, err by at most
    g = d u / (1 - d u) times the sum of the terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 3.1). So the bounds miss direct_squared, in multiples of N and to first order, by at most
      d u      of the product, as 2 |A'||B'| <= N;
      d v      of the norms, which are summed in float64;
      5 u      of the coordinates: |A - A'| <= 1.1 u |A'|, and |A' - B'| <= |A'| + |B'|;
      11 u     of the norms' squares and conversion to dtype, and of four additions, whose results stay below 2 N;
      70 v     of direct_squared, whose 3 + log2(d) roundings, 35 at most, each move a result below 2 N.
    Together less than (d + 96) u + d v; the factor below exceeds the higher orders where d u < 1/4.
    Underflow comes on top: each of d terms, coordinates up to 2 and factors up to 4, may lose the smallest normal
    number of dtype, and those of the direct form that of float64 before scaling.
    """
    d, limits, limits64 = points.shape[1], torch.finfo(dtype), torch.finfo(torch.float64)
    wide = torch.promote_types(frame.centre.dtype, dtype)
    points = points.to(wide) * frame.scale
    points = points.sub_(frame.centre.to(wide) * frame.scale).to(dtype)
    norms = points.square().sum(1, dtype=torch.float64)
    unit = (d + 96) * limits.eps / 2 + d * limits64.eps / 2
    underflow = d * (64 * limits.tiny + 8 * limits64.tiny * frame.scale**2)
    error = norms * (unit * (1 + 2 * unit)) + underflow
    return Block(points, (norms - error).to(dtype), error.to(dtype))


def lower_bounds(a: Block, b: Block) -> torch.Tensor:
    """Lower bounds (c,e) on the scaled squared distances between the points of two Blocks, in their dtype."""
    with full_precision(a.points.device.type):
        product = a.points @ b.points.T
    return torch.add(b.lower, product, alpha=-2, out=product).add_(a.lower[:, None])


def upper_bounds(lower: torch.Tensor, row_error: torch.Tensor, column_error: torch.Tensor) -> torch.Tensor:
    """Upper bounds that belong to lower bounds, from the errors of the two points, shaped to go with them."""
    return (lower + 2 * column_error).add_(2 * row_error)


def direct_squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances in float64 from differences: a, b (..., d) of float32 or float64, broadcast, to (...).

    Halves are folded onto each other, so that the order of the additions, and with it a tie, depends on d alone.
    """
    terms = (a.double() - b).square_()
    while (length := terms.shape[-1]) > 1:
        half = (length + 1) // 2
        terms[..., : length - half] += terms[..., half:]
        terms = terms[..., :half]
    return terms[..., 0]
