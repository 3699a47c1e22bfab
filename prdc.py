"""Precision, recall, density and coverage of generated features against real ones.

The support of a set is estimated by one open ball around each of its points, reaching to the point's k-th nearest
neighbour in that set (itself excluded). Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, section 3;
density and coverage: Naeem et al. 2020, arXiv:2002.09797, equations 3 to 6.

Symbols: n real points, m fake points, d features, c points of a chunk.
Squared distances come from the fast product |a|^2 + |b|^2 - 2ab in float64. Wherever its rounding error could turn a
comparison, the comparison is made again from the differences themselves: the counts are those of direct float64
arithmetic, ties and duplicates included.
"""

import math

import torch
from torch.nn import functional as F

import utils

SPARE = 3  # neighbours looked at beyond the k-th, so that near ties seldom need a second look
PAIRS = 2048  # pairs whose differences are held at once


def prdc(*, real, fake, k=5, memory_mb=1024):
    """Precision, recall, density and coverage; the sets are passed by name, so that they cannot be swapped.

    Args: real: (n,d) features; fake: (m,d) features on the same device; k: neighbours that set a ball's radius;
        memory_mb: MiB for parts of the distance matrix.
    Returns: dict of floats: `precision` share of fakes inside some real ball, `recall` share of reals inside some fake
        ball, `density` mean number of real balls around a fake, over k (may pass 1), `coverage` share of real balls
        that hold a fake. Inside means strictly nearer than the radius, so a ball of radius 0 holds nothing.
    Raises: UserError where a set has fewer than k + 1 points or the widths differ.
    """
    real, fake = (torch.as_tensor(points, dtype=torch.float64) for points in (real, fake))
    _check(real, fake, k)
    chunk = max(1, memory_mb * 2**20 // (3 * 8 * max(len(real), len(fake))))
    around_fake, in_real, around_real = ball_counts(
        real=real, fake=fake, real_radii=radii(real, k, chunk), fake_radii=radii(fake, k, chunk), chunk=chunk
    )
    return {
        "precision": (around_fake > 0).double().mean().item(),
        "recall": (around_real > 0).double().mean().item(),
        "density": around_fake.double().mean().item() / k,
        "coverage": (in_real > 0).double().mean().item(),
    }


def _check(real, fake, k):
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise utils.UserError(f"PRDC compares (N,d) features, not {tuple(real.shape)} with {tuple(fake.shape)}")
    if min(len(real), len(fake)) <= k:
        raise utils.UserError(
            f"PRDC with k = {k} needs at least {k + 1} images of each kind, "
            f"not {len(real)} real and {len(fake)} generated: raise their number or lower k (--prdc_k)"
        )


def radii(points, k, chunk=512):
    """Squared distance (n,) float64 of each of the points (n,d) to its k-th nearest neighbour among the others."""
    return torch.cat([_chunk_radii(points, start, k, chunk) for start in range(0, len(points), chunk)])


def _chunk_radii(points, start, k, chunk):
    rows = points[start : start + chunk]  # (c,d)
    squared, error = fast_squared(rows, points)  # (c,n), (c,1)
    squared.diagonal(start).fill_(math.inf)  # nobody is their own neighbour
    found, sure = nearest(rows, points, squared, error, k)  # (c,), (c,)
    for row in (~sure).nonzero().flatten().tolist():
        near = (squared[row] <= found[row] + error[row]).nonzero().flatten()
        found[row] = direct_squared(rows[row], points[near]).kthvalue(k).values
    return found


def ball_counts(*, real, fake, real_radii, fake_radii, chunk=512):
    """How often the points of one set lie inside the balls of the other.

    Args: real: (n,d); fake: (m,d), both float64; real_radii: (n,) and fake_radii: (m,) squared; chunk: rows at once.
    Returns: int64 counts: real balls around each fake (m,), fakes in each real ball (n,), fake balls around each
        real (n,).
    """
    around_fake = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)
    in_real, around_real = [], []
    for start in range(0, len(real), chunk):
        rows = real[start : start + chunk]  # (c,d)
        squared, error = fast_squared(rows, fake)  # (c,m), (c,1)
        in_real_ball = _inside(rows, fake, squared, error, real_radii[start : start + chunk, None])
        in_fake_ball = _inside(rows, fake, squared, error, fake_radii[None])
        around_fake += in_real_ball.sum(0)
        in_real.append(in_real_ball.sum(1))
        around_real.append(in_fake_ball.sum(1))
    return around_fake, torch.cat(in_real), torch.cat(around_real)


def _inside(rows, points, squared, error, radius):
    """Whether each pair of rows (c,d) and points (m,d) is nearer than the squared radius (c,1) or (1,m): (c,m) bool."""
    inside, doubtful = compare(squared, error, radius)
    radius = radius.expand_as(squared)
    for pairs in doubtful.nonzero().split(PAIRS):
        i, j = pairs.unbind(1)
        inside[i, j] = direct_squared(rows[i], points[j]) < radius[i, j]
    return inside


# ---------------------------------------------------------------------------------------------------------------------
# The tensor part: shapes do not depend on values, nothing leaves the device


def fast_squared(a, b):
    """Squared distances (c,m) of a (c,d) to b (m,d) by the product form, and a bound (c,1) on their rounding error."""
    norm_a, norm_b = a.square().sum(1, keepdim=True), b.square().sum(1)  # (c,1), (m,)
    squared = torch.addmm(norm_a + norm_b, a, b.T, alpha=-2)
    # Inner products of length d err by at most d u |a| |b| (u: half of eps), so do the norms; 16 covers the additions
    # and the rounding of the direct form. Twice that, to be safe.
    unit = 2 * (a.shape[1] + 16) * torch.finfo(a.dtype).eps
    return squared, unit * (norm_a + norm_b.max())


def direct_squared(a, b):
    """Squared distances from differences: a, b (..., d), broadcast, to (...).

    Halves are folded onto each other: the order of the additions, and with it a tie, depends on d alone, never on
    the device or on how many pairs are summed together.
    """
    terms = (a - b).square()
    while (width := terms.shape[-1]) > 1:
        if width % 2:
            terms = F.pad(terms, (0, 1))
        half = (width + 1) // 2
        terms = terms[..., :half] + terms[..., half:]
    return terms[..., 0]


def nearest(rows, points, squared, error, k):
    """Squared distance to the k-th nearest point, from the differences to the nearest few.

    Args: rows: (c,d); points: (n,d); squared, error: of `fast_squared`, a point's distance to itself set to infinity.
    Returns: distances (c,), never below the true ones; sure (c,) bool: no point outside the few could be nearer.
    """
    few = min(k + SPARE, len(points) - 1)
    values, index = squared.topk(few, dim=1, largest=False)  # (c,few), ascending
    found = torch.stack([direct_squared(rows, points[index[:, i]]) for i in range(few)], dim=1)
    found = found.kthvalue(k, dim=1).values
    everyone = few == len(points) - 1
    return found, (values[:, -1] - error[:, 0] >= found) | (found == 0) | everyone


def compare(squared, error, radius):
    """Pairs (c,m) surely inside the ball of squared radius (c,1) or (1,m), and pairs too close to its rim to tell."""
    inside = squared < radius - error
    doubtful = (squared < radius + error) & ~inside & (radius > 0)
    return inside, doubtful
