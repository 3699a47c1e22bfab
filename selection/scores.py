"""The density score of every image of a data set within its class: computed in an embedding, stored under --data_root.

Scores are computed class by class, so that the features of one class at a time are in memory; under torchrun the
classes are divided over the processes. What is stored holds for every retention ratio, and is computed again, after a
line that says why, for other images, weights or rules.

Symbols: N images of the data set.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import utils
from metrics.networks import NETWORK_RESIZE, load_feature_network, network_name
from selection.measures import DENSITY_MEASURES

VERSION = 1  # raised where the same images would get other scores
PUBLISHED = "inceptionv3"  # torchvision's Inception as the paper embeds with it: see `load_embedding`
EMBEDDINGS = (PUBLISHED, *NETWORK_RESIZE)
UNREADABLE = (utils.UserError, KeyError, ValueError)  # what a damaged file of scores raises, or another npz


def add_selection_args(parser):
    """Add the flags that say which images of each class are kept."""
    group = parser.add_argument_group("instance selection (within each class of the data set)")
    group.add_argument(
        "--retention_ratio", type=_percent, default=100.0, help="percent of the images that are kept, the densest ones"
    )
    group.add_argument(
        "--embedding",
        choices=EMBEDDINGS,
        default=PUBLISHED,
        help="features that the density is measured in: inceptionv3 (the published ones), or a feature network",
    )
    group.add_argument(
        "--density_measure",
        choices=tuple(DENSITY_MEASURES),
        default="gaussian",
        help="log-likelihood under a Gaussian or probabilistic PCA, or minus the distance to the 5th neighbour",
    )
    group.add_argument("--embedding_weights", metavar="FILE", help="weights of the embedding; else as for the metrics")


def _percent(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage above 0")
    return value


def embedding_weights(args):
    """--embedding_weights, else --inception_weights where those are of the embedding's network and not of another."""
    network = network_name(args.embedding)
    shared = network != "classifier" and args.feature_network in (network, "classifier")
    return args.embedding_weights or (args.inception_weights if shared else None)


def load_embedding(embedding, data_root, dataset_name, weights=None, device="cpu"):
    """The network behind an --embedding, with its own resize rule: a FeatureNetwork on `device`.

    Args and Raises: as `load_feature_network`.
    """
    # The published code asks torchvision for the pretrained network, which then rescales its input from ImageNet's mean
    # and deviation to [-1, 1]; `inception`, the network of the metrics, has the same weights without that.
    resize = "bilinear_corners_transform_input" if embedding == PUBLISHED else None
    return load_feature_network(
        network_name(embedding), data_root, dataset_name, weights, resize, device, weights_flag="--embedding_weights"
    )


def class_indices(labels):
    """The images of each class that has any: a list of increasing int64 arrays, in the order of the classes."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def compute_scores(dataset, network, density_measure, batch_size, ranks):
    """Density score of every image among those of its class; the classes are divided over the ranks.

    Args: dataset: HDF5Dataset; network: FeatureNetwork on the ranks' device; density_measure: key of DENSITY_MEASURES;
        batch_size: images a pass.
    Returns: float64 array (N,), the same on all ranks.
    Raises: utils.UserError naming the class whose features are unusable.
    """
    scores = torch.zeros(len(dataset), dtype=torch.float64)
    mine = class_indices(dataset.labels)[ranks.rank :: ranks.world_size]
    disable = None if ranks.is_main else True  # None: shown on terminals only
    with tqdm(total=sum(map(len, mine)), desc="instance selection", unit="image", disable=disable) as bar:
        for indices in mine:
            features = torch.empty(len(indices), network.feature_dim, device=ranks.device)
            for start in range(0, len(indices), batch_size):
                images = dataset.read(indices[start : start + batch_size]).to(ranks.device)
                features[start : start + batch_size] = network(images)[0]
                bar.update(len(images))
            name = dataset.class_names[dataset.labels[indices[0]]]
            scores[torch.from_numpy(indices)] = _class_scores(features, density_measure, name).cpu()
    if ranks.world_size > 1:
        torch.distributed.all_reduce(scores)  # each image has its score on one rank and 0 on the others
    return scores.numpy()


def _class_scores(features, density_measure, class_name):
    if not features.isfinite().all():
        raise utils.UserError(f"class {class_name}: its features are not finite; are these the embedding's weights?")
    try:
        return DENSITY_MEASURES[density_measure](features)
    except torch.linalg.LinAlgError as error:
        raise utils.UserError(
            f"class {class_name}: its features are too large for --density_measure {density_measure}; try nn_dist"
        ) from error


def keep(scores, labels, retention_ratio):
    """Which images are kept: of each class those above the (100 - retention_ratio)th percentile of its scores.

    The percentile is numpy's (linear) and the comparison strict, as published; where ties leave none above, the class
    keeps its best, so that no class becomes empty.
    Args: scores: float array (N,); labels: int array (N,); retention_ratio: in (0, 100]. Returns: bool array (N,).
    """
    kept = np.full(len(scores), retention_ratio == 100)
    for indices in class_indices(labels) if retention_ratio < 100 else []:
        own = scores[indices]
        above = own > np.percentile(own, 100 - retention_ratio)
        kept[indices] = above if above.any() else own == own.max()
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Scores on disk


def scores_path(data_root, dataset_name, embedding, density_measure):
    return Path(data_root) / f"{dataset_name}_{embedding}_{density_measure}_scores.npz"


def scores_key(content, network, density_measure):
    """All that the scores of a data set depend on: a dict of plain values, stored with them."""
    about = {"version": VERSION, "content": content, "density_measure": density_measure}
    return about | {"embedding": network.name, "resize": network.resize, "weights_hash": network.weights_hash}


def save_scores(path, scores, key):
    with utils.atomic_path(path) as temporary:
        np.savez(temporary, scores=scores, key=json.dumps(key))


def _read(path):
    """Scores and their key. Raises: one of UNREADABLE."""
    arrays = utils.load_npz(path)
    return arrays["scores"], json.loads(arrays["key"].item())


def read_scores(path, key):
    """The scores (N,) at `path` if they have this key, else None, after a line that says why."""
    if not path.exists():
        return None
    try:
        scores, made = _read(path)
    except UNREADABLE:
        print(f"computing again: {path} is not a readable file of scores")
        return None
    if made != key:
        changed = [name for name in key if made.get(name) != key[name]]
        print(f"computing again: {path} was made with another {', '.join(changed)}")
        return None
    return scores


def stored_scores(args, dataset, content):
    """The scores (N,) of a data set that the flags mean, as they are stored, whatever weights they were made with.

    Raises: utils.UserError if there are none, or if they are of other images.
    """
    path = scores_path(args.data_root, dataset.name, args.embedding, args.density_measure)
    try:
        scores, key = _read(path)
    except UNREADABLE:
        key = {}
    if key.get("content") != content:
        raise utils.UserError(
            f"no scores of these images in {path}; make them with: python instance_selection.py --dataset "
            f"{args.dataset} --data_root {args.data_root} --embedding {args.embedding} "
            f"--density_measure {args.density_measure}"
        )
    return scores


def load_scores(args, dataset, content, ranks, weights=None, overwrite=False):
    """The scores of a data set, from --data_root, or computed on all ranks and stored there.

    Args: args: the flags of `add_selection_args`, data_root and metric_batch_size; content: of the data set, as
        `dataset_doctor.examine` gives it; weights: file of the embedding's.
    Returns: float64 array (N,) and its key, the same on all ranks.
    """
    network = load_embedding(args.embedding, args.data_root, dataset.name, weights, ranks.device)
    path = scores_path(args.data_root, dataset.name, args.embedding, args.density_measure)
    key = scores_key(content, network, args.density_measure)

    def look():
        found = None if overwrite else read_scores(path, key)
        if found is None and path.parent.exists() and not os.access(path.parent, os.W_OK):
            raise utils.UserError(f"{path} cannot be written; make {path.parent} writable for the scores")
        return found

    scores = utils.on_main(ranks, look)  # rank 0 decides, so that all ranks compute or none does
    if scores is None:
        if ranks.is_main:
            print(f"scoring {len(dataset):,} images ({args.embedding}, {args.density_measure}) for {path}", flush=True)
        scores = compute_scores(dataset, network, args.density_measure, args.metric_batch_size, ranks)
        utils.on_main(ranks, lambda: save_scores(path, scores, key))
    return scores, key
