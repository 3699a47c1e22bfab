"""Precision, recall, density and coverage of generated features against real ones.

The support of a set is estimated by one open ball around each of its points, reaching to the point's k-th nearest
neighbour in that set (itself excluded). Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, section 3;
density and coverage: Naeem et al. 2020, arXiv:2002.09797, equations 3 to 6.

Symbols: n real points, m fake points, d features, c and e points of two blocks, s the scale of a frame.
The counts are those of direct float64 arithmetic on the features as given (`direct_squared`), ties and duplicates
included. The fast product |a|^2 + |b|^2 - 2ab in float32 only gives bounds on it, one tile of the distance matrix at a
time; wherever they do not settle a comparison, the differences themselves do. A tile with many such pairs (a collapsed
set far from the centre, say) is bounded once more in float64.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

import utils
from feature_networks import full_precision

MEMORY_MB = 1024
SPARE = 3  # neighbours looked at beyond the k-th, so that near ties seldom need a second look
LARGEST = 1e150  # features whose squared distance float64 can hold
# A larger tile leaves the cache, and of a set's distances to itself computes more pairs twice; a smaller one is slower.
LARGEST_TILE = 1024
DIRECT_BYTES = 2**19  # of the differences held at once: they should stay in the cache
DOUBTS = 16  # pairs per row of a tile whose differences cost about as much as the tile in float64


def prdc(*, real, fake, k=5, memory_mb=MEMORY_MB):
    """Precision, recall, density and coverage; the sets are passed by name, so that they cannot be swapped.

    Args: real: (n,d) features; fake: (m,d) features on the same device, tensors or arrays; k: neighbours that set a
        ball's radius; memory_mb: working memory in MiB, beside the features themselves (less is a little slower).
    Returns: dict of floats: `precision` share of fakes inside some real ball, `recall` share of reals inside some fake
        ball, `density` mean number of real balls around a fake, over k (may pass 1), `coverage` share of real balls
        that hold a fake. Inside means strictly nearer than the radius, so a ball of radius 0 holds nothing.
    Raises: UserError where a set has fewer than k + 1 points or features that are not finite, where the widths differ,
        or where memory_mb is too little.
    """
    real, fake = as_features(real), as_features(fake)
    _check(real, fake, k)
    radii_of = {"real_radii": radii(real, k, memory_mb), "fake_radii": radii(fake, k, memory_mb)}
    around_fake, in_real, around_real = ball_counts(real=real, fake=fake, **radii_of, memory_mb=memory_mb)
    return {
        "precision": (around_fake > 0).double().mean().item(),
        "recall": (around_real > 0).double().mean().item(),
        "density": around_fake.double().mean().item() / k,
        "coverage": (in_real > 0).double().mean().item(),
    }


def as_features(points):
    """A tensor of float32, or of float64 where float32 could not hold the values exactly; no copy if it is one."""
    points = torch.as_tensor(points)
    if points.dtype in (torch.float32, torch.float64):
        return points
    return points.float() if points.is_floating_point() else points.double()


def _check(real, fake, k):
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise utils.UserError(f"PRDC compares (N,d) features, not {tuple(real.shape)} with {tuple(fake.shape)}")
    if min(len(real), len(fake)) <= k:
        raise utils.UserError(
            f"PRDC with k = {k} needs at least {k + 1} images of each kind, "
            f"not {len(real)} real and {len(fake)} generated: raise their number or lower k (--prdc_k)"
        )


def tiling(d, memory_mb):
    """Rows of a block, and how many float32 blocks may be kept, within the working memory."""
    size, budget = LARGEST_TILE, memory_mb * 2**20
    while (working := size * (64 * size + 48 * d) + 8 * DIRECT_BYTES) > budget // 2 and size > 16:
        size //= 2
    if working > budget:
        raise utils.UserError(f"PRDC of {d} features needs {math.ceil(working / 2**20)} MiB of memory, not {memory_mb}")
    return size, max(2, (budget - working) // (4 * size * d))


def radii(points, k, memory_mb=MEMORY_MB):
    """Squared distance (n,) float64 of each of the points (n,d) to its k-th nearest neighbour among the others.

    Raises: UserError where features are not finite.
    """
    points = as_features(points)
    n, (size, keep) = len(points), tiling(points.shape[1], memory_mb)
    frame = make_frame(points)
    lower, upper, index = _nearest_by_bound(points, frame, min(k + SPARE, n - 1), size, keep)
    found, unsettled = decide_kth(lower, upper, k)
    i, c = unsettled.nonzero().unbind(1)
    found[i, c] = direct_pairs(points, points, i, index[i, c])
    found = found.kthvalue(k, dim=1).values
    # Of all points that were not kept, none is nearer than the last bound.
    sure = (lower[:, -1].double() >= found * frame.scale**2) | (found == 0) | (index.shape[1] == n - 1)
    for rows in (~sure).nonzero().flatten().split(size):
        found[rows] = _settle(points, rows, found[rows], k, frame, size)
    return found


def _nearest_by_bound(points, frame, few, size, keep):
    """The few points nearest to each by lower bound: that, the upper bound and the index, each (n,few), ascending.

    The distances are symmetric: each pair of blocks is looked at once, along its rows and along its columns.
    """
    n, starts = len(points), range(0, len(points), size)
    block = make_blocks(points, frame, torch.float32, size, keep)
    lower = torch.full((n, few), math.inf, device=points.device)
    index = torch.zeros((n, few), dtype=torch.int64, device=points.device)

    def keep_nearest(start, bounds, other):
        rows = slice(start, start + len(bounds))
        lower[rows], index[rows] = merge_nearest(lower[rows], index[rows], bounds, other)

    for i, first in enumerate(starts):
        for second in starts[i:]:
            bounds = lower_bounds(block(first), block(second))  # (c,e)
            if first == second:
                keep_nearest(first, bounds.fill_diagonal_(math.inf), first)  # nobody is their own neighbour
            else:
                keep_nearest(first, bounds, second)
                keep_nearest(second, bounds.T.contiguous(), first)
    error = torch.cat([block(start).error for start in starts])  # (n,)
    return lower, upper_bounds(lower, error, error[index]), index


def _settle(points, rows, found, k, frame, size):
    """Radii (c,) of the points numbered rows (c,), never above `found` (c,), from the differences to all that may be
    nearer than that."""
    block = make_blocks(points, frame, torch.float64, size, keep=1)
    centred = make_block(points[rows], frame, torch.float64)
    best = found[:, None].expand(-1, k)  # squared distances, each as large as that of some other point
    limits = best * frame.scale**2  # scaled upper bounds of those
    for start in range(0, len(points), size):
        others = block(start)
        lower = lower_bounds(centred, others)  # (c,e)
        itself = rows[:, None] == torch.arange(start, start + lower.shape[1], device=rows.device)
        lower.masked_fill_(itself, math.inf)
        limits = smallest(k, limits, upper_bounds(lower, centred.error, others.error))
        i, j = (lower <= limits[:, -1:]).nonzero().unbind(1)
        squared = torch.full_like(lower, math.inf)
        squared[i, j] = direct_pairs(points, points, rows[i], start + j)
        best = smallest(k, best, squared)
    return best[:, -1]


def ball_counts(*, real, fake, real_radii, fake_radii, memory_mb=MEMORY_MB):
    """How often the points of one set lie inside the balls of the other.

    Args: real: (n,d); fake: (m,d); real_radii: (n,) and fake_radii: (m,), squared, float64.
    Returns: int64 counts: real balls around each fake (m,), fakes in each real ball (n,), fake balls around each
        real (n,).
    """
    size, keep = tiling(real.shape[1], memory_mb)
    frame = make_frame(real, fake)
    blocks = [  # the second pair for tiles that float32 leaves in doubt
        (make_blocks(real, frame, dtype, size, kept), make_blocks(fake, frame, dtype, size, kept))
        for dtype, kept in ((torch.float32, max(1, keep // 2)), (torch.float64, 1))
    ]
    around_fake = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    in_real, around_real = torch.zeros((2, len(real)), dtype=torch.int64, device=real.device)
    for i in range(0, len(real), size):
        for j in range(0, len(fake), size):
            rows, columns = slice(i, i + size), slice(j, j + size)
            tile_radii = real_radii[rows, None], fake_radii[None, columns]
            for real_block, fake_block in blocks:
                a, b = real_block(i), fake_block(j)
                lower = lower_bounds(a, b)
                upper = upper_bounds(lower, a.error, b.error)
                masks = [compare(lower, upper, radius, frame.scale) for radius in tile_radii]
                if sum(doubtful.count_nonzero() for _, doubtful in masks) <= DOUBTS * size:
                    break
            for (inside, doubtful), radius in zip(masks, tile_radii, strict=True):
                r, c = doubtful.nonzero().unbind(1)
                inside[r, c] = direct_pairs(real, fake, i + r, j + c) < radius.expand_as(inside)[r, c]
            (in_real_ball, _), (in_fake_ball, _) = masks
            around_fake[columns] += count(in_real_ball, 0)
            in_real[rows] += count(in_real_ball, 1)
            around_real[rows] += count(in_fake_ball, 1)
    return around_fake, in_real, around_real


def direct_pairs(a, b, i, j):
    """Squared distances (p,) float64 of the points a[i] to b[j], i and j int64 (p,), a few pairs at a time."""
    few = max(1, DIRECT_BYTES // (8 * a.shape[1]))
    parts = [direct_squared(a[i], b[j]) for i, j in zip(i.split(few), j.split(few), strict=True)]
    return torch.cat(parts)


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


def lower_bounds(a, b):
    """Lower bounds (c,e) on the scaled squared distances between the points of two Blocks, in their dtype."""
    with full_precision(a.points.device.type):
        product = a.points @ b.points.T
    return torch.add(b.lower, product, alpha=-2, out=product).add_(a.lower[:, None])


def upper_bounds(lower, row_error, column_error):
    """Upper bounds (c,e) that belong to lower bounds, from the errors (c,) and (e,) or (c,e) of the two points."""
    return (lower + 2 * column_error).add_(2 * row_error[:, None])


def compare(lower, upper, radius, scale):
    """Pairs (c,e) surely inside the ball of squared radius (c,1) or (1,e), and pairs that the bounds leave in doubt."""
    scaled = radius * scale**2
    inside = upper < next_down(scaled, upper.dtype)
    possible = lower < torch.where(radius > 0, next_up(scaled, lower.dtype), -math.inf)
    return inside, possible ^ inside


def next_down(values, dtype):
    """The values in dtype, none rounded up."""
    return values.to(dtype).nextafter(torch.tensor(-math.inf, dtype=dtype, device=values.device))


def next_up(values, dtype):
    """The values in dtype, none rounded down."""
    return -next_down(-values, dtype)


def decide_kth(lower, upper, k):
    """Which candidates could be the k-th nearest.

    Args: lower, upper: bounds (n,few) on each candidate's distance.
    Returns: float64 (n,few), 0 for those surely nearer than the k-th and infinity for those surely farther; and bool
        (n,few): the others.
    """
    nearer = upper < lower.kthvalue(k, dim=1, keepdim=True).values
    farther = lower > upper.kthvalue(k, dim=1, keepdim=True).values
    return torch.where(farther, math.inf, 0.0).double(), ~(nearer | farther)


def merge_nearest(lower, index, bounds, start):
    """The few lowest of the bounds (c,few) of points `index` and of those (c,e) of the points numbered from `start`."""
    few = lower.shape[1]
    nearest, where = bounds.topk(min(few, bounds.shape[1]), dim=1, largest=False)
    lower, chosen = torch.cat([lower, nearest], dim=1).topk(few, dim=1, largest=False)
    return lower, torch.cat([index, where + start], dim=1).gather(1, chosen)


def smallest(k, *values):
    """The k smallest of each row of the values (c,...) together: (c,k), ascending."""
    return torch.cat(values, dim=1).topk(k, dim=1, largest=False).values


def count(mask, dim):
    """How many are true along a dimension: int64. Sums of up to 2^24 ones are exact in float32, and far faster."""
    return mask.float().sum(dim).long()


def direct_squared(a, b):
    """Squared distances in float64 from differences: a, b (..., d), broadcast, to (...).

    Halves are folded onto each other: the order of the additions, and with it a tie, depends on d alone, never on
    the device or on how many pairs are summed together.
    """
    terms = (a.double() - b.double()).square()
    while (width := terms.shape[-1]) > 1:
        if width % 2:
            terms = F.pad(terms, (0, 1))
        half = (width + 1) // 2
        terms = terms[..., :half] + terms[..., half:]
    return terms[..., 0]
