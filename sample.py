"""Images from a checkpoint: sheets, interpolations, and any number of images as PNG files or one npz.

    python sample.py runs/quickstart
    python sample.py runs/quickstart --num_samples 1000 --format both --truncation 0.7 --out samples_t07

Image i of a seed is a function of (seed, i): its z and class depend neither on the batch size nor on how many images
are made, and its pixels at most by rounding.

Symbols: N images, resolution R, K classes of the model.
"""

import argparse
import contextlib
import os
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

import BigGAN
import utils
from sampling import batch_norm
from sampling.batch_norm import BatchNormMode
from sampling.class_sampling import ClassSampling
from sampling.classes import class_ids, listed, pages, spread_classes
from sampling.files import npz_writer, png_writer
from sampling.generate import SamplingOptions, check_fits, describe, generate
from sampling.latents import Truncation, balanced_labels, shuffled_labels
from sampling.sheets import (
    COLUMNS,
    SheetOptions,
    class_interpolation_sheet,
    class_sheet,
    random_sheet,
    truncation_samples,
    truncation_sheet,
    z_interpolation_sheet,
)
from torch_utils import checkpoints, distributed, memory
from torch_utils.images import save_image
from torch_utils.memory import keep_freed_blocks
from torch_utils.mixed_precision import PrecisionOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser("Write sample sheets, and on request many images, of a checkpoint.", "CHECKPOINT")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file, or a run folder: its best checkpoint")
    group = SamplingOptions.add_to(parser)
    group.add_argument("--batch_size", type=utils.positive_int, default=64, help="single images at a time")
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="only these classes, by number (from 0) or name; all: every one, in sheets of up to 10 classes each; "
        "None: 10 in sheets, all in single images. A name that begins with - is given as --classes=-NAME",
    )
    ClassSampling.add_to(parser)
    PrecisionOptions.add_to(parser, only=("amp", "tf32"))
    BatchNormMode.add_to(parser, bn_mode=None)
    SheetOptions.add_to(parser).add_argument(
        "--truncations",
        nargs="+",
        type=_limit,
        metavar="T",
        help="also a sheet of these truncations side by side, with the same z; none: the whole normal distribution",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--out", help="folder to write to; None: samples/ in the checkpoint's run folder")
    group.add_argument("--sheets", action=argparse.BooleanOptionalAction, default=True, help="write the sample sheets")
    group.add_argument("--rows", type=utils.positive_int, default=10, help="rows of a sheet")
    group.add_argument("--num_samples", type=utils.count, default=0, metavar="N", help="also write N single images")
    group.add_argument(
        "--format",
        choices=("png", "npz", "both", "pdf"),
        default="png",
        help="how to write the N images; pdf: as png, and the sheets as PDF, with exact pixels",
    )
    return parser.parse_args(argv)


def _limit(text):
    """argparse type: a truncation above 0, or None for `none`."""
    try:
        limit = None if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor none") from None
    if limit is not None and not 0 < limit < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive; none stands for the whole normal distribution")
    return limit


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = SamplingOptions.of(args)
    if not args.sheets and not args.num_samples:
        raise utils.UserError("--no-sheets without --num_samples N: there is nothing to write")
    for_sheets = [name for name in ("interpolation", "fix_z", "fix_y", "truncations") if getattr(args, name)]
    if for_sheets and not args.sheets:
        raise utils.UserError(f"--{for_sheets[0]} is of sheets alone: leave it out, or --no-sheets")
    if args.num_samples:  # a sheet's few images do not pay for what it costs
        keep_freed_blocks()
    device = distributed.resolve_device(options.device)
    G, meta = BigGAN.load_generator(args.checkpoint, device, options.ema)
    PrecisionOptions.of(args).apply(G)
    K = G.config.n_classes
    names = meta.get("class_names") or [str(c) for c in range(K)]
    if args.sheets:
        image = 5 * 3 * G.config.resolution**2 + 4 * G.config.dim_z  # its pixels as floats and as bytes, and its z
        memory.check_fits(args.rows * COLUMNS * image, torch.device("cpu"), f"--rows {args.rows}", "lower it")
    check_fits(G.config, min(args.batch_size, args.num_samples), device, "--batch_size")
    chosen = class_ids(args.classes, names) if args.classes else None
    out = Path(args.out) if args.out else checkpoints.samples_folder(Path(meta["path"]))
    _check_out(out, args, G.config.resolution)
    points = [limit and Truncation(limit, options.chosen_kind(meta)) for limit in args.truncations or ()]
    truncation = options.chosen_truncation(meta)
    print(describe(G, meta, device) + (f", z {truncation.kind} {truncation.limit:g}" if truncation else ""))
    own = options.own_truncation(meta)
    mode = batch_norm.chosen_mode(vars(args), truncation, own)
    mode.check_fits(G.config, device)
    counts = _class_counts(args, chosen, meta, K)
    whole_G = G
    with batch_norm.prepared(G, mode, options.seed, truncation, counts) as G:
        if args.sheets:
            _write_sheets(G, names, args, chosen, truncation, out)
        if args.num_samples:
            classes = chosen or list(range(K))
            _write_samples(G, names, args, mode, classes, truncation, out, counts)
    if args.sheets and points:
        mode = batch_norm.chosen_mode(vars(args), next((t for t in points if t != own), own), own)  # suits them all
        _write_truncations(whole_G, names, args, mode, chosen, points, out, counts)


def _class_counts(args, chosen, meta, n_classes):
    """What classes are drawn by (`ClassSampling.counts`); those that --classes names evenly, unless asked otherwise."""
    if args.class_sampling is None and (chosen or not args.num_samples):
        return None
    holder = meta["path"] if "data" in meta else None  # a converted checkpoint, which knows no data, says nothing
    counts = ClassSampling.of(args).counts(meta.get("class_counts"), n_classes, holder)
    if counts and not sum(counts[c] for c in chosen or range(n_classes)):
        raise utils.UserError("--class_sampling data: the data has no images of these --classes")
    return counts


def _check_out(out, args, resolution):
    """Find out before any work whether the results will have a place. Raises: utils.UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"--out {out}: cannot make this folder ({error.strerror})") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise utils.UserError(f"--out {out}: no permission to write there; choose another folder with --out")
    folder = out / "images"
    if args.num_samples and args.format != "npz" and folder.exists() and any(folder.iterdir()):
        raise utils.UserError(f"{folder} already holds images: remove it, or choose another folder with --out")
    needed, free = args.num_samples * 3 * resolution**2, shutil.disk_usage(out).free
    if needed > free:
        raise utils.UserError(f"--out {out}: {needed / 1e9:.1f} GB may be needed, {free / 1e9:.1f} GB are free")


def _write_sheets(G, names, args, chosen, truncation, out):
    """The sheets of the classes `chosen`, of 10 spread over all if None. names: of all classes."""
    K, spread = G.config.n_classes, spread_classes(G.config.n_classes)
    part = chosen if chosen and len(chosen) < K else None  # where not all are asked for
    ends, common, options = part or spread, (G, args.rows, args.seed, truncation), SheetOptions.of(args)
    for path, classes in _class_sheets(out, chosen or spread):
        what = f"columns: {listed(classes, names)}"
        if not chosen and len(spread) < K:
            what = f"{len(spread)} of {K} classes, --classes all draws each; {what}"
        _save(class_sheet(*common, classes, names), path, what, args)
    classes_of = f"classes of: {listed(part, names)}" if part else "classes"
    fixed = " ".join(f"--{name}" for name in ("fix_z", "fix_y") if getattr(options, name))
    random = f"{fixed}: the rest random" if fixed else "random z and classes"
    sheet = random_sheet(*common, chosen, options)
    _save(sheet, out / "random_sheet.png", f"{random}{classes_of.removeprefix('classes')}", args)
    sheet = z_interpolation_sheet(*common, ends, names, options)
    _save(sheet, out / "interpolation_z.png", "from one z to another, class fixed", args)
    if len(ends) > 1:
        sheet = class_interpolation_sheet(*common, ends, names, options)
        _save(sheet, out / "interpolation_class.png", "from one class to another, z fixed", args)
        sheet = class_interpolation_sheet(*common, ends, names, options, with_z=True)
        _save(sheet, out / "interpolation_both.png", "from one z and class to another", args)


def _write_truncations(G, names, args, mode, chosen, points, out, counts):
    """The sheet of truncations side by side; points: Truncations, None for none. Each has its own statistics."""
    classes = (chosen or spread_classes(G.config.n_classes))[: args.rows]
    images = []
    for point in points:
        with batch_norm.prepared(G, mode, args.seed, point, counts) as prepared:
            images.append(truncation_samples(prepared, classes, len(points), args.seed, point))
    titles = [f"truncation {point.limit:g}" if point else "not truncated" for point in points]
    sheet = truncation_sheet(images, titles, classes, names)
    _save(sheet, out / "truncation_sheet.png", f"the same z in each block: {', '.join(titles)}", args)


def _class_sheets(out, classes):
    """Path and classes of each sheet with a class a column: none of a single class, several of more than 10."""
    if len(classes) == 1:
        return []
    parts = pages(classes)
    digits, number = len(str(len(parts))), len(parts)
    paths = [out / f"class_sheet_{i + 1:0{digits}}_of_{number}.png" for i in range(number)]
    return zip(paths if number > 1 else [out / "class_sheet.png"], parts, strict=True)


def _save(image, path, what, args):
    path = path.with_suffix(".pdf") if args.format == "pdf" else path
    save_image(image, path)
    print(f"wrote {utils.printable(str(path))} ({what})")


def _write_samples(G, names, args, mode, classes, truncation, out, counts):
    counts = counts and [counts[c] for c in classes]
    to_make, batch_size = balanced_labels(args.num_samples, classes, counts), args.batch_size
    if mode.block_size:  # whole blocks, whatever the number of images, so that each has its block's statistics
        to_make = shuffled_labels(args.seed, mode.whole(args.num_samples), classes, counts)
        batch_size = mode.block_size
    y = to_make[: args.num_samples]
    writers = {}
    if args.format != "npz":
        writers[out / "images"] = png_writer(out / "images", y, names)
    if args.format in ("npz", "both"):
        writers[out / "samples.npz"] = npz_writer(out / "samples.npz", y, G.config.resolution)
    with contextlib.ExitStack() as stack, tqdm(total=len(y), unit="img", disable=None) as bar:
        write_functions = [stack.enter_context(writer) for writer in writers.values()]
        left = len(y)
        for images in generate(G, to_make, args.seed, batch_size, truncation):
            wanted = images[:left]  # all, but for a last block that is made whole
            for write in write_functions:
                write(wanted)
            left -= len(wanted)
            bar.update(len(wanted))
    for path in writers:
        print(f"wrote {utils.printable(str(path))} ({utils.counted(len(y), 'image')})")


if __name__ == "__main__":
    utils.run_main(main)
