"""The density score of every image of a data set within its class: computed in an embedding, stored under --data_root.

Scores are computed class by class, so that the features of one class at a time are in memory; under torchrun the
classes are divided over the processes. What is stored holds for every retention ratio, and is computed again, after a
line that says why, for other images, weights or rules.

Symbols: N images of the data set.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import utils
from image_datasets.content import check_content
from image_datasets.image_sets import ImageSet
from image_datasets.loading import DataOptions
from metrics.classifier import classifier_path
from metrics.networks import (
    NETWORK_RESIZE,
    FeatureNetwork,
    FeatureOptions,
    load_feature_network,
    network_name,
    statistics_command,
)
from selection.measures import DENSITY_MEASURES
from torch_utils.distributed import Ranks, on_ranks
from utils import Check, Options, option

VERSION = 1  # raised where the same images would get other scores
PUBLISHED = "inceptionv3"  # torchvision's Inception as the paper embeds with it: see `load_embedding`
EMBEDDINGS = (PUBLISHED, *NETWORK_RESIZE)
# What a damaged file of scores raises, or another npz.
UNREADABLE = (utils.UserError, KeyError, ValueError, RecursionError)
PERCENT = Check(lambda x: 0 < x <= 100, "be a percentage above 0")


@dataclass(frozen=True)
class SelectionOptions(Options):
    """Which images of each class are kept."""

    title = "instance selection (within each class of the data set)"

    retention_ratio: float = option(100.0, "percent of the images that are kept, the densest ones", check=PERCENT)
    embedding: str = option(
        PUBLISHED,
        "features that the density is measured in: inceptionv3 (the published ones), or a feature network",
        choices=EMBEDDINGS,
    )
    density_measure: str = option(
        "gaussian",
        "log-likelihood under a Gaussian or probabilistic PCA, or minus the distance to the 5th neighbour",
        choices=tuple(DENSITY_MEASURES),
    )
    embedding_weights: str | None = option(
        None, "weights of the embedding; else as for the metrics", metavar="FILE", changeable=True
    )

    @property
    def keeps_all(self) -> bool:
        return self.retention_ratio == 100

    def num_kept(self, labels: np.ndarray) -> int:
        """Images of a data set that are kept, by the labels (N,) alone: at most so many, but for ties of scores."""
        return sum(math.ceil(count * self.retention_ratio / 100) for count in np.bincount(labels).tolist())

    def weights(self, metrics: FeatureOptions) -> str | None:
        """--embedding_weights, else the metrics' weights where those are of the embedding's network, not of another."""
        network = network_name(self.embedding)
        shared = network != "classifier" and metrics.feature_network in (network, "classifier")
        return self.embedding_weights or (metrics.inception_weights if shared else None)

    def load_network(
        self, data_root: str | Path, dataset_name: str, weights: str | None = None, device: str | torch.device = "cpu"
    ) -> FeatureNetwork:
        """The network behind the embedding. Args and Raises: as `load_feature_network`."""
        return load_embedding(self.embedding, data_root, dataset_name, weights, device)

    def path(self, data_root: str | Path, dataset_name: str) -> Path:
        """The file of the scores of a data set."""
        return Path(data_root) / f"{dataset_name}_{self.embedding}_{self.density_measure}_scores.npz"


def load_embedding(
    embedding: str,
    data_root: str | Path,
    dataset_name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> FeatureNetwork:
    """The network behind an --embedding, with its own resize rule. Args and Raises: as `load_feature_network`."""
    # The published code asks torchvision for the pretrained network, which then rescales its input from ImageNet's mean
    # and deviation to [-1, 1]; `inception`, the network of the metrics, has the same weights without that.
    resize = "bilinear_corners_transform_input" if embedding == PUBLISHED else None
    return load_feature_network(
        network_name(embedding), data_root, dataset_name, weights, resize, device, weights_flag="--embedding_weights"
    )


def class_indices(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class that has any, in the order of the classes: increasing int64 arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def compute_scores(
    dataset: ImageSet, network: FeatureNetwork, density_measure: str, batch_size: int, ranks: Ranks
) -> np.ndarray:
    """Density score of every image among those of its class; the classes are divided over the ranks.

    Args: network: on the ranks' device; density_measure: key of DENSITY_MEASURES; batch_size: images a pass.
    Returns: float64 (N,), the same on all ranks.
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


def keep(scores: np.ndarray, labels: np.ndarray, retention_ratio: float) -> np.ndarray:
    """Which images are kept: of each class those above the (100 - retention_ratio)th percentile of its scores.

    The percentile is numpy's (linear) and the comparison strict, as published; where ties leave none above, the class
    keeps its best, so that no class becomes empty.
    Args: scores: float (N,); labels: int (N,); retention_ratio: in (0, 100]. Returns: bool (N,).
    """
    kept = np.full(len(scores), retention_ratio == 100)
    for indices in class_indices(labels) if retention_ratio < 100 else []:
        own = scores[indices]
        above = own > np.percentile(own, 100 - retention_ratio)
        kept[indices] = above if above.any() else own == own.max()
    return kept


def scores_key(content: str, network: FeatureNetwork, density_measure: str) -> dict:
    """All that the scores of a data set depend on: a dict of plain values, stored with them."""
    about = {"version": VERSION, "content": content, "density_measure": density_measure}
    return about | {"embedding": network.name, "resize": network.resize, "weights_hash": network.weights_hash}


def save_scores(path: Path, scores: np.ndarray, key: dict) -> None:
    with utils.atomic_path(path) as temporary:
        np.savez(temporary, scores=scores, key=json.dumps(key))


def _read(path):
    """Scores and their key. Raises: one of UNREADABLE."""
    arrays = utils.load_npz(path)
    scores, key = arrays["scores"], json.loads(arrays["key"].item())
    if not isinstance(key, dict) or scores.ndim != 1 or scores.dtype != np.float64 or not np.isfinite(scores).all():
        raise ValueError("not scores")
    return scores, key


def read_scores(path: Path, key: dict) -> np.ndarray | None:
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


def stored_scores(options: SelectionOptions, data: DataOptions, dataset: ImageSet, content: str) -> np.ndarray:
    """The scores (N,) of a data set as they are stored, whatever weights they were made with.

    Raises: utils.UserError if there are none, or if they are of other images.
    """
    path = options.path(data.data_root, dataset.name)
    try:
        scores, key = _read(path)
    except UNREADABLE:
        key = {}
    if key.get("content") != content or len(scores) != len(dataset):
        raise utils.UserError(
            f"no scores of these images in {path}; make them with: python instance_selection.py --dataset "
            f"{data.dataset} --data_root {data.data_root} --embedding {options.embedding} "
            f"--density_measure {options.density_measure}"
        )
    return scores


def load_scores(
    options: SelectionOptions,
    data_root: str | Path,
    dataset: ImageSet,
    content: str,
    ranks: Ranks,
    *,
    weights: str | None,
    batch_size: int,
    overwrite: bool = False,
) -> tuple[np.ndarray, dict]:
    """The scores of a data set, from data_root, or computed on all ranks and stored there.

    Args: content: of the data set, as `doctor.examine` gives it; weights: file of the embedding's; batch_size: images
        a pass.
    Returns: float64 (N,) and its key, the same on all ranks.
    """
    network = options.load_network(data_root, dataset.name, weights, ranks.device)
    command = statistics_command(dataset.name, data_root, network.name)
    fitted = classifier_path(data_root, dataset.name)
    check_content(network.fitted.get("content"), content, fitted, dataset.path, command)
    path, measure = options.path(data_root, dataset.name), options.density_measure
    key = scores_key(content, network, measure)

    def look():
        found = None if overwrite else read_scores(path, key)
        if found is not None and len(found) != len(dataset):
            found = None
        if found is None:
            utils.check_writable(path.parent)
        return found

    scores = on_ranks(ranks, look)  # rank 0 decides, so that all ranks compute or none does
    if scores is None:
        if ranks.is_main:
            print(f"scoring {len(dataset):,} images ({options.embedding}, {measure}) for {path}", flush=True)
        scores = compute_scores(dataset, network, measure, batch_size, ranks)
        on_ranks(ranks, lambda: save_scores(path, scores, key))
    return scores, key
