"""What is in a data set: its classes and their sizes, images that occur twice, images of one colour, and a picture.

    python dataset_doctor.py --dataset digits [--json]
    python dataset_doctor.py --dataset I64_hdf5 --retention_ratio 40    also what instance selection keeps per class

One pass over all pixels; its findings are kept beside the data set in NAME_doctor.json and NAME_doctor.png, and read
from there as long as the file does not change. make_hdf5.py, calculate_inception_moments.py and train.py make the pass
where it is missing.
"""

import argparse
import contextlib
import json
import sys

import numpy as np

import utils
from image_datasets import doctor
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.loading import DataOptions
from selection.scores import SelectionOptions, keep, stored_scores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser("Report what is in a data set: classes, duplicates, odd images; and draw a picture.")
    DataOptions.add_to(parser, only=("dataset", "data_root"))
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    parser.add_argument(
        "--overwrite", action=argparse.BooleanOptionalAction, default=False, help="examine again what has been before"
    )
    SelectionOptions.add_to(parser)
    return parser.parse_args(argv)


def kept_counts(
    options: SelectionOptions, data: DataOptions, dataset: HDF5Dataset, findings: dict
) -> np.ndarray | None:
    """Images that instance selection keeps of each class, ints (num_classes,), or None where all are kept."""
    if options.keeps_all:
        return None
    scores = stored_scores(options, data, dataset, findings["content"])
    kept = keep(scores, dataset.labels, options.retention_ratio)
    return np.bincount(dataset.labels[kept], minlength=dataset.num_classes)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of classes and files need not be text
    options, data = SelectionOptions.of(args), DataOptions.of(args)
    dataset = data.open()
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        findings = doctor.examine(dataset, overwrite=args.overwrite)
    kept = kept_counts(options, data, dataset, findings)
    if args.json:
        print(json.dumps(findings | ({} if kept is None else {"kept": kept.tolist()}), indent=1))
    else:
        doctor.print_report(findings, kept)


if __name__ == "__main__":
    utils.run_main(main)
