"""Squared distances between features: direct ones in float64, and rigorous bounds on these from fast products.

Symbols: n points, d features, c and e points of two blocks, p pairs, s the scale of a frame.
Points become Blocks in a Frame; two Blocks give a tile of lower and upper bounds, by |a|^2 + |b|^2 - 2ab. Tighter and
slower ones, in this order: int8 (exact sums of rounded points), float32, float64; then `direct_squared` itself.
"""

import functools
import math
import time
import warnings
from typing import NamedTuple

import torch

import utils
from torch_utils.precision import full_precision

MEMORY_MB = 1024  # working memory of PRDC, unless said otherwise
LARGEST = 1e150  # features whose squared distance float64 can hold
# Of the differences held at once: they stay in the cache, and so few (below 2^15) torch computes on one thread; waking
# others at each step costs far more than it saves where processors are shared.
DIRECT_BYTES = 2**18 - 1
DIRECT_PAIRS, FOLDED = 4096, 64  # pairs whose last terms, so many each, wait to be added up together
WIDEST_INT8 = 2**17  # features whose products in int8, of 127^2 at most, int32 can add up
SLACK = 2.0**-7  # the usual share of int8's rounding in a point; any other only makes bounds wider


def int8_serves(points):
    """Whether tiles of these points (n,d) are first bounded in int8."""
    return points.shape[1] <= WIDEST_INT8 and int8_pays(points.device.type)


@functools.cache
def int8_pays(device_type):
    """Whether int8 products are exact here, and faster than those of float32: tried once.

    With instructions for it they are five times as fast, without they are many times slower: the best of many tries
    tells, also on a busy machine.
    """
    if device_type != "cpu" or not hasattr(torch, "_int_mm") or not int8_is_exact():
        return False
    points = torch.ones(256, 1024, dtype=torch.int8)
    pairs = ((torch._int_mm, points), (torch.mm, points.float()))
    tries = [[_seconds(multiply, operand) for multiply, operand in pairs] for _ in range(20)]
    int8, float32 = (min(times) for times in zip(*tries, strict=True))
    return int8 < float32


def _seconds(multiply, points):
    start = time.perf_counter()
    multiply(points, points.T)
    return time.perf_counter() - start


def int8_is_exact():
    """Whether torch adds up products of int8 exactly on this processor.

    One without dot products of int8 (VNNI) may saturate at 16 bits on the way, as these extreme values would.
    """
    points = torch.full((256, 1024), 127, dtype=torch.int8)
    products = ((sign, torch._int_mm(points, sign * points.T)) for sign in (1, -1))
    return all((product == sign * 127**2 * 1024).all().item() for sign, product in products)


def direct_pairs(a, b, i, j):
    """Squared distances (p,) float64 of the points a[i] to b[j], i and j int64 (p,), a few pairs at a time."""
    groups = zip(i.split(DIRECT_PAIRS), j.split(DIRECT_PAIRS), strict=True)
    return torch.cat([_direct_group(a, b, i_group, j_group) for i_group, j_group in groups])


def _direct_group(a, b, i, j):
    few = max(1, DIRECT_BYTES // (8 * a.shape[1]))
    parts = []
    for i_part, j_part in zip(i.split(few), j.split(few), strict=True):
        terms = squared_differences(a.index_select(0, i_part), b.index_select(0, j_part))
        parts.append(folded(terms, FOLDED))  # the last steps are worth their while for many pairs only
    return folded(torch.cat(parts), 1)[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The tensor part: shapes do not depend on values, nothing leaves the device


class Frame(NamedTuple):
    """Where distances are measured: points become scale * (point - centre), which leaves their order."""

    centre: torch.Tensor  # (d,), the features' own type; any would do, one in their midst keeps the norms small
    scale: float  # a power of 2, hence exact; no scaled feature passes 2


class Block(NamedTuple):
    """Points in a frame, c of them, and what bounds on their distances to others are made of."""

    points: torch.Tensor  # (c,d)
    lower: torch.Tensor  # (c,) squared norms less the error
    error: torch.Tensor  # (c,) this point's share of the error of a squared distance
    step: torch.Tensor | None = None  # (c,) of int8 points: what they are multiples of


def make_frame(*sets):
    """The frame of sets of features (n,d), centred amid the first. Raises: UserError where they are not finite."""
    ends = [end for points in sets for end in points.aminmax()]
    reach = max(abs(end.item()) for end in ends) if all(end.isfinite().item() for end in ends) else math.inf
    if reach > LARGEST:
        raise utils.UserError(f"PRDC needs finite features up to {LARGEST:g}: the images or the weights are broken")
    limit = 126 if all(points.dtype == torch.float32 for points in sets) else 500  # so that scale**2 is finite
    exponent = min(max(-math.frexp(reach)[1], -limit), limit)
    return Frame(sets[0][:: 1 + len(sets[0]) // 512].median(dim=0).values, 2.0**exponent)


def make_blocks(points, frame, dtype, size, keep):
    """A function from a start to the Block of `size` points from there, which remembers the `keep` newest."""
    return functools.lru_cache(keep)(lambda start: make_block(points[start : start + size], frame, dtype))


def rough_blocks(block, keep):
    """A function like that of make_blocks, to the int8 Blocks that belong to its float32 Blocks."""
    return functools.lru_cache(keep)(lambda start: rounded_to_int8(block(start)))


def make_block(points, frame, dtype):
    """The Block of points (c,d), computed in `dtype`.

    The bound. Let u be half of eps of dtype, A = scale * (a - centre) exactly, A' as rounded here, the same for b, and
    N = |A'|^2 + |B'|^2. Products and sums of length d, in any order, err by at most g = d u / (1 - d u) times the sum
    of the terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
      |A - A'| <= 1.1 u |A'| moves |A - B|^2 by at most 5 u N;
      the norms err by g N, the product by g 2 |A'||B'| <= g N, their sum and the subtraction of the errors by 8 u N;
      direct_squared, with its 2 + log2(d) roundings, errs by less than 2 (32 + 3) u N even in float64.
    Together less than 2 (d + 48) u N (1 + 2 d u) + underflow: each of d terms, coordinates up to 2 and factors up to 4,
    may lose the smallest normal number of dtype, and those of the direct form that of float64 before scaling.
    """
    d, limits = points.shape[1], torch.finfo(dtype)
    if points.dtype == torch.float32 and dtype == torch.float64:
        points = points.double()
    points = (points * frame.scale - (frame.centre * frame.scale).to(points.dtype)).to(dtype)
    norms = points.square().sum(1)
    unit = (d + 48) * limits.eps
    underflow = d * (64 * limits.tiny + 8 * torch.finfo(torch.float64).tiny * frame.scale**2)
    error = norms * (unit * (1 + 2 * unit)) + underflow
    return Block(points, norms - error, error)


def rounded_to_int8(block):
    """The Block of a float32 Block's points, each rounded to multiples q of a step of its own.

    The bound, on top of make_block's. With Q = step * q, R = |A' - Q| and any positive t, the products differ by
      |A'B' - QaQb| <= Ra|B'| + |Qa|Rb <= (Ra^2 / t + t |Qa|^2) / 2 + (Rb^2 / t + t |B'|^2) / 2 (Cauchy-Schwarz),
    and the squared distances by twice that. Integers add up exactly, so that the product's own g N is not needed:
    it covers the conversion and scaling of their sum. R is measured, not assumed. What measuring it misses is below
    R^2 (2^-10 + 2 g) + 2^12 u^2 N, the latter far below 1 u N after division by t.
    """
    points, limits = block.points, torch.finfo(torch.float32)
    step = points.abs().amax(1).clamp(min=2**14 * limits.tiny) / 127
    digits = (points / step[:, None]).round_().clamp_(-127, 127)
    near = digits * step[:, None]
    squared_near = near.square().sum(1)
    rest = torch.sub(points, near, out=near).square_().sum(1)
    norms = block.lower + block.error
    error = (rest / SLACK + SLACK * torch.maximum(norms, squared_near)) * (1 + 2**-8 + 4 * points.shape[1] * limits.eps)
    error += block.error + 2**10 * points.shape[1] * limits.tiny
    return Block(digits.to(torch.int8), norms - error, error, step)


def lower_bounds(a, b):
    """Lower bounds (c,e) on the scaled squared distances between the points of two Blocks, float64 or float32."""
    with full_precision(a.points.device.type):
        if a.step is None:
            product = a.points @ b.points.T
            lower = torch.add(b.lower, product, alpha=-2, out=product)
        else:
            product = torch._int_mm(a.points, b.points.T) * b.step
            lower = torch.addcmul(b.lower, product, a.step[:, None], value=-2, out=product)
    return lower.add_(a.lower[:, None])


def upper_bounds(lower, row_error, column_error):
    """Upper bounds that belong to lower bounds, from the errors of the two points, shaped to go with them."""
    return (lower + 2 * column_error).add_(2 * row_error)


def bounds_at(a, b, i, j):
    """Lower and upper bounds (p,) for the points i of one Block and j of another, int64 (p,), i ascending."""
    starts = torch.searchsorted(i, torch.arange(len(a.points) + 1, device=i.device))
    with full_precision(i.device.type), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        values, shape = a.points.new_zeros(len(i)), (len(a.points), len(b.points))
        wanted = torch.sparse_csr_tensor(starts, j, values, shape, check_invariants=False)
        product = torch.sparse.sampled_addmm(wanted, a.points, b.points.T).values()
    lower = torch.add(b.lower[j], product, alpha=-2).add_(a.lower[i])
    return lower, upper_bounds(lower, a.error[i], b.error[j])


def direct_squared(a, b):
    """Squared distances in float64 from differences: a, b (..., d), broadcast, to (...).

    Halves are folded onto each other: the order of the additions, and with it a tie, depends on d alone, never on
    the device or on how many pairs are summed together.
    """
    return folded(squared_differences(a, b), 1)[..., 0]


def squared_differences(a, b):
    """(a - b)^2 in float64: a, b (..., d) of float32 or float64, broadcast."""
    terms = a.double() - b
    terms *= terms
    return terms


def folded(terms, width):
    """Halves of the terms (..., d), which are overwritten, added onto each other until at most `width` are left."""
    while (length := terms.shape[-1]) > width:
        half = (length + 1) // 2
        terms[..., : length - half] += terms[..., half:]
        terms = terms[..., :half]
    return terms
