"""Features of images, made by all processes together, and the metrics of them.

Symbols: N images, n of them on each rank, d features, K classes of the feature network.
"""

import contextlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

import inception_utils
import utils
from metrics import functional
from metrics.networks import FeatureNetwork
from metrics.reference import Reference


@dataclass(frozen=True)
class Measure:
    """What images are measured with, and on which processes.

    network: on `ranks.device`; reference: of that network; batch_size: images at a time on a rank; options: keywords of
    `inception_utils.compute_metrics` and `protocol` (inception_utils.metric_options); prdc_memory_mb: for PRDC's
    distances; real_images: labelled images (see evaluation_sources) for intra-class distances, or None for none.
    """

    network: FeatureNetwork
    reference: Reference
    batch_size: int
    ranks: utils.Ranks
    options: dict = field(default_factory=dict)
    prdc_memory_mb: int = 1024
    real_images: object = None


def make_measure(args, network, reference, ranks, real_images=None):
    """The Measure of parsed flags (inception_utils.add_metric_args)."""
    options = inception_utils.metric_options(args)
    return Measure(network, reference, args.metric_batch_size, ranks, options, args.prdc_memory_mb, real_images)


def compute(measure, images, indices, labelled, seed):
    """The metrics of some images, on rank 0; None on the others.

    Args: images: see evaluation_sources; indices: int (N,), which images, in an order that does not follow the class;
        labelled: whether `images.labels` are classes of the network; seed: of the metrics' own draws.
    Returns: dict as of `inception_utils.compute_metrics`, joined by that of `intra_class` if asked for.
    """
    indices, ranks = np.asarray(indices), measure.ranks
    if measure.real_images is not None:
        check_classes(images, indices, measure.real_images)
    # Read in increasing order, as files like it, then put back into the order asked for.
    order = np.argsort(indices)
    features, logits = features_of(measure, images, indices[order], "evaluating")
    labels = None if images.labels is None else torch.from_numpy(images.labels[indices])
    if ranks.is_main:
        back = torch.from_numpy(np.argsort(order)).to(features.device)
        features, logits = features[back], logits[back]
    intra = intra_class(measure, features, labels) if measure.real_images is not None else {}
    if not ranks.is_main:
        return None
    labels = labels if labelled else None
    common = (features, logits, labels, measure.network, measure.reference)
    values = inception_utils.compute_metrics(
        *common, prdc_memory_mb=measure.prdc_memory_mb, seed=seed, **measure.options
    )
    return values | intra


# ---------------------------------------------------------------------------------------------------------------------
# By class


def check_classes(images, indices, real_images):
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


def intra_class(measure, features, labels):
    """Intra-class Frechet distance (Miyato and Koyama 2018, arXiv:1802.05637), real features class by class.

    Args: features (N,d): on rank 0, None on the others; labels: int64 (N,).
    Returns: on rank 0, {`intra_fid` or `intra_fd`: mean over classes, the same + `_per_class`: dict of floats by class
        id}; None on the others.
    """
    real_images, is_main = measure.real_images, measure.ranks.is_main
    distances = {}
    classes = np.unique(real_images.labels).tolist()
    for c in tqdm(classes, desc="classes", unit="class", leave=False, disable=None if is_main else True):
        real, _ = features_of(measure, real_images, np.flatnonzero(real_images.labels == c))
        if is_main:
            members = (labels == c).to(features.device)
            distances[str(c)] = functional.frechet_of_features(features[members], real)
    if not is_main:
        return None
    key = f"intra_{measure.network.distance}"
    return {key: sum(distances.values()) / len(distances), f"{key}_per_class": distances}


# ---------------------------------------------------------------------------------------------------------------------
# Features over ranks


def features_of(measure, images, indices, description=None):
    """Features (N,d) and logits (N,K) of the images at `indices` (N,), increasing, on rank 0; None, None on the others.

    Every rank takes a contiguous part. `description`: of a progress bar, or None for none.
    Raises: utils.UserError, on all ranks, where an image of any rank cannot be made or read.
    """
    ranks = measure.ranks
    n = math.ceil(len(indices) / ranks.world_size)
    with raised_on_all(ranks):
        rows = _part(measure, images, np.asarray(indices)[ranks.rank * n : (ranks.rank + 1) * n], n, description)
    return tuple(part[: len(indices)] if ranks.is_main else None for part in (_gather(r, ranks) for r in rows))


def _part(measure, images, indices, n, description=None):
    """Features (n,d) and logits (n,K) of this rank's images; n is the same on all ranks, rows past the end are 0."""
    network, device = measure.network, measure.ranks.device
    features = torch.zeros(n, network.feature_dim, device=device)
    logits = torch.zeros(n, network.num_classes, device=device)
    disable = None if description and measure.ranks.is_main else True  # None: shown on terminals only
    with tqdm(total=len(indices), desc=description, unit="image", leave=False, disable=disable) as bar:
        for start in range(0, len(indices), measure.batch_size):
            part = slice(start, min(start + measure.batch_size, len(indices)))
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


@contextlib.contextmanager
def raised_on_all(ranks):
    """A UserError that the block raises on any rank is raised on every rank: that of the first such rank."""
    problem = None
    try:
        yield
    except utils.UserError as error:
        problem = str(error)
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
