"""Instance selection: the part of each class that lies where its images are densest.

DeVries, Drozdzal, Taylor 2020, "Instance Selection for GANs", arXiv:2007.15255: a feature network embeds the images,
each gets a score of how dense its class is around it (`measures.py`), and of each class those above a percentile are
kept. Scores are computed once and stored under --data_root (`scores.py`).

Symbols: N images of the data set.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import utils
from image_datasets.image_sets import ImageSet, Subset
from image_datasets.loading import iterate
from image_datasets.writing import write_hdf5
from metrics.networks import FeatureOptions
from selection.scores import SelectionOptions, class_indices, keep, load_scores
from torch_utils.distributed import Ranks
from torch_utils.images import image_grid

SHEET_CLASSES, SHEET_IMAGES = 10, 5  # of the picture: classes, and images of each at either end


@dataclass(frozen=True)
class Selection:
    """The kept images of a data set: `subset` of `dataset`; the options; the scores' key."""

    dataset: ImageSet
    subset: Subset
    options: SelectionOptions
    key: dict

    @property
    def suffix(self) -> str:
        """What the name under which the statistics of the kept images are stored ends in."""
        return f"rr{self.options.retention_ratio:g}_{self.options.embedding}_{self.options.density_measure}"

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The classes that have any images, and how many they have, all and kept: three int64 arrays."""
        classes, images = np.unique(self.dataset.labels, return_counts=True)
        return classes, images, np.bincount(self.subset.labels, minlength=classes[-1] + 1)[classes]

    def record(self) -> str:
        """Text that tells this selection from another, by other images or weights too."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return f"{len(self.subset)} images of {self.dataset.name}_{self.suffix}, scores {digest[:16]}"

    def describe(self) -> str:
        """One line: how many images are kept."""
        _, _, kept = self.counts()
        return (
            f"instance selection keeps {len(self.subset):,} of {len(self.dataset):,} images "
            f"({self.options.embedding}, {self.options.density_measure}); {kept.min():,} to {kept.max():,} a class"
        )


def select(
    options: SelectionOptions, metrics: FeatureOptions, data_root: str, dataset: ImageSet, content: str, ranks: Ranks
) -> Selection | None:
    """The selection that the options ask for, after printing what it keeps, or None if all images are kept.

    Args: metrics: for weights and batch size; content: see `load_scores`. Raises: as `load_scores`.
    """
    if options.keeps_all:
        return None
    machine = {"weights": options.weights(metrics), "batch_size": metrics.metric_batch_size}
    selection = make_selection(options, dataset, *load_scores(options, data_root, dataset, content, ranks, **machine))
    if ranks.is_main:
        print(report(selection))
    return selection


def make_selection(options: SelectionOptions, dataset: ImageSet, scores: np.ndarray, key: dict) -> Selection:
    """scores (N,) and key: of `load_scores`."""
    kept = keep(scores, dataset.labels, options.retention_ratio)
    return Selection(dataset, Subset(dataset, np.flatnonzero(kept)), options, key)


def report(selection: Selection) -> str:
    """Two lines: how many images are kept, and of which classes fewest and most."""
    classes, images, kept = selection.counts()
    names = selection.dataset.class_names
    ends = ((utils.printable(names[classes[i]]), kept[i], images[i]) for i in (kept.argmin(), kept.argmax()))
    few, many = (f"{name} ({kept_here:,} of {all_here:,})" for name, kept_here, all_here in ends)
    return f"{selection.describe()}\nfewest of class {few}, most of class {many}"


def table(selection: Selection) -> dict:
    """The selection and the counts of each class, for JSON."""
    names = selection.dataset.class_names
    rows = [
        {"class": names[c], "num_images": n, "kept": kept}
        for c, n, kept in zip(*(array.tolist() for array in selection.counts()), strict=True)
    ]
    flags = selection.options.record()
    del flags["embedding_weights"]
    counts = {"num_images": len(selection.dataset), "kept": len(selection.subset)}
    return {"dataset": selection.dataset.name, **flags, **counts, "scores_key": selection.key, "classes": rows}


def score_sheet(dataset: ImageSet, scores: np.ndarray) -> tuple[Image.Image, list[int]]:
    """A picture of up to 10 classes, spread over all: in each named row the 5 densest images, then the 5 sparsest.

    Returns: the picture, class ids of the rows.
    """
    groups = class_indices(dataset.labels)
    groups = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, SHEET_CLASSES).astype(int))]
    columns = 2 * SHEET_IMAGES + 1  # an empty one between the two ends
    shape = (len(groups), columns, 3, dataset.resolution, dataset.resolution)
    images = torch.full(shape, 255, dtype=torch.uint8)
    for row, indices in enumerate(groups):
        order = indices[np.argsort(-scores[indices], kind="stable")]
        densest, sparsest = order[:SHEET_IMAGES], order[SHEET_IMAGES:][-SHEET_IMAGES:]
        images[row, : len(densest)] = dataset.read(densest)
        if len(sparsest):
            images[row, -len(sparsest) :] = dataset.read(sparsest)
    classes = [int(dataset.labels[indices[0]]) for indices in groups]
    names = [utils.numbered(c, dataset.class_names) for c in classes]
    blank = [""] * (SHEET_IMAGES - 1)
    heads = ["densest first", *blank, "", "sparsest last", *blank]
    return image_grid(images.flatten(0, 1), columns, heads, left=names), classes


def write_subset(out: str | Path, selection: Selection) -> None:
    """Write the kept images as a data set of its own."""
    subset, source = selection.subset, selection.dataset.source or selection.dataset.name
    images = (image for block, _ in iterate(subset, 256) for image in block.numpy())
    rule = selection.dataset.crop_resize or "unknown"
    source = source.encode(errors="surrogateescape").decode(errors="backslashreplace")  # of a name that is no text
    write_hdf5(out, images, subset.labels, subset.class_names, f"{source}; {selection.describe()}", rule)
    print(f"wrote {out}: {utils.counted(len(subset), 'image')}")
