"""Features of images, made by all processes together, and distances within each class.

Symbols: N images, n of them on each rank, d features, K classes of the feature network.
"""

import math

import numpy as np
import torch
from tqdm import tqdm

import utils
from image_datasets.image_sets import ImageSet, empty_classes, quoted
from metrics import functional
from metrics.networks import FeatureNetwork
from metrics.resizing import RESNET_SIZE
from torch_utils import memory
from torch_utils.distributed import Ranks, on_ranks

# ---------------------------------------------------------------------------------------------------------------------
# By class


def check_classes(images: ImageSet, indices: np.ndarray, real_images: ImageSet) -> None:
    """Raise UserError unless every class of images[indices], and of the real ones, has two images or more in both."""
    for these in (images, real_images):
        if these.labels is None:
            raise utils.UserError(f"--intra_fid: {these.path} does not say which class an image is of")
    fakes, reals = np.bincount(images.labels[indices]), np.bincount(real_images.labels)
    number = max(len(fakes), len(reals))
    fakes, reals = (np.pad(counts, (0, number - len(counts))) for counts in (fakes, reals))
    few = np.flatnonzero(((fakes > 0) | (reals > 0)) & (np.minimum(fakes, reals) < 2))
    if len(few):
        c = few[np.argsort(reals[few] >= 2, kind="stable")[0]]  # first what more generated images would not mend
        raise utils.UserError(f"--intra_fid: {_too_few(c, fakes[c], reals[c], len(indices), real_images)}")


def _too_few(c, fake, real, num_images, real_images):
    """What is wrong with class c, of which there are too few images, and what helps."""
    names, path = real_images.class_names, real_images.path
    name = f" ({quoted(names[c])})" if c < len(names) and names[c] != str(c) else ""
    if c >= len(names) > 1:
        return (
            f"class {c} is none of the {utils.counted(len(names), 'class')} of {path}, which are 0 to {len(names) - 1}"
        )
    if real == 0:
        counts = np.bincount(real_images.labels, minlength=len(names))
        empty = [name for name, count in zip(names, counts, strict=False) if not count]
        return (
            f"{path}: {empty_classes(empty, names)}; evaluate images of the other classes alone (--class_sampling "
            "data), or correct the data"
        )
    if real == 1:
        return (
            f"class {c}{name} has 1 image in {path}, a distance needs 2: add some, or leave the class out of the data"
        )
    return (
        f"class {c}{name} has {utils.counted(fake, 'image')} among the {num_images:,} evaluated ones, a distance needs "
        "2; raise --num_inception_images, or evaluate more images of it"
    )


def intra_class(
    network: FeatureNetwork, features, labels, real_images: ImageSet, ranks: Ranks, batch_size: int
) -> dict | None:
    """Intra-class Frechet distance (Miyato and Koyama 2018, arXiv:1802.05637, section 5), real features class by class.

    Args: features (N,d): on rank 0, None on the others; labels: int64 (N,).
    Returns: on rank 0, {`intra_fid` or `intra_fd`: mean over classes, the same + `_per_class`: dict of floats by class
        id}; None on the others.
    """
    distances = {}
    classes = np.unique(real_images.labels).tolist()
    for c in tqdm(classes, desc="classes", unit="class", leave=False, disable=None if ranks.is_main else True):
        real, _ = features_of(network, real_images, np.flatnonzero(real_images.labels == c), ranks, batch_size)
        if ranks.is_main:
            members = (labels == c).to(features.device)
            distances[str(c)] = functional.frechet_of_features(features[members], real)
    if not ranks.is_main:
        return None
    key = f"intra_{network.distance}"
    return {key: sum(distances.values()) / len(distances), f"{key}_per_class": distances}


# ---------------------------------------------------------------------------------------------------------------------
# Features over ranks


def features_of(
    network: FeatureNetwork, images: ImageSet, indices, ranks: Ranks, batch_size: int, description: str | None = None
) -> tuple:
    """Features (N,d) and logits (N,K) of the images at `indices` (N,), increasing, on rank 0; None, None on the others.

    Every rank takes a contiguous part. `description`: of a progress bar, or None for none.
    Raises: utils.UserError, on all ranks, where an image of any rank cannot be made or read.
    """
    check_fits(network, len(indices), ranks, batch_size)
    n = math.ceil(len(indices) / ranks.world_size)
    mine = np.asarray(indices)[ranks.rank * n : (ranks.rank + 1) * n]
    shown = description if ranks.is_main else None
    rows = on_ranks(ranks, lambda: _part(network, images, mine, n, ranks.device, batch_size, shown), every=True)
    return tuple(part[: len(indices)] if ranks.is_main else None for part in (_gather(r, ranks) for r in rows))


def check_fits(network: FeatureNetwork, num_images: int, ranks: Ranks, batch_size: int) -> None:
    """Raise utils.UserError where a rank cannot hold a batch of its part of so many images, as the network takes them.

    A lower bound. batch_size: --metric_batch_size.
    """
    size = network.resolution or RESNET_SIZE  # the least that images of any size are brought to
    number = min(batch_size, math.ceil(num_images / ranks.world_size))
    memory.check_fits(4 * 3 * size**2 * number, ranks.device, f"--metric_batch_size {batch_size:,}", "lower it")


def _part(network, images, indices, n, device, batch_size, description=None):
    """Features (n,d) and logits (n,K) of this rank's images; n is the same on all ranks, rows past the end are 0."""
    features = torch.zeros(n, network.feature_dim, device=device)
    logits = torch.zeros(n, network.num_classes, device=device)
    disable = None if description else True  # None: shown on terminals only
    with tqdm(total=len(indices), desc=description, unit="image", leave=False, disable=disable) as bar:
        for start in range(0, len(indices), batch_size):
            part = slice(start, min(start + batch_size, len(indices)))
            features[part], logits[part] = network(images.read(indices[part]).to(device))
            bar.update(part.stop - part.start)
    return features, logits


def _gather(rows, ranks):
    """Rows (n,...) of all ranks in the ranks' order, (world_size * n,...), on rank 0; None on the others."""
    if ranks.world_size == 1:
        return rows
    if not rows.shape[1]:  # logits of a network without classes
        return rows.repeat(ranks.world_size, 1)
    whole = rows.new_empty(ranks.world_size * len(rows), *rows.shape[1:]) if ranks.is_main else None
    torch.distributed.gather(rows, list(whole.chunk(ranks.world_size)) if ranks.is_main else None)
    return whole
