"""Instance selection: train on the part of each class that lies where its images are densest.

    python instance_selection.py --dataset I64_hdf5 --retention_ratio 40 --embedding inceptionv3
    train.py --retention_ratio 40 ...       (uses the scores that are there, or computes them first)

DeVries, Drozdzal, Taylor 2020, "Instance Selection for GANs", arXiv:2007.15255: a feature network embeds the images,
each gets a score of how dense its class is around it (`selection/measures.py`), and of each class those above a
percentile are kept. Scores are computed once and stored under --data_root (`selection/scores.py`).

Symbols: N images of the data set.
"""

import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import dataset_doctor
import utils
from image_datasets import loading
from selection.scores import add_selection_args, class_indices, embedding_weights, keep, load_scores, scores_path
from torch_utils.images import image_grid, save_image

SHEET_CLASSES, SHEET_IMAGES = 10, 5  # of the picture: classes, and images of each at either end


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


@dataclass(frozen=True)
class Selection:
    """The kept images of a data set: `subset`, a loading.Subset of `dataset`; the flags; the scores' key."""

    dataset: loading.HDF5Dataset
    subset: loading.Subset
    retention_ratio: float
    embedding: str
    density_measure: str
    key: dict

    @property
    def suffix(self):
        """What the name under which the statistics of the kept images are stored ends in."""
        return f"rr{self.retention_ratio:g}_{self.embedding}_{self.density_measure}"

    def counts(self):
        """Images of each class that has any, all and kept, and their class ids: three int64 arrays."""
        classes, images = np.unique(self.dataset.labels, return_counts=True)
        return classes, images, np.bincount(self.subset.labels, minlength=classes[-1] + 1)[classes]

    def record(self):
        """Text that tells this selection from another, by other images or weights too."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return f"{len(self.subset)} images of {self.dataset.name}_{self.suffix}, scores {digest[:16]}"

    def describe(self):
        """One line: how many images are kept."""
        _, _, kept = self.counts()
        return (
            f"instance selection keeps {len(self.subset):,} of {len(self.dataset):,} images "
            f"({self.embedding}, {self.density_measure}); {kept.min():,} to {kept.max():,} a class"
        )


def select(args, dataset, content, ranks):
    """The Selection that the flags ask for, after printing what it keeps, or None if all images are kept.

    Args: args: the flags of `add_selection_args` and of the metrics, and data_root; content: see `load_scores`.
    Raises: as `load_scores`.
    """
    if args.retention_ratio == 100:
        return None
    scores, key = load_scores(args, dataset, content, ranks, embedding_weights(args))
    selection = make_selection(args, dataset, scores, key)
    if ranks.is_main:
        print(report(selection))
    return selection


def make_selection(args, dataset, scores, key):
    subset = loading.Subset(dataset, np.flatnonzero(keep(scores, dataset.labels, args.retention_ratio)))
    return Selection(dataset, subset, args.retention_ratio, args.embedding, args.density_measure, key)


# ---------------------------------------------------------------------------------------------------------------------
# The script


def parse_args(argv=None):
    parser = utils.ArgumentParser("Score the images of a data set by density and say which of them would be kept.")
    loading.add_data_args(parser, loader=False)
    add_selection_args(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--metric_batch_size", type=utils.positive_int, default=64, help="images a pass")
    run.add_argument("--overwrite", action="store_true", help="compute scores again that are there, replace --out")
    run.add_argument("--out", metavar="FILE", help="also write the kept images as a data set, ending in .hdf5")
    run.add_argument("--json", action="store_true", help="print one JSON object, all classes in it, and nothing else")
    utils.add_device_args(run)
    args = parser.parse_args(argv)
    if args.dataset is None:
        parser.error("--dataset is required: the name of a data set made by make_hdf5.py")
    return args


def main(argv=None):
    args = parse_args(argv)
    quiet = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with quiet, utils.process_group(args.device) as ranks:
        dataset = loading.open_dataset(args.dataset, args.data_root, args.load_in_mem)
        check_out(args, dataset)
        content = utils.on_main(ranks, lambda: dataset_doctor.introduce(dataset))["content"]
        scores, key = load_scores(args, dataset, content, ranks, args.embedding_weights, args.overwrite)
        if not ranks.is_main:
            return
        selection = make_selection(args, dataset, scores, key)
        path = scores_path(args.data_root, dataset.name, args.embedding, args.density_measure)
        print(report(selection))
        sheet, classes = score_sheet(dataset, scores)
        save_image(sheet, path.with_suffix(".png"))
        print(f"scores: {path}")
        print(f"wrote {path.with_suffix('.png')} (rows: {', '.join(dataset.class_names[c] for c in classes)})")
        if args.out:
            write_subset(args.out, selection)
    if args.json:
        print(json.dumps(table(selection), indent=1))


def report(selection):
    """Two lines: how many images are kept, and of which classes fewest and most."""
    classes, images, kept = selection.counts()
    names = selection.dataset.class_names
    few, many = (f"{names[classes[i]]} ({kept[i]:,} of {images[i]:,})" for i in (kept.argmin(), kept.argmax()))
    return f"{selection.describe()}\nfewest of class {few}, most of class {many}"


def table(selection):
    """The selection and the counts of each class, for JSON."""
    names = selection.dataset.class_names
    rows = [
        {"class": names[c], "num_images": n, "kept": kept}
        for c, n, kept in zip(*(array.tolist() for array in selection.counts()), strict=True)
    ]
    flags = {name: getattr(selection, name) for name in ("retention_ratio", "embedding", "density_measure")}
    counts = {"num_images": len(selection.dataset), "kept": len(selection.subset)}
    return {"dataset": selection.dataset.name, **flags, **counts, "scores_key": selection.key, "classes": rows}


def score_sheet(dataset, scores):
    """A picture of up to 10 classes, spread over all: in each row the 5 densest images, then the 5 sparsest.

    Returns: PIL image, class ids of the rows.
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
    grid = image_grid(images.flatten(0, 1), columns, ["densest", *[""] * (columns - 2), "sparsest"])
    return grid, [int(dataset.labels[indices[0]]) for indices in groups]


def check_out(args, dataset):
    """Raise utils.UserError if --out cannot be written or would replace something that is not to be replaced."""
    if not args.out:
        return
    out = Path(args.out)
    if out.suffix not in (".hdf5", ".h5"):
        raise utils.UserError(f"--out {out}: the name must end in .hdf5")
    if out.exists() and out.samefile(dataset.path):
        raise utils.UserError(f"--out {out} is the data set itself; name another file")
    if out.exists() and not args.overwrite:
        raise utils.UserError(f"--out {out} exists; name another file, or replace a former result with --overwrite")


def write_subset(out, selection):
    """Write the kept images as a data set of its own."""
    import make_hdf5  # here, because training does not need it

    subset, source = selection.subset, selection.dataset.source or selection.dataset.name
    make_hdf5.check_disk(Path(out), len(subset), subset.resolution)
    images = (image for block, _ in loading.iterate(subset, 256) for image in block.numpy())
    rule = selection.dataset.crop_resize or "unknown"
    make_hdf5.write_hdf5(out, images, subset.labels, subset.class_names, f"{source}; {selection.describe()}", rule)
    print(f"wrote {out}: {len(subset):,} images")


if __name__ == "__main__":
    utils.run_main(main)
