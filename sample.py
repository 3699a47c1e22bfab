"""Images from a checkpoint: sheets, interpolations, and any number of images as PNG files or one npz.

    python sample.py runs/quickstart
    python sample.py runs/quickstart --num_samples 1000 --format both --truncation 0.7 --out samples_t07

Image i of a seed is a function of (seed, i): its z and class depend neither on the batch size nor on how many images
are made, and its pixels at most by rounding.

Symbols: N images, resolution R, K classes of the model.
"""

import argparse
import contextlib
import math
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import BigGAN
import utils
from sampling import batch_norm
from sampling.latents import TRUNCATION_KINDS, Truncation, balanced_labels, latents, random_labels, shuffled_labels
from torch_utils.images import image_grid, save_image, to_uint8

COLUMNS = 10  # of every sheet
SHEET_BATCH = 20  # images at a time for a sheet: fits wherever training did
MAX_HEADER = 10  # characters above a column of about 64 pixels

# ---------------------------------------------------------------------------------------------------------------------
# Images


def generate(G, y, seed, batch_size, truncation=None, start=0, device=None):
    """Make images number start to start + N - 1 of a seed, in the mode (train or eval) that G is in.

    Args: y: class ids int64 (N,); truncation: see `latents`; device: G's own if None.
    Yields: uint8 CPU tensors (b,3,R,R), b being batch_size, or less in the last.
    Raises: utils.UserError if the GPU's memory is too small for the batch.
    """
    for first in range(0, len(y), batch_size):
        y_batch = y[first : first + batch_size]
        indices = range(start + first, start + first + len(y_batch))
        yield make_images(G, latents(seed, indices, G.config.dim_z, truncation), y_batch, device)


@torch.no_grad()
def make_images(G, z, y, device=None):
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K), in one forward: uint8 (N,3,R,R) on the CPU.

    Raises: utils.UserError if the GPU's memory is too small for them.
    """
    device = device or next(G.parameters()).device
    try:
        return to_uint8(G(z.to(device), y.to(device))).cpu()
    except torch.OutOfMemoryError as error:
        raise utils.UserError(f"{device} has too little free memory for {len(z)} images at a time") from error


def _render(G, z, y):
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K): uint8 (N,3,R,R), a few at a time."""
    batches = zip(z.split(SHEET_BATCH), y.split(SHEET_BATCH), strict=True)
    return torch.cat([make_images(G, z_batch, y_batch) for z_batch, y_batch in batches])


# ---------------------------------------------------------------------------------------------------------------------
# Sheets


def spread_classes(num_classes):
    """Up to 10 class ids, evenly spread over all."""
    columns = min(COLUMNS, num_classes)
    return [i * num_classes // columns for i in range(columns)]


def class_sheet(G, rows, seed, truncation=None, classes=None, class_names=None):
    """One class per column, one z per row: down a column only z differs, along a row only the class.

    Args: rows: images in a column; truncation: see `latents`; classes: the columns' class ids, 10 spread over all if
        None; class_names: names of all K classes, which head the columns if they are short (else the ids do).
    Returns: PIL image. A single class makes no columns: it is a `random_sheet`.
    """
    classes = classes or spread_classes(G.config.n_classes)
    if len(classes) == 1:
        return random_sheet(G, rows, seed, truncation, classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(len(classes), dim=0)
    images = _render(G, z, torch.tensor(classes).repeat(rows))
    return image_grid(images, columns=len(classes), labels=_headers(classes, class_names))


def random_sheet(G, rows, seed, truncation=None, classes=None):
    """Rows of 10 images with a z each and classes drawn from `classes` (all if None), as a PIL image."""
    num_images = rows * COLUMNS
    y = random_labels(seed, num_images, classes or range(G.config.n_classes))
    return image_grid(_render(G, latents(seed, range(num_images), G.config.dim_z, truncation), y), COLUMNS)


def z_interpolation_sheet(G, rows, seed, truncation=None, classes=None):
    """From one z to another along each row, whose class is fixed; the rows take turns through `classes`. PIL image.

    The path is cos(t pi/2) z0 + sin(t pi/2) z1: for independent normal ends every point on it is distributed as z is,
    whereas the middle of a straight line has half the variance, which G has never seen.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(2 * rows), G.config.dim_z, truncation)
    angle = torch.linspace(0, math.pi / 2, COLUMNS)[:, None]
    z = angle.cos() * z[0::2, None] + angle.sin() * z[1::2, None]  # (rows,10,dim_z)
    y = balanced_labels(rows, classes).repeat_interleave(COLUMNS)
    return image_grid(_render(G, z.flatten(0, 1), y), COLUMNS)


def class_interpolation_sheet(G, rows, seed, truncation=None, classes=None):
    """From one class to the next of `classes` along each row, whose z is fixed. PIL image.

    Every embedding of the class in G moves on a straight line from one class's to the other's.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(COLUMNS, dim=0)
    one_hot = torch.nn.functional.one_hot(balanced_labels(rows + 1, classes), G.config.n_classes).float()
    share = torch.linspace(0, 1, COLUMNS)[:, None]
    y = torch.lerp(one_hot[:-1, None], one_hot[1:, None], share)  # (rows,10,K)
    return image_grid(_render(G, z, y.flatten(0, 1)), COLUMNS)


def _headers(classes, class_names):
    names = [class_names[c] for c in classes] if class_names else classes
    return names if max(len(str(name)) for name in names) <= MAX_HEADER else classes


# ---------------------------------------------------------------------------------------------------------------------
# Many images in files. A writer is a context manager that gives a function, to be called with each batch, uint8
# (b,3,R,R), of the images in their order. What it writes appears when all is written, or not at all.


@contextlib.contextmanager
def npz_writer(path, y, resolution):
    """Write images with class ids y (N,) to an npz file in the layout of guided-diffusion (ADM).

    The file holds `arr_0` uint8 (N,R,R,3) and `arr_1` int64 (N,), uncompressed; only a batch is ever in memory.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(y), resolution, resolution, 3)}
    with utils.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, y.numpy(), allow_pickle=False)
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield lambda images: member.write(images.permute(0, 2, 3, 1).contiguous().numpy())


@contextlib.contextmanager
def png_writer(folder, y, class_names):
    """Write images with class ids y (N,) as `folder/<class>/<number of the image>.png`.

    The class folders are named by id and name, so that they sort as the ids do. `folder` must not exist or be empty.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    class_folders = [temporary / name for name in _class_folders(class_names)]
    numbered = enumerate(y.tolist())

    def write(images):
        for image, (i, c) in zip(images.permute(0, 2, 3, 1).numpy(), numbered, strict=False):
            Image.fromarray(image).save(class_folders[c] / f"{i:06d}.png")

    try:
        for c in y.unique().tolist():
            class_folders[c].mkdir(parents=True)
        yield write
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _class_folders(class_names):
    digits = len(str(len(class_names) - 1))
    safe = [re.sub(r"[^\w.-]+", "_", name) for name in class_names]
    return [f"{i:0{digits}}" if name == str(i) else f"{i:0{digits}}_{name}" for i, name in enumerate(safe)]


# ---------------------------------------------------------------------------------------------------------------------
# The script


def add_sampling_args(parser):
    """Add the flags of how a checkpoint's generator is used; returns their group."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--truncation",
        type=_truncation,
        help="truncate z to T; None: what a converted checkpoint was made for, else not at all",
        metavar="T",
    )
    group.add_argument(
        "--truncation_kind",
        choices=TRUNCATION_KINDS,
        help="how: redrawn beyond T, redrawn beyond 2 and times T, times T, or clamped to T; "
        "None: as where a converted checkpoint comes from, else truncated_normal",
    )
    group.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="G's moving average, if any")
    group.add_argument("--seed", type=utils.count, default=0, help="image i depends on the seed and i alone")
    utils.add_device_args(group)
    return group


def _truncation(text):
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def chosen_truncation(args, meta):
    """The Truncation of the flags, or of the convention of a converted checkpoint; None for none.

    Args: args: parsed flags; meta: as from BigGAN.load_generator.
    """
    convention = meta.get("convention", {})
    limit = args.truncation or convention.get("truncation")
    if limit is None:
        return None
    return Truncation(limit, chosen_truncation_kind(args, meta))


def chosen_truncation_kind(args, meta):
    """What truncating means by the flags, or by the convention of a converted checkpoint: of TRUNCATION_KINDS."""
    return args.truncation_kind or meta.get("convention", {}).get("truncation_kind", "truncated_normal")


def parse_args(argv=None):
    parser = utils.ArgumentParser("Write sample sheets, and on request many images, of a checkpoint.", "CHECKPOINT")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file, or a run folder: its best checkpoint")
    group = add_sampling_args(parser)
    group.add_argument("--batch_size", type=utils.positive_int, default=64, help="single images at a time")
    group.add_argument("--classes", type=utils.count, nargs="+", metavar="ID", help="only these classes; None: all")
    batch_norm.add_bn_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", help="folder to write to; None: samples/ in the checkpoint's run folder")
    group.add_argument("--sheets", action=argparse.BooleanOptionalAction, default=True, help="write the sample sheets")
    group.add_argument("--rows", type=utils.positive_int, default=10, help="rows of a sheet")
    group.add_argument("--num_samples", type=utils.count, default=0, metavar="N", help="also write N single images")
    group.add_argument("--format", choices=("png", "npz", "both"), default="png", help="how to write the N images")
    return parser.parse_args(argv)


def default_out(checkpoint):
    """Where the samples of a checkpoint file go: its run's samples/, or a folder beside a file outside of a run."""
    if checkpoint.parent.name == "weights":
        return checkpoint.parent.parent / "samples"
    return checkpoint.with_name(f"{checkpoint.stem}_samples")


def main(argv=None):
    args = parse_args(argv)
    device = utils.resolve_device(args.device)
    G, meta = BigGAN.load_generator(args.checkpoint, device, args.ema)
    classes = _checked_classes(args.classes, G.config.n_classes)
    out = Path(args.out) if args.out else default_out(Path(meta["path"]))
    _check_out(out, args, G.config.resolution)
    truncation = chosen_truncation(args, meta)
    print(describe(G, meta, device) + (f", z {truncation.kind} {truncation.limit:g}" if truncation else ""))
    with batch_norm.prepared(G, batch_norm.chosen_mode(args), args.seed, truncation) as G:
        if args.sheets:
            _write_sheets(G, meta, args, classes, truncation, out)
        if args.num_samples:
            _write_samples(G, meta, args, classes, truncation, out)


def describe(G, meta, device):
    """One line about a loaded generator, for the user to read."""
    weights = "moving average of G" if meta["ema"] else "G"
    config = G.config
    size = f"{config.n_classes} classes at {config.resolution}x{config.resolution}"
    return f"{meta['path']}: {weights} after {meta['step']} iterations, {size}, on {device}"


def _checked_classes(classes, num_classes):
    for c in classes or ():
        if c >= num_classes:
            raise utils.UserError(f"--classes {c}: this model has the classes 0 to {num_classes - 1}")
    return classes or list(range(num_classes))


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


def _write_sheets(G, meta, args, classes, truncation, out):
    chosen = args.classes or spread_classes(G.config.n_classes)
    common = (G, args.rows, args.seed, truncation)
    named = ", ".join(f"{c} {name}" if (name := meta["class_names"][c]) != str(c) else name for c in chosen)
    if len(chosen) > 1:
        _save(class_sheet(*common, chosen, meta["class_names"]), out / "class_sheet.png", f"columns: {named}")
    _save(random_sheet(*common, classes), out / "random_sheet.png", "random z and classes")
    _save(z_interpolation_sheet(*common, chosen), out / "interpolation_z.png", "from one z to another, class fixed")
    if len(chosen) > 1:
        sheet = class_interpolation_sheet(*common, chosen)
        _save(sheet, out / "interpolation_class.png", "from one class to another, z fixed")


def _save(image, path, what):
    save_image(image, path)
    print(f"wrote {path} ({what})")


def _write_samples(G, meta, args, classes, truncation, out):
    mode = batch_norm.chosen_mode(args)
    to_make, batch_size = balanced_labels(args.num_samples, classes), args.batch_size
    if mode.block_size:  # whole blocks, whatever the number of images, so that each has its block's statistics
        to_make, batch_size = shuffled_labels(args.seed, mode.whole(args.num_samples), classes), mode.block_size
    y = to_make[: args.num_samples]
    writers = {}
    if args.format != "npz":
        writers[out / "images"] = png_writer(out / "images", y, meta["class_names"])
    if args.format != "png":
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
        print(f"wrote {path} ({len(y)} images)")


if __name__ == "__main__":
    utils.run_main(main)
