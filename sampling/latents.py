"""Noise and classes of generated images, each a function of the seed and of the image's number alone.

Symbols: N images, K classes of the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import utils

# What truncation to T does to a normal z -> (bound of the distribution drawn from, factor, bound of the result):
# redrawn beyond T (Brock et al. 2019, section 3.1); redrawn beyond 2, then times T (pytorch-pretrained-BigGAN); times T
# (BigGAN-PyTorch); clamped to T (mmgeneration).
TRUNCATION_KINDS = {
    "truncated_normal": lambda t: (t, 1, t),
    "scaled_truncated_normal": lambda t: (2, t, 2 * t),
    "scaled_normal": lambda t: (math.inf, t, math.inf),
    "clamped_normal": lambda t: (math.inf, 1, t),
}


@dataclass(frozen=True)
class Truncation:
    """A truncation of z to `limit` > 0, of a kind of TRUNCATION_KINDS."""

    limit: float
    kind: str = "truncated_normal"

    @property
    def changes_nothing(self) -> bool:
        """Whether z stays the normal one: scaled by 1."""
        return TRUNCATION_KINDS[self.kind](self.limit) == (math.inf, 1, math.inf)


def latents(
    seed: int, indices: Sequence, dim_z: int, truncation: Truncation | None = None, stream: str = "sample_z"
) -> Tensor:
    """The noise of images number `indices`, float32 (n,dim_z) on the CPU.

    z is standard normal, or a truncated one. It is drawn through the inverse of the distribution function, so that an
    image keeps its place in the distribution when the truncation changes: the same image, less or more typical.

    Args: seed: >= 0; indices: ints >= 0 (n,); truncation: None for the whole normal distribution; stream: of
        `utils.rng`.
    """
    from scipy.special import erf, erfinv  # takes half a second to import, which --help need not wait for

    uniform = np.empty((len(indices), dim_z))
    for row, i in zip(uniform, indices, strict=True):
        row[:] = utils.rng(seed, stream, int(i)).random(dim_z)
    uniform = np.maximum(2 * uniform - 1, np.nextafter(-1, 0))  # of [-1, 1): -1 would become -infinity
    drawn, factor, limit = math.inf, 1, math.inf
    if truncation is not None:
        drawn, factor, limit = TRUNCATION_KINDS[truncation.kind](truncation.limit)
    z = factor * math.sqrt(2) * erfinv(uniform * erf(drawn / math.sqrt(2)))
    return torch.from_numpy(np.clip(z, -limit, limit).astype(np.float32))


def balanced_labels(num_images: int, classes: Sequence[int], counts: Sequence[int] | None = None) -> Tensor:
    """Class ids of images 0 to N-1, taking turns, or as often as `counts` of the classes say: int64 (N,)."""
    if counts is not None:
        return torch.as_tensor(classes)[_in_proportion(num_images, counts)]
    return torch.as_tensor(classes)[torch.arange(num_images) % len(classes)]


def shuffled_labels(seed: int, num_images: int, classes: Sequence[int], counts: Sequence[int] | None = None) -> Tensor:
    """Class ids of images 0 to N-1, taking turns in an order that is drawn anew for each turn: int64 (N,).

    As balanced as `balanced_labels`, but neighbours are no neighbours in the list of classes, where similar classes
    often are: for images that share batch statistics.
    """
    if counts is not None:
        return torch.as_tensor(classes)[_in_proportion(num_images, counts, seed)]
    turns = range(-(-num_images // len(classes)))
    order = [utils.rng(seed, "sample_turn", turn).permutation(len(classes)) for turn in turns]
    return torch.as_tensor(classes)[np.concatenate(order)[:num_images]]


def _in_proportion(num_images, counts, seed=None):
    """Positions in `counts` (K,), int64 (N,), each as often as its count says, to within one, among any first images.

    A class of share p has its image number j at the time (j + 1/2)/p, or with a seed at a random place of the interval
    from j/p to (j + 1)/p, and images come in the order of their times (Webster and Sainte-Lague's way of apportioning
    seats): with equal counts all classes take turns.
    """
    shares = np.asarray(counts) / np.sum(counts)
    images = np.floor((num_images + len(shares)) * shares).astype(int) + (shares > 0)  # N come before any is missed
    positions = np.repeat(np.arange(len(shares)), images)
    numbers = np.arange(len(positions)) - np.repeat(np.cumsum(images) - images, images)
    place = 0.5
    if seed is not None:
        place = np.empty(len(positions))
        by_number = np.argsort(numbers, kind="stable")
        for number, part in enumerate(np.split(by_number, np.flatnonzero(np.diff(numbers[by_number])) + 1)):
            place[part] = utils.rng(seed, "sample_turn", number).random(len(shares))[positions[part]]
    order = np.lexsort((positions, (numbers + place) / shares[positions]))
    return torch.from_numpy(positions[order[:num_images]])


def random_labels(
    seed: int,
    num_images: int,
    classes: Sequence[int],
    stream: str = "sample_y",
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Independent class ids of images 0 to N-1, uniform or in proportion to `counts` of the classes: int64 (N,).

    stream: of `utils.rng`.
    """
    if counts is not None:
        below = np.cumsum(counts) / np.sum(counts)
        picks = [np.searchsorted(below, utils.rng(seed, stream, i).random(), "right") for i in range(num_images)]
    else:
        picks = [utils.rng(seed, stream, i).integers(len(classes)) for i in range(num_images)]
    return torch.as_tensor(classes)[picks]
