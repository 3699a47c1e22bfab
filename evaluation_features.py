"""Features of images, made by all processes together, and the metrics of them.

Symbols: N images, n of them on each rank, d features, K classes of the feature network.
"""

import math

import numpy as np
import torch
from tqdm import tqdm

import inception_utils
import metrics
import utils


def measure(images, indices, network, reference, batch_size, ranks, labelled, real_images=None, *, seed):
    """The metrics of some images, on rank 0; None on the others.

    Args: images: see evaluation_sources; indices: int (N,), which images, in an order that does not follow the class;
        labelled: whether `images.labels` are classes of `network`; real_images: for `intra_class`, or None; seed: of
        the draws of metrics.
    Returns: dict as of `inception_utils.compute_metrics`, joined by that of `intra_class`.
    """
    indices = np.asarray(indices)
    if real_images is not None:
        check_classes(images.labels[indices], real_images)
    # Read in increasing order, as files like it, then put back into the order asked for.
    order = np.argsort(indices)
    features, logits = features_of(images, indices[order], network, batch_size, ranks, "evaluating")
    intra = {}
    if ranks.is_main:
        back = torch.from_numpy(np.argsort(order)).to(features.device)
        features, logits = features[back], logits[back]
        labels = None if images.labels is None else torch.from_numpy(images.labels[indices])
    if real_images is not None:
        mine = (features, labels) if ranks.is_main else (None, None)
        intra = intra_class(*mine, real_images, network, batch_size, ranks)
    if not ranks.is_main:
        return None
    values = inception_utils.compute_metrics(features, logits, labels if labelled else None, network, reference)
    return values | intra


# ---------------------------------------------------------------------------------------------------------------------
# By class


def check_classes(labels, real_images):
    """Raise UserError unless every class has two images or more among `labels`, int64 (N,), and the real images."""
    if real_images.labels is None:
        raise utils.UserError(f"--intra_fid: {real_images.path} does not say which class an image is of")
    counts = [np.bincount(these) for these in (labels, real_images.labels)]
    if len(counts[0]) != len(counts[1]):
        found = f"{len(counts[0])} classes among the images, {len(counts[1])} in {real_images.path}"
        raise utils.UserError(f"--intra_fid: {found}")
    for c, (fake, real) in enumerate(zip(*counts, strict=True)):
        if (fake or real) and min(fake, real) < 2:
            text = f"class {c} has {fake} images, and {real} in {real_images.path}: 2 are needed"
            raise utils.UserError(f"--intra_fid: {text}; raise --num_inception_images")


def intra_class(features, labels, real_images, network, batch_size, ranks):
    """Intra-class Frechet distance (Miyato and Koyama 2018, arXiv:1802.05637), real features class by class.

    Args: features (N,d), labels int64 (N,): on rank 0, None on the others; real_images: labelled images.
    Returns: on rank 0, {`intra_fid` or `intra_fd`: mean over classes, the same + `_per_class`: dict of floats by class
        id}; None on the others.
    """
    distances = {}
    disable = None if ranks.is_main else True
    for c in tqdm(np.unique(real_images.labels).tolist(), desc="classes", unit="class", leave=False, disable=disable):
        members = np.flatnonzero(real_images.labels == c)
        real, _ = features_of(real_images, members, network, batch_size, ranks)
        if ranks.is_main:
            distances[str(c)] = metrics.frechet_of_features(features[labels == c], real)
    if not ranks.is_main:
        return None
    key = f"intra_{network.distance}"
    return {key: sum(distances.values()) / len(distances), f"{key}_per_class": distances}


# ---------------------------------------------------------------------------------------------------------------------
# Features over ranks


def features_of(images, indices, network, batch_size, ranks, description=None):
    """Features (N,d) and logits (N,K) of the images at `indices` (N,), increasing, on rank 0; None, None on the others.

    Every rank takes a contiguous part. `description`: of a progress bar, or None for none.
    Raises: utils.UserError, on all ranks, where an image of any rank cannot be made or read.
    """
    n = math.ceil(len(indices) / ranks.world_size)
    mine = np.asarray(indices)[ranks.rank * n : (ranks.rank + 1) * n]
    problem = rows = None
    try:
        rows = _part(images, mine, n, network, batch_size, ranks, description)
    except utils.UserError as error:
        problem = str(error)
    _raise_on_all(problem, ranks)
    return tuple(part[: len(indices)] if ranks.is_main else None for part in (_gather(r, ranks) for r in rows))


def _part(images, indices, n, network, batch_size, ranks, description):
    """Features (n,d) and logits (n,K) of this rank's images; n is the same on all ranks, rows past the end are 0."""
    features = torch.zeros(n, network.feature_dim, device=ranks.device)
    logits = torch.zeros(n, network.num_classes, device=ranks.device)
    disable = None if description and ranks.is_main else True  # None: shown on terminals only
    with tqdm(total=len(indices), desc=description, unit="image", leave=False, disable=disable) as bar:
        for start in range(0, len(indices), batch_size):
            part = slice(start, min(start + batch_size, len(indices)))
            features[part], logits[part] = network(images.read(indices[part]).to(ranks.device))
            bar.update(part.stop - part.start)
    return features, logits


def _gather(rows, ranks):
    """Rows (n,...) of all ranks in the ranks' order, (world_size * n,...), on rank 0; None on the others."""
    if ranks.world_size == 1:
        return rows
    whole = rows.new_empty(ranks.world_size * len(rows), *rows.shape[1:]) if ranks.is_main else None
    torch.distributed.gather(rows, list(whole.chunk(ranks.world_size)) if ranks.is_main else None)
    return whole


def _raise_on_all(problem, ranks):
    """Raise a UserError on every rank if `problem`, a line or None, is a line on any: that of the first such rank."""
    first = torch.tensor(ranks.world_size if problem is None else ranks.rank)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    if first < ranks.world_size:
        raise utils.UserError(broadcast(problem, ranks, first.item()))


def broadcast(value, ranks, source=0):
    """A small picklable value of the rank `source`, on all ranks."""
    if ranks.world_size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]
