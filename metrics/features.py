"""Features of images, made by all processes together, and distances within each class.

Symbols: N images, n of them on each rank, d features, K classes of the feature network.
"""

import math

import numpy as np
import torch
from tqdm import tqdm

import utils
from image_datasets.image_sets import ImageSet
from metrics import functional
from metrics.networks import FeatureNetwork
from torch_utils.distributed import Ranks, on_ranks

# ---------------------------------------------------------------------------------------------------------------------
# By class


def check_classes(images: ImageSet, indices: np.ndarray, real_images: ImageSet) -> None:
    """Raise UserError unless every class has two images or more among images[indices], and as many real ones."""
    for these in (images, real_images):
        if these.labels is None:
            raise utils.UserError(f"--intra_fid: {these.path} does not say which class an image is of")
    counts = [np.bincount(labels) for labels in (images.labels[indices], real_images.labels)]
    if len(counts[0]) != len(counts[1]):
        found = f"classes 0 to {len(counts[0]) - 1} among {len(indices)} images, 0 to {len(counts[1]) - 1}"
        raise utils.UserError(f"--intra_fid: {found} in {real_images.path}")
    for c, (fake, real) in enumerate(zip(*counts, strict=True)):
        if (fake or real) and min(fake, real) < 2:
            text = f"class {c} has {fake} images, and {real} in {real_images.path}: 2 are needed"
            raise utils.UserError(f"--intra_fid: {text}; raise --num_inception_images")


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
    n = math.ceil(len(indices) / ranks.world_size)
    mine = np.asarray(indices)[ranks.rank * n : (ranks.rank + 1) * n]
    shown = description if ranks.is_main else None
    rows = on_ranks(ranks, lambda: _part(network, images, mine, n, ranks.device, batch_size, shown), every=True)
    return tuple(part[: len(indices)] if ranks.is_main else None for part in (_gather(r, ranks) for r in rows))


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
    whole = rows.new_empty(ranks.world_size * len(rows), *rows.shape[1:]) if ranks.is_main else None
    torch.distributed.gather(rows, list(whole.chunk(ranks.world_size)) if ranks.is_main else None)
    return whole
