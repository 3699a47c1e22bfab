"""Precision, recall, density and coverage of generated features against real ones.

The support of a set is estimated by one open ball around each of its points, reaching to the point's k-th nearest
neighbour in that set (itself excluded). Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, section 3;
density and coverage: Naeem et al. 2020, arXiv:2002.09797, equations 3 to 6.

Symbols: n real points, m fake points, d features, c and e points of two blocks, p pairs.
The counts are those of direct float64 arithmetic on the features as given (`direct_squared`), ties and duplicates
included. Fast products in float32 bound it, one tile of the distance matrix at a time, which settles nearly every
comparison; the differences themselves settle the rest. A tile with many pairs in doubt (a collapsed set far from the
centre, say) is bounded once more as a whole, by products in float64.
"""

import math

import torch

import utils
from metrics import distances
from torch_utils.precision import values_alone

SPARE = 5  # neighbours looked at beyond the k-th, so that near ties seldom need a second look
# A larger tile leaves the cache, and of a set's distances to itself computes more pairs twice; a smaller one is slower.
LARGEST_TILE = 1024
DOUBTS = 16  # pairs per row of a tile whose differences cost about as much as the tile in float64


@values_alone()
def prdc(*, real, fake, k: int = 5, memory_mb: int = distances.MEMORY_MB) -> dict[str, float]:
    """Precision, recall, density and coverage; the sets are passed by name, so that they cannot be swapped.

    Args: real: (n,d) features; fake: (m,d) features on the same device, tensors or arrays; k: neighbours that set a
        ball's radius; memory_mb: working memory in MiB, beside the features themselves (less is a little slower).
    Returns: dict of floats: `precision` share of fakes inside some real ball, `recall` share of reals inside some fake
        ball, `density` mean number of real balls around a fake, over k (may pass 1), `coverage` share of real balls
        that hold a fake. Inside means strictly nearer than the radius, so a ball of radius 0 holds nothing.
    Raises: UserError for k points or fewer, features that are not finite, unequal widths, or too little memory_mb.
    """
    real, fake = as_features(real), as_features(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise utils.UserError(f"PRDC compares (N,d) features, not {tuple(real.shape)} with {tuple(fake.shape)}")
    if min(len(real), len(fake)) <= k:
        raise utils.UserError(
            f"PRDC with k = {k} needs at least {k + 1} images of each kind, "
            f"not {len(real)} real and {len(fake)} generated: raise their number or lower k (--prdc_k)"
        )
    radii_of = {"real_radii": radii(real, k, memory_mb), "fake_radii": radii(fake, k, memory_mb)}
    around_fake, in_real, around_real = ball_counts(real=real, fake=fake, **radii_of, memory_mb=memory_mb)
    return {
        "precision": (around_fake > 0).double().mean().item(),
        "recall": (around_real > 0).double().mean().item(),
        "density": around_fake.double().mean().item() / k,
        "coverage": (in_real > 0).double().mean().item(),
    }


def as_features(points) -> torch.Tensor:
    """A tensor of float32, or of float64 where float32 could not hold the values exactly; no copy if it is one."""
    points = torch.as_tensor(points)
    return points.double() if points.dtype == torch.float64 or not points.is_floating_point() else points.float()


def tiling(d: int, memory_mb: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks in float32 to keep. Raises: UserError where width d needs more memory."""
    size, budget = LARGEST_TILE, memory_mb * 2**20
    while (working := size * (160 * size + 56 * d) + 8 * distances.DIRECT_BYTES) > budget // 2 and size > 16:
        size //= 2
    if working > budget:
        raise utils.UserError(f"PRDC of {d} features needs {math.ceil(working / 2**20)} MiB of memory, not {memory_mb}")
    return size, max(2, (budget * 3 // 4 - working) // (4 * size * d))  # the allocator holds a share of its own


@values_alone()
def radii(points, k: int, memory_mb: int = distances.MEMORY_MB) -> torch.Tensor:
    """Squared distance (n,) float64 of each of the points (n,d) to its k-th nearest other one. Raises: as prdc."""
    points = as_features(points)
    n, (size, keep) = len(points), tiling(points.shape[1], memory_mb)
    frame = distances.make_frame(points)
    lower, upper, index = _nearest_by_bound(points, frame, min(k + SPARE, n - 1), size, keep)
    found, unsettled = decide_kth(lower, upper, k)
    i, c = unsettled.nonzero().unbind(1)
    found[i, c] = distances.direct_pairs(points, points, i, index[i, c])
    found = found.kthvalue(k, dim=1).values
    # Of all points that were not kept, none is nearer than the last bound.
    sure = (lower[:, -1] >= found * frame.scale**2) | (found == 0) | (index.shape[1] == n - 1)
    unsure = (~sure).nonzero().flatten()
    for rows in unsure.split(size) if len(unsure) else ():
        found[rows] = _settle(points, rows, found[rows], k, frame, size)
    return found


def _nearest_by_bound(points, frame, few, size, keep):
    """The few points nearest to each by lower bound: that, the upper bound and the index, each (n,few), ascending.

    The distances are symmetric: each pair of blocks is computed once, and used along its rows and along its columns.
    """
    n, starts = len(points), range(0, len(points), size)
    block = distances.make_blocks(points, frame, torch.float32, size, keep)
    lower = torch.full((n, few), math.inf, device=points.device)
    index = torch.zeros((n, few), dtype=torch.int64, device=points.device)

    def keep_nearest(start, bounds, others):
        """Merge bounds (c,e) of the points from `start` to those from `others`: of rows that come out lower only."""
        rows = (bounds.amin(1) < lower[start : start + size, -1]).nonzero().flatten()
        i = start + rows
        lower[i], index[i] = merge_nearest(lower[i], index[i], bounds[rows], others)

    for first in starts:
        for second in starts[first // size :]:
            bounds = distances.lower_bounds(block(first), block(second))
            if first == second:
                bounds.fill_diagonal_(math.inf)  # nobody is their own neighbour
            else:
                keep_nearest(second, bounds.T.contiguous(), first)
            keep_nearest(first, bounds, second)
    error = torch.cat([block(start).error for start in starts])  # (n,)
    return lower, distances.upper_bounds(lower, error[:, None], error[index]), index


def _settle(points, rows, found, k, frame, size):
    """Radii (c,) of the points numbered `rows` (c,), at most `found` (c,), by float64 bounds and then differences."""
    centred = distances.make_block(points[rows], frame, torch.float64)
    best = found[:, None].expand(-1, k)  # the k smallest squared distances known, or what they cannot exceed
    limits = best * frame.scale**2  # the k smallest upper bounds on scaled ones
    for start in range(0, len(points), size):
        others = distances.make_block(points[start : start + size], frame, torch.float64)
        lower = distances.lower_bounds(centred, others)  # (c,e)
        lower[rows[:, None] == torch.arange(start, start + lower.shape[1], device=rows.device)] = math.inf  # itself
        limits = torch.cat([limits, distances.upper_bounds(lower, centred.error[:, None], others.error)], dim=1)
        limits = limits.topk(k, largest=False).values
        i, j = (lower <= limits[:, -1:]).nonzero().unbind(1)
        squared = torch.full_like(lower, math.inf)
        squared[i, j] = distances.direct_pairs(points, points, rows[i], start + j)
        best = torch.cat([best, squared], dim=1).topk(k, largest=False).values
    return best[:, -1]


def ball_counts(*, real, fake, real_radii, fake_radii, memory_mb: int = distances.MEMORY_MB) -> tuple:
    """How often the points of one set lie inside the balls of the other.

    Args: real: (n,d); fake: (m,d); real_radii: (n,) and fake_radii: (m,), squared, float64.
    Returns: int64: real balls around each fake (m,), fakes in each real ball (n,), fake balls around each real (n,).
    """
    size, keep = tiling(real.shape[1], memory_mb)
    frame = distances.make_frame(real, fake)
    # Squared radii, scaled as bounds are; a ball of radius 0 holds nothing, whatever the bounds.
    real_reach, fake_reach = (torch.where(r > 0, r * frame.scale**2, -math.inf) for r in (real_radii, fake_radii))
    levels = [  # each real block meets all fake ones before the next one comes
        (distances.make_blocks(real, frame, dtype, size, 1), distances.make_blocks(fake, frame, dtype, size, kept))
        for dtype, kept in ((torch.float32, keep - 1), (torch.float64, 1))
    ]
    around_fake = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    in_real, around_real = torch.zeros((2, len(real)), dtype=torch.int64, device=real.device)
    for i in range(0, len(real), size):
        for j in range(0, len(fake), size):
            rows, columns = slice(i, i + size), slice(j, j + size)
            for real_block, fake_block in levels:
                a, b = real_block(i), fake_block(j)
                lower = distances.lower_bounds(a, b)
                r, c = may_be_inside(lower, real_reach[rows], fake_reach[columns]).nonzero().unbind(1)
                lower, reach = lower[r, c], torch.stack([real_reach[i + r], fake_reach[j + c]])  # (p,), (2,p)
                inside = distances.upper_bounds(lower, a.error[r], b.error[c]) < reach  # surely
                left = (inside ^ (lower < reach)).any(0).nonzero().flatten()
                if len(left) <= DOUBTS * size:
                    break
            x, y = i + r[left], j + c[left]
            inside[:, left] = distances.direct_pairs(real, fake, x, y) < torch.stack([real_radii[x], fake_radii[y]])
            around_fake[columns] += c[inside[0]].bincount(minlength=len(b.points))
            in_real[rows] += r[inside[0]].bincount(minlength=len(a.points))
            around_real[rows] += r[inside[1]].bincount(minlength=len(a.points))
    return around_fake, in_real, around_real


def may_be_inside(lower: torch.Tensor, real_reach: torch.Tensor, fake_reach: torch.Tensor) -> torch.Tensor:
    """Whether lower bounds (c,e) leave a pair possible in the ball of either, of scaled radii (c,) and (e,)."""
    upwards = torch.tensor(math.inf, dtype=lower.dtype, device=lower.device)  # the conversion may have rounded down
    real_reach, fake_reach = (reach.to(lower.dtype).nextafter(upwards) for reach in (real_reach, fake_reach))
    return lower < torch.maximum(real_reach[:, None], fake_reach)


def decide_kth(lower: torch.Tensor, upper: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of candidates with bounds (n,few): 0 if surely nearer than the k-th, inf if surely farther; whether neither."""
    nearer = upper < lower.kthvalue(k, dim=1, keepdim=True).values
    farther = lower > upper.kthvalue(k, dim=1, keepdim=True).values
    return torch.where(farther, math.inf, 0.0).double(), ~(nearer | farther)


def merge_nearest(lower: torch.Tensor, index: torch.Tensor, bounds: torch.Tensor, start: int):
    """The few lowest of the bounds (c,few) of the points `index` and those (c,e) of the points from `start` on."""
    few = lower.shape[1]
    nearest, where = bounds.topk(min(few, bounds.shape[1]), dim=1, largest=False)
    lower, chosen = torch.cat([lower, nearest], dim=1).topk(few, dim=1, largest=False)
    return lower, torch.cat([index, start + where], dim=1).gather(1, chosen)
