"""Whether a generator has memorised training images: the nearest of them to its samples, in a network's features.

Symbols: N samples, M training images, d features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from metrics import distances
from torch_utils.images import image_grid

NEIGHBOURS = 4  # training images beside a sample
SPARE = 4  # beyond those: candidates by fast distances, among which exact ones decide
CHUNK = 1024  # training images at a time


class Nearest(NamedTuple):
    """Distances (N,k) float64 and indices (N,k) of the nearest training images, nearest first."""

    distance: Tensor
    index: Tensor


def nearest(points: Tensor, train: Tensor, k: int = NEIGHBOURS, itself: Tensor | None = None) -> Nearest:
    """The k training features (M,d) nearest to each point (n,d), by exact distances.

    itself: (n,), the index in `train` of each point, which does not count; None: the points are not among these.
    """
    few = min(k + SPARE, len(train) - (itself is not None))
    best = torch.full((len(points), few), torch.inf, dtype=torch.float64, device=points.device)
    index = torch.zeros((len(points), few), dtype=torch.int64, device=points.device)
    wide = points.double()
    for start in range(0, len(train), CHUNK):
        part = train[start : start + CHUNK].double()
        squared = wide.square().sum(1)[:, None] + part.square().sum(1) - 2 * wide @ part.T
        places = torch.arange(start, start + len(part), device=points.device).expand(len(points), -1)
        if itself is not None:
            squared = squared.masked_fill(places == itself[:, None], torch.inf)
        best, chosen = torch.cat([best, squared], dim=1).topk(few, largest=False)
        index = torch.cat([index, places], dim=1).gather(1, chosen)
    exact = distances.direct_squared(points[:, None], train[index])
    exact, order = exact.sort(dim=1, stable=True)
    return Nearest(exact[:, :k].sqrt(), index.gather(1, order)[:, :k])


class Authenticity(NamedTuple):
    """near: of the points; own (n,): how far their nearest training image lies from its own nearest."""

    near: Nearest
    own: Tensor

    @property
    def ratio(self) -> Tensor:
        """(n,): below 1, a point lies nearer to a training image than any other training image does: suspicious."""
        return self.near.distance[:, 0] / self.own.clamp_min(1e-12)

    @property
    def percent(self) -> float:
        """AuthPct (Alaa et al. 2022, arXiv:2102.08921, section 3.3): percentage of points farther from their nearest
        training image than that one lies from its own nearest."""
        return 100 * (self.near.distance[:, 0] > self.own).double().mean().item()


def authenticity(points: Tensor, train: Tensor) -> Authenticity:
    """Args: features (n,d) and (M,d), M at least 2, on one device."""
    near = nearest(points, train)
    matched, back = near.index[:, 0].unique(return_inverse=True)
    own = nearest(train[matched], train, 1, itself=matched).distance[:, 0]
    return Authenticity(near, own[back])


def suspicion_sheet(samples: Tensor, neighbours: Tensor, found: Authenticity, shown: Sequence[int]) -> Image.Image:
    """A row per sample: it, then the training images nearest to it.

    Args: samples (n,3,R,R) and neighbours (n,k,3,R,R), uint8, of those `shown`: their numbers.
    """
    ratio, distance = found.ratio, found.near.distance[:, 0]
    rows = [f"sample {i}: distance {distance[i]:.3g}, ratio {ratio[i]:.2f}" for i in shown]
    k = neighbours.shape[1]
    names = ["sample", *(f"nearest {i + 1}" for i in range(k))]
    images = torch.cat([samples[:, None], neighbours], dim=1).flatten(0, 1)
    return image_grid(images, k + 1, names, left=rows)
