"""Precision, recall, density and coverage of generated features against real ones.

The support of a set is estimated by one open ball around each of its points, reaching to the point's k-th nearest
neighbour in that set (itself excluded). Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, section 3;
density and coverage: Naeem et al. 2020, arXiv:2002.09797, equations 3 to 6.

Symbols: n real points, m fake points, d features, c and e points of two blocks, s the scale of a frame.
The counts are those of direct float64 arithmetic on the features as given (`direct_squared`), ties and duplicates
included. Fast products, as |a|^2 + |b|^2 - 2ab, only give bounds on it, one tile of the distance matrix at a time:
first of points rounded to int8, whose products are exact integers; then in float32 for the pairs that this leaves in
doubt; and wherever that does not settle a comparison, the differences themselves do. A tile with many pairs in doubt
(a collapsed set far from the centre, say) is bounded once more as a whole, in float32 or float64.
"""

import math

import torch

import utils
from metrics.distances import (
    DIRECT_BYTES,
    MEMORY_MB,
    bounds_at,
    direct_pairs,
    int8_serves,
    lower_bounds,
    make_block,
    make_blocks,
    make_frame,
    rough_blocks,
    upper_bounds,
)

SPARE = 3  # neighbours looked at beyond the k-th, so that near ties seldom need a second look
# A larger tile leaves the cache, and of a set's distances to itself computes more pairs twice; a smaller one is slower.
LARGEST_TILE = 1024
DOUBTS = 16  # pairs per row of a tile whose differences cost about as much as the tile in float64
NEAR = 64  # pairs per row of a tile whose products in float32 cost about as much as all of the tile


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
    """Rows of a block, and how many blocks in float32 and int8 may be kept, within the working memory."""
    size, budget = LARGEST_TILE, memory_mb * 2**20
    while (working := size * (64 * size + 56 * d) + 8 * DIRECT_BYTES) > budget // 2 and size > 16:
        size //= 2
    if working > budget:
        raise utils.UserError(f"PRDC of {d} features needs {math.ceil(working / 2**20)} MiB of memory, not {memory_mb}")
    return size, max(2, (budget * 3 // 4 - working) // (5 * size * d))  # the allocator holds a share of its own


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
    unsure = (~sure).nonzero().flatten()
    for rows in unsure.split(size) if len(unsure) else ():
        found[rows] = _settle(points, rows, found[rows], k, frame, size)
    return found


def _nearest_by_bound(points, frame, few, size, keep):
    """The few points nearest to each by lower bound: that, the upper bound and the index, each (n,few), ascending.

    The distances are symmetric: each pair of blocks is looked at once, along its rows and along its columns. The first
    level finds the pairs that may be among the nearest; only these are measured in float32.
    """
    n, starts = len(points), range(0, len(points), size)
    block = make_blocks(points, frame, torch.float32, size, keep)
    rough = rough_blocks(block, keep) if int8_serves(points) else block
    lower = torch.full((n, few), math.inf, device=points.device)
    index = torch.zeros((n, few), dtype=torch.int64, device=points.device)

    def keep_nearest(rows, bounds, others):
        lower[rows], index[rows] = merge_nearest(lower[rows], index[rows], bounds, others)

    numbers = torch.arange(n, device=points.device)
    for start in starts:
        rows = slice(start, start + size)
        bounds = lower_bounds(block(start), block(start))
        keep_nearest(rows, bounds.fill_diagonal_(math.inf), numbers[rows])  # nobody is their own neighbour
    for first in starts:
        for second in starts[first // size + 1 :]:
            rows, columns = slice(first, first + size), slice(second, second + size)
            bounds = lower_bounds(rough(first), rough(second))  # (c,e)
            near = (bounds < lower[rows, -1:]) | (bounds < lower[columns, -1])
            if near.count_nonzero() > NEAR * size:
                bounds = lower_bounds(block(first), block(second))
                keep_nearest(rows, bounds, numbers[columns])
                keep_nearest(columns, bounds.T.contiguous(), numbers[rows])
                continue
            r, c = near.nonzero().unbind(1)
            bounds, _ = bounds_at(block(first), block(second), r, c)
            keep_nearest(rows, *padded_rows(len(near), r, bounds, second + c))
            order = c.argsort()
            keep_nearest(columns, *padded_rows(near.shape[1], c[order], bounds[order], first + r[order]))
    error = torch.cat([block(start).error for start in starts])  # (n,)
    return lower, upper_bounds(lower, error[:, None], error[index]), index


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
        limits = smallest(k, limits, upper_bounds(lower, centred.error[:, None], others.error))
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
    kept = 1, keep - 1  # each real block meets all fake ones before the next one comes
    levels = [
        [
            make_blocks(points, frame, torch.float32, size, most)
            for points, most in zip((real, fake), kept, strict=True)
        ],
        [make_blocks(points, frame, torch.float64, size, 1) for points in (real, fake)],
    ]
    float32_blocks = levels[0]
    if int8_serves(real):
        levels.insert(0, [rough_blocks(block, most) for block, most in zip(float32_blocks, kept, strict=True)])
    around_fake = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    in_real, around_real = torch.zeros((2, len(real)), dtype=torch.int64, device=real.device)
    for i in range(0, len(real), size):
        for j in range(0, len(fake), size):
            rows, columns = slice(i, i + size), slice(j, j + size)
            for real_block, fake_block in levels:
                a, b = real_block(i), fake_block(j)
                lower = lower_bounds(a, b)
                upper = upper_bounds(lower, a.error[:, None], b.error)
                in_real_ball, doubt_real = compare(lower, upper, real_radii[rows, None], frame.scale)
                in_fake_ball, doubt_fake = compare(lower, upper, fake_radii[columns], frame.scale)
                doubtful = doubt_real | doubt_fake
                if doubtful.count_nonzero() <= DOUBTS * size:
                    break
            r, c = doubtful.nonzero().unbind(1)
            finer = [block(start) for block, start in zip(float32_blocks, (i, j), strict=True)]
            pair_radii = torch.stack([real_radii[i + r], fake_radii[j + c]])
            inside, left = compare(*bounds_at(*finer, r, c), pair_radii, frame.scale)
            left = left.any(0).nonzero().flatten()
            inside[:, left] = direct_pairs(real, fake, i + r[left], j + c[left]) < pair_radii[:, left]
            in_real_ball[r, c], in_fake_ball[r, c] = inside
            around_fake[columns] += in_real_ball.count_nonzero(0)
            in_real[rows] += in_real_ball.count_nonzero(1)
            around_real[rows] += in_fake_ball.count_nonzero(1)
    return around_fake, in_real, around_real


# ---------------------------------------------------------------------------------------------------------------------
# The tensor part: shapes do not depend on values, nothing leaves the device


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


def merge_nearest(lower, index, bounds, others):
    """The few lowest of the bounds (c,few) of points `index` and those (c,e) of the points `others`, (e,) or (c,e)."""
    few = lower.shape[1]
    nearest, where = bounds.topk(min(few, bounds.shape[1]), dim=1, largest=False)
    lower, chosen = torch.cat([lower, nearest], dim=1).topk(few, dim=1, largest=False)
    return lower, torch.cat([index, others.expand_as(bounds).gather(1, where)], dim=1).gather(1, chosen)


def padded_rows(num_rows, i, bounds, others):
    """Bounds (p,) on the distances of the rows i (p,), ascending, to the points `others` (p,), as a matrix each.

    Returns: (num_rows,e) both, e what the fullest row needs; elsewhere infinity and 0.
    """
    place = torch.arange(len(i), device=i.device) - torch.searchsorted(i, i)
    shape = num_rows, int(place.max()) + 1 if len(i) else 0
    matrix = torch.full(shape, math.inf, dtype=bounds.dtype, device=i.device)
    matrix[i, place] = bounds
    numbers = torch.zeros(shape, dtype=torch.int64, device=i.device)
    numbers[i, place] = others
    return matrix, numbers


def smallest(k, *values):
    """The k smallest of each row of the values (c,...) together: (c,k), ascending."""
    return torch.cat(values, dim=1).topk(k, dim=1, largest=False).values
