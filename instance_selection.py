"""Instance selection: train on the part of each class that lies where its images are densest.

    python instance_selection.py --dataset I64_hdf5 --retention_ratio 40 --embedding inceptionv3
    train.py --retention_ratio 40 ...       (uses the scores that are there, or computes them first)

DeVries, Drozdzal, Taylor 2020, "Instance Selection for GANs", arXiv:2007.15255: a feature network embeds the images,
each gets a score of how dense its class is around it (`selection/measures.py`), and of each class those above a
percentile are kept. Scores are computed once and stored under --data_root (`selection/scores.py`).

Symbols: N images of the data set.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import utils
from image_datasets import doctor
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.loading import DataOptions
from image_datasets.writing import check_disk
from sampling.classes import listed
from selection.scores import SelectionOptions, load_scores
from selection.selection import make_selection, report, score_sheet, table, write_subset
from torch_utils import distributed
from torch_utils.images import save_image


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser("Score the images of a data set by density and say which of them would be kept.")
    DataOptions.add_to(parser, only=("dataset", "data_root", "load_in_mem"))
    SelectionOptions.add_to(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--metric_batch_size", type=utils.positive_int, default=64, help="images a pass")
    run.add_argument("--overwrite", action="store_true", help="compute scores again that are there, replace --out")
    run.add_argument("--out", metavar="FILE", help="also write the kept images as a data set, ending in .hdf5")
    run.add_argument("--json", action="store_true", help="print one JSON object, all classes in it, and nothing else")
    distributed.add_device_arg(run)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    data, options = DataOptions.of(args), SelectionOptions.of(args)
    quiet = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with quiet, distributed.process_group(args.device) as ranks:
        dataset = data.open()
        distributed.on_ranks(ranks, lambda: check_out(args.out, args.overwrite, options, dataset, data.data_root))
        content = distributed.on_ranks(ranks, lambda: doctor.introduce(dataset))["content"]
        machine = {"weights": options.embedding_weights, "batch_size": args.metric_batch_size}
        about = (options, data.data_root, dataset, content, ranks)
        scores, key = load_scores(*about, **machine, overwrite=args.overwrite)
        if not ranks.is_main:
            return
        selection = make_selection(options, dataset, scores, key)
        print(report(selection))
        path = options.path(data.data_root, dataset.name)
        sheet, classes = score_sheet(dataset, scores)
        save_image(sheet, path.with_suffix(".png"))
        print(f"scores: {path}")
        print(f"wrote {path.with_suffix('.png')} (rows: {listed(classes, dataset.class_names)})")
        if args.out:
            write_subset(args.out, selection)
    if args.json:
        print(json.dumps(table(selection), indent=1))


def check_out(
    out: str | None, overwrite: bool, options: SelectionOptions, dataset: HDF5Dataset, data_root: str
) -> None:
    """Raise utils.UserError if scores, picture or --out cannot be written, or what is there is not to be replaced.

    Says how large --out will be, and whether its disk has room, before the hours that scoring can take.
    """
    utils.check_writable(data_root)
    if not out:
        return
    out = Path(out)
    if out.suffix not in (".hdf5", ".h5"):
        raise utils.UserError(f"--out {out}: the name must end in .hdf5")
    if out.exists() and out.samefile(dataset.path):
        raise utils.UserError(f"--out {out} is the data set itself; name another file")
    if out.exists() and not overwrite:
        raise utils.UserError(f"--out {out} exists; name another file, or replace a former result with --overwrite")
    utils.check_writable(out.parent)
    check_disk(out, options.num_kept(dataset.labels), dataset.resolution)


if __name__ == "__main__":
    utils.run_main(main)
