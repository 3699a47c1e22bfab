"""Make a data set: bring images to one size and write them, with their labels, to one HDF5 file.

    python make_hdf5.py --dataset digits
    python make_hdf5.py --dataset shapes --num_images 20000
    python make_hdf5.py --dataset folder --images photos --resolution 64 --out data/photos.hdf5
    python make_hdf5.py --dataset C10 --images /torchvision/root
    python make_hdf5.py --dataset I128 --images /imagenet/train

The file holds `imgs` uint8 (N,3,R,R) and `labels` int64 (N,), contiguous, the `paths` of the images' files, and
attributes, see docs/architecture.md. `image_datasets/loading.py` reads it, `image_datasets/writing.py` lays it out and
goes on after an interruption.
"""

import argparse
import math
import os
import signal
import sys
from pathlib import Path

import utils
from image_datasets import decoding, doctor, layouts, loading, sources, writing
from image_datasets.cifar import LAYOUTS as CIFAR
from image_datasets.cifar import cifar_source
from image_datasets.shapes import shapes_source

MAX_NAME = 160  # bytes of a data set's name
EMBEDDED = ("digits", "shapes")  # which need no files
IMAGENET = {"I32": 32, "I64": 64, "I128": 128, "I256": 256}  # the family's names and the resolutions they stand for


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        # File names need not be text; a log file shall tell what is being done while it is.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    resolution, out = target(args)
    source = find_images(args)
    rule = decoding.rule(resolution, args.range)
    if not args.overwrite and already_there(out, source, rule):
        writing.remove_leftovers(out)
        return
    writing.check_disk(out, len(source.images), resolution)
    writer = writing.ResumableWriter(out, source, resolution, rule, args.max_bad, args.range)
    try:
        unreadable = writer.run(args.num_workers, args.overwrite)
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    num_images = utils.counted(len(source.images) - len(unreadable), "image")
    classes = utils.counted(len(source.class_names), "class")
    order = f", in the order of the {source.class_order}" if source.class_order not in ("", layouts.AS_TEXT) else ""
    print(f"wrote {out}: {num_images} of {resolution}x{resolution}, {classes}{order}")
    if unreadable:
        print(f"left out {len(unreadable)} unreadable image(s), listed in {writing.report_path(out)}")
    doctor.introduce(loading.HDF5Dataset(out))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(
        "Make an HDF5 data set of a folder or zip of images, of ImageNet, of CIFAR, of the embedded digits or of drawn "
        "shapes. "
        "Interrupted, the same command goes on where it was."
    )
    group = parser.add_argument_group("images")
    group.add_argument(
        "--dataset", required=True, choices=[*EMBEDDED, "folder", *CIFAR, *IMAGENET],
        help="digits: the 1,797 embedded handwritten digits; shapes: 10 kinds of figures, drawn anywhere and in any "
        "colour; folder: your own images; C10, C100: CIFAR-10, CIFAR-100; "
        "I64 (I32, I128, I256): an ImageNet train folder at that resolution",
    )  # fmt: skip
    group.add_argument(
        "--images", metavar="PATH",
        help="folder with one sub-folder of images per class, or a zip of such, or a data set of StyleGAN's tools with "
        "its dataset.json; classes are numbered in the order of their names, as numbers where all are numbers "
        "(default for ImageNet: DATA_ROOT/ImageNet). For CIFAR the folder that holds torchvision's "
        "files, folder or .tar.gz, Python or binary version (default: DATA_ROOT)",
    )  # fmt: skip
    group.add_argument("--split", choices=["train", "test"], help="part of CIFAR (default: train)")
    group.add_argument(
        "--resolution", type=utils.positive_int,
        help="height and width of the result (default for digits, shapes, CIFAR: 32)",
    )  # fmt: skip
    group.add_argument(
        "--num_images", type=utils.positive_int,
        help="shapes: how many (default: 20000); the first ones are the same whatever their number",
    )  # fmt: skip
    group.add_argument("--seed", type=utils.count, help="shapes: of all that varies (default: 0)")
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    group.add_argument(
        "--unconditional", **switch,
        help="images without classes: --images holds them directly, or in a single sub-folder",
    )  # fmt: skip
    group.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="values of the images' files that become 0 and 255, such as 0 4095 for 12 bits kept in 16-bit files "
        "(default: the whole range of the files' type)",
    )  # fmt: skip
    group.add_argument(
        "--max_bad", type=utils.count, default=10,
        help="unreadable images are left out and listed in OUT.unreadable.txt; with more than this many it stops",
    )  # fmt: skip
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", metavar="FILE",
        help="file to write, ending in .hdf5 (default: DATA_ROOT/NAME.hdf5 with the name of the data set or folder, "
        "the family's ILSVRC64.hdf5 for I64, C10_test.hdf5 for the test split)",
    )  # fmt: skip
    group.add_argument("--data_root", default="data", help="folder of the data sets")
    group.add_argument("--overwrite", **switch, help="replace an existing or unfinished file")
    group.add_argument(
        "--num_workers", type=utils.positive_int, default=decoding.available_cores(),
        help="decoding processes; the result does not depend on it",
    )  # fmt: skip
    group.add_argument(
        "--batch_size", type=int, help="accepted from the command lines of other codebases; has no meaning here"
    )
    args = parser.parse_args(argv)
    if args.batch_size is not None:
        print("--batch_size has no meaning here: images are read one by one")
    if args.dataset in EMBEDDED and (args.images or args.unconditional):
        parser.error(f"--dataset {args.dataset} takes neither --images nor --unconditional")
    for flag in ("num_images", "seed"):
        if args.dataset != "shapes" and getattr(args, flag) is not None:
            parser.error(f"--{flag} is for --dataset shapes, not for {args.dataset}")
    if args.dataset in [*CIFAR, *IMAGENET] and args.unconditional:
        parser.error(f"--dataset {args.dataset} has classes; leave out --unconditional (train.py has such a flag)")
    if args.range and not (math.isfinite(args.range[1] - args.range[0]) and args.range[0] < args.range[1]):
        parser.error(f"--range {args.range[0]:g} {args.range[1]:g}: LOW must be below HIGH")
    if args.split and args.dataset not in CIFAR:
        parser.error(f"--split is for CIFAR, not for --dataset {args.dataset}")
    if args.dataset == "folder" and not (args.images and args.resolution):
        parser.error("--dataset folder needs --images PATH and --resolution R")
    if args.dataset in IMAGENET and args.resolution not in (None, IMAGENET[args.dataset]):
        parser.error(f"--dataset {args.dataset} has resolution {IMAGENET[args.dataset]}; leave out --resolution")
    return args


def target(args: argparse.Namespace) -> tuple[int, Path]:
    """Resolution and output path that the flags ask for. Raises: UserError for an unusable --out."""
    resolution = IMAGENET.get(args.dataset, args.resolution or 32)
    if args.dataset == "folder":
        out = Path(args.data_root) / f"{_shortened(layouts.folder_name(args.images))}.hdf5"
    else:
        out = loading.dataset_path(args.dataset + ("_test" if args.split == "test" else ""), args.data_root)
    out = Path(args.out or out)
    if out.suffix not in (".hdf5", ".h5"):
        raise utils.UserError(f"--out {out}: the name must end in .hdf5")
    if out.is_dir():
        raise utils.UserError(f"--out {out} is a folder")
    if len(os.fsencode(out.name)) > MAX_NAME:
        raise utils.UserError(
            f"--out {out}: its name has {len(os.fsencode(out.name))} bytes; choose one of {MAX_NAME} at most, as "
            "statistics and others are named after it"
        )
    return resolution, out


def _shortened(name):
    """A name that leaves room, in the 255 bytes that file systems allow, for what is named after it."""
    cut = os.fsencode(name)[: MAX_NAME - len(".hdf5")]
    return name if cut == os.fsencode(name) else cut.decode(errors="ignore") or "images"


def find_images(args: argparse.Namespace) -> sources.Source:
    """The images that the flags ask for."""
    if args.dataset == "digits":
        return sources.digits_source()
    if args.dataset == "shapes":
        return shapes_source(args.num_images or 20000, args.seed or 0, args.resolution or 32)
    if args.dataset in CIFAR:
        return cifar_source(args.dataset, args.images or args.data_root, args.split or "train")
    if args.dataset in IMAGENET:
        return sources.imagenet_source(args.images or Path(args.data_root) / "ImageNet")
    return sources.folder_source(args.images, args.unconditional)


def already_there(out: Path, source: sources.Source, rule: str) -> bool:
    """Whether `out` already holds these images (says so). Raises: UserError if it holds anything else."""
    if not out.exists():
        return False
    try:
        existing = loading.HDF5Dataset(out)
    except utils.UserError as error:
        raise utils.UserError(f"--out exists, but {error}; --overwrite replaces it") from error
    if (existing.source, existing.crop_resize) == (source.description, rule):
        _check_unchanged(out, existing, source)
        print(f"{out} is already there, nothing to do ({source.description}){_compared(existing, source)}")
        if left_out := len(source.images) - len(existing):
            print(f"{left_out} of them could not be read then and are left out; --overwrite tries again")
        return True
    made_from = f"from {existing.source}; {existing.crop_resize}" if existing.source else "elsewhere"
    raise utils.UserError(f"{out} exists, made {made_from}; --overwrite replaces it, --out writes another file")


def _check_unchanged(out, existing, source):
    """Raise UserError where files of the same names and sizes are others now. Earlier versions kept no stamp."""
    if existing.stamp and existing.stamp != source.stamp:
        raise utils.UserError(
            f"{out} exists, made from files of the same names and sizes that have changed since (compared: "
            f"{_what(existing.stamp)}); --overwrite makes it again, --out writes another file"
        )


def _compared(existing, source):
    """What "already there" rests on, and whether classes would be in another order today."""
    text = f"; compared: {_what(existing.stamp)}" if existing.stamp else ""
    if source.stamp and not existing.stamp:
        text = "; compared: names and sizes, as the file is of before more was kept"
    if existing.class_names != source.class_names:
        order = ", ".join(source.class_names[:4])
        text += (
            f"; its classes stay in the order of their names as text, --overwrite orders them as numbers: {order}, ..."
        )
    return text


def _what(stamp):
    return stamp.rpartition(": ")[0]


if __name__ == "__main__":
    utils.run_main(main)
