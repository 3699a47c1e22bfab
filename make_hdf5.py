"""Make a data set: bring images to one size and write them, with their labels, to one HDF5 file.

    python make_hdf5.py --dataset digits
    python make_hdf5.py --dataset folder --images photos --resolution 64 --out data/photos.hdf5
    python make_hdf5.py --dataset I128 --images /imagenet/train

The file holds `imgs` uint8 (N,3,R,R) and `labels` int64 (N,), contiguous, and the attributes `class_names` (JSON list),
`source`, `crop_resize` (the rule) and `complete`. `datasets.py` reads it.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import dataset_doctor
import datasets
import utils

IMAGENET = {"I32": 32, "I64": 64, "I128": 128, "I256": 256}  # the family's names and the resolutions they stand for
DIGITS_FILE = Path(__file__).parent / "assets" / "digits.npz"
DIGITS_CREDIT = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0"
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
IMAGE_SUFFIXES |= {".ppm", ".tga", ".tif", ".tiff", ".webp"}
CROP_RESIZE = "centre crop to the short side, then Pillow bicubic (antialiased) to {0}x{0}; transparency over white"
WRITE_BLOCK = 64  # images per HDF5 call: one call for each image would cost as much as decoding a small one


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to be written, not yet read.

    images: file paths (or PIL images), in the order of the HDF5 file; labels: int64 (N,), indices into class_names;
    description: one line that is different for different images, for the attribute `source`.
    """

    description: str
    class_names: list
    labels: np.ndarray
    images: list


def main(argv=None):
    args = parse_args(argv)
    resolution, out = target(args)
    source = find_images(args)
    rule = CROP_RESIZE.format(resolution)
    if not args.overwrite and already_there(out, source, rule):
        print(f"{out} is already there, nothing to do ({source.description})")
        return
    check_disk(out, len(source.images), resolution)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF data and the like, of no use to us
        pixels = decode(source.images, resolution, args.num_workers)
        pixels = tqdm(pixels, total=len(source.images), desc=out.name, unit="images", disable=None)
        write_hdf5(out, pixels, source.labels, source.class_names, source.description, rule)
    print(f"wrote {out}: {len(source.images)} images of {resolution}x{resolution}, {len(source.class_names)} class(es)")
    dataset_doctor.introduce(datasets.HDF5Dataset(out))


def parse_args(argv):
    parser = utils.ArgumentParser("Make an HDF5 data set of a folder of images, of ImageNet or of the embedded digits.")
    group = parser.add_argument_group("images")
    group.add_argument(
        "--dataset",
        required=True,
        choices=["digits", "folder", *IMAGENET],
        help="digits: the 1,797 embedded handwritten digits; folder: your own images; I64 (I32, I128, I256): an "
        "ImageNet train folder at that resolution",
    )
    group.add_argument(
        "--images",
        metavar="DIR",
        help="folder with one sub-folder of images per class; classes are numbered in the order of their sorted names "
        "(default for ImageNet: DATA_ROOT/ImageNet)",
    )
    group.add_argument(
        "--resolution", type=utils.positive_int, help="height and width of the result (default for digits: 32)"
    )
    group.add_argument(
        "--unconditional",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="images without classes: --images holds them directly, or in a single sub-folder",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="FILE",
        help="file to write, ending in .hdf5 (default: DATA_ROOT/NAME.hdf5 with the name of the data set or folder, "
        "the family's ILSVRC64.hdf5 for I64)",
    )
    group.add_argument("--data_root", default="data", help="folder of the data sets")
    group.add_argument(
        "--overwrite", action=argparse.BooleanOptionalAction, default=False, help="replace an existing file"
    )
    group.add_argument("--num_workers", type=utils.positive_int, default=os.cpu_count(), help="decoding threads")
    group.add_argument(
        "--batch_size", type=int, help="accepted from the command lines of other codebases; has no meaning here"
    )
    args = parser.parse_args(argv)
    if args.batch_size is not None:
        print("--batch_size has no meaning here: images are read one by one")
    if args.dataset == "digits" and (args.images or args.unconditional):
        parser.error("--dataset digits takes neither --images nor --unconditional")
    if args.dataset == "folder" and not (args.images and args.resolution):
        parser.error("--dataset folder needs --images DIR and --resolution R")
    if args.dataset in IMAGENET and args.resolution not in (None, IMAGENET[args.dataset]):
        parser.error(f"--dataset {args.dataset} has resolution {IMAGENET[args.dataset]}; leave out --resolution")
    return args


def target(args):
    """Resolution and output path that the flags ask for. Raises: UserError for an unusable --out."""
    if args.dataset == "folder":
        resolution, out = args.resolution, Path(args.data_root) / f"{folder_name(args.images)}.hdf5"
    else:
        resolution = IMAGENET.get(args.dataset, args.resolution or 32)
        out = datasets.dataset_path(args.dataset, args.data_root)
    out = Path(args.out or out)
    if out.suffix not in (".hdf5", ".h5"):
        raise utils.UserError(f"--out {out}: the name must end in .hdf5")
    if out.is_dir():
        raise utils.UserError(f"--out {out} is a folder")
    return resolution, out


def already_there(out, source, rule):
    """Whether `out` already holds these images. Raises: UserError if it holds anything else."""
    if not out.exists():
        return False
    try:
        existing = datasets.HDF5Dataset(out)
    except utils.UserError as error:
        raise utils.UserError(f"--out exists, but {error}; --overwrite replaces it") from error
    if (existing.source, existing.crop_resize) == (source.description, rule):
        return True
    made_from = f"from {existing.source}; {existing.crop_resize}" if existing.source else "elsewhere"
    raise utils.UserError(f"{out} exists, made {made_from}; --overwrite replaces it, --out writes another file")


def check_disk(out, num_images, resolution):
    """Raise UserError if the file would not fit on the disk of `out`."""
    needed = num_images * (3 * resolution**2 + 8) + 2**20
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise utils.UserError(
            f"{out} needs {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; make room or change --out"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Where the images come from


def find_images(args):
    """The `Source` that the flags ask for."""
    if args.dataset == "digits":
        return digits_source()
    folder = Path(args.images or Path(args.data_root) / "ImageNet")
    source = folder_source(folder, args.unconditional)
    if args.dataset in IMAGENET:
        check_wordnet_ids(source, folder)
    return source


def digits_source():
    """The embedded UCI digits: 1,797 PIL images "L" of 8x8, grey levels 0..16 stretched to 0..255."""
    with np.load(DIGITS_FILE, allow_pickle=False) as digits:
        grey, labels = digits["images"], digits["labels"]
    images = [Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)) for image in grey]
    return Source(f"digits: {DIGITS_CREDIT}", [str(i) for i in range(10)], labels.astype(np.int64), images)


def folder_source(folder, unconditional=False):
    """The images of a folder, one sub-folder per class, classes and files in the order of their sorted names.

    Hidden files are skipped, and so are, with a printed line, files that are no images and links back up the tree.

    Args: folder: Path; unconditional: take the images in `folder` itself, or in its only sub-folder, as one class.
    Raises: UserError if the folders are not as described; nothing is guessed, as a wrong guess means wrong labels.
    """
    if not folder.is_dir():
        raise utils.UserError(f"--images {folder}: there is no such folder")
    images, folders, ignored = list_folder(folder)
    _check_layout(folder, images, folders, unconditional)
    files = []
    for class_folder in folders:
        class_images, subfolders, others = list_folder(class_folder)
        _check_class(class_folder, class_images, subfolders)
        files.append(class_images)
        ignored += others
    if images:  # without classes
        folders, files = [folder], [images]
    if ignored:
        names = ", ".join(path.name for path in ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        print(f"ignored {len(ignored)} file(s) that are not images: {names}")
    paths = list(itertools.chain.from_iterable(files))
    labels = np.repeat(np.arange(len(files)), [len(class_images) for class_images in files]).astype(np.int64)
    counts = f"{len(paths)} images, {len(files)} class(es)"
    description = f"folder {folder_name(folder)}: {counts}, sha256 {fingerprint(paths, folder)}"
    return Source(description, [folder_name(class_folder) for class_folder in folders], labels, paths)


def folder_name(folder):
    """The last part of a path, links not followed; also for "." and "..", which have no name of their own."""
    return Path(os.path.abspath(folder)).name


def list_folder(folder):
    """Image files, sub-folders and other files of a folder: three lists of paths, each sorted by name."""
    images, folders, others = [], [], []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise utils.UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in sorted(entries, key=lambda entry: entry.name):
        path = Path(entry.path)
        # A link that leads nowhere or to itself makes DirEntry.is_dir raise, and Path.is_dir False.
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            loops = entry.is_symlink() and folder.resolve().is_relative_to(path.resolve())
            (others if loops else folders).append(path)
        else:
            (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    return images, folders, others


def _check_layout(folder, images, folders, unconditional):
    if not images and not folders:
        raise utils.UserError(f"--images {folder} holds neither class folders nor images")
    if images and folders:
        raise utils.UserError(f"{folder} holds images ({images[0].name}, ...) beside folders ({folders[0].name}, ...)")
    if unconditional and len(folders) > 1:
        raise utils.UserError(f"--unconditional: {folder} holds {len(folders)} folders; name one of them as --images")
    if images and not unconditional:
        raise utils.UserError(f"{folder} has no class folders; make one per class, or take all with --unconditional")
    # A single folder that holds folders is most likely one level too deep: left to _check_class to say.
    if len(folders) == 1 and not unconditional and not list_folder(folders[0])[1]:
        raise utils.UserError(f"{folder} has one class folder only ({folders[0].name}); use --unconditional for that")


def _check_class(folder, images, subfolders):
    if subfolders and images:
        raise utils.UserError(f"{folder} holds the folder {subfolders[0].name} among its images; images lie flat")
    if subfolders:
        raise utils.UserError(
            f"{folder} should hold the images of one class, but holds folders ({subfolders[0].name}, ...); "
            f"if those are the classes, use --images {folder}"
        )
    if not images:
        raise utils.UserError(f"the class folder {folder} holds no images; fill or remove it")


def fingerprint(paths, folder):
    """16 hex digits that differ for other names or sizes of the files, wherever the folder lies."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size if path.exists() else 0  # a dangling link: reported when it is to be decoded
        digest.update(f"{path.relative_to(folder)}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def check_wordnet_ids(source, folder):
    """Raise UserError unless the classes are WordNet ids: another folder under ImageNet's name would mislead."""
    other = [name for name in source.class_names if not re.fullmatch(r"n\d{8}", name)]
    if other:
        raise utils.UserError(
            f"{folder} is no ImageNet train folder: '{other[0]}' is not a WordNet id; use --dataset folder"
        )


# ---------------------------------------------------------------------------------------------------------------------
# From a file to pixels


def decode(images, resolution, num_workers):
    """Read and resize images with a pool of threads (Pillow works outside of Python's lock).

    Args: images: paths or PIL images. Yields: uint8 arrays (3,R,R), in the order of `images`.
    Raises: UserError naming the first file that cannot be read.
    """
    pending = collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(num_workers)
    try:
        for image in images:
            pending.append(threads.submit(read_pixels, image, resolution))
            if len(pending) > 4 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def read_pixels(image, resolution):
    """One image, a path or a PIL image of any mode, as a uint8 array (3,R,R). Raises: UserError naming the file."""
    if isinstance(image, Image.Image):
        return crop_resize(to_rgb(image), resolution)
    try:
        with Image.open(image) as opened:
            return crop_resize(to_rgb(ImageOps.exif_transpose(opened)), resolution)
    except Exception as error:  # damaged files make Pillow raise nearly anything: SyntaxError, struct.error ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise utils.UserError(f"{image} cannot be read as an image ({reason}); repair or remove it") from error


def to_rgb(image):
    """A PIL image of any mode as RGB.

    16-bit grey (modes I;16 and I) is scaled, 65535 to 255; float grey is taken as 0..1, or as 0..255 if it goes past 1;
    transparency is laid over white. Raises: ValueError for float values outside of 0..255.
    """
    if image.mode.startswith("I"):
        return _grey_to_rgb(np.asarray(image).clip(0, 65535) * (255 / 65535))
    if image.mode == "F":
        grey = np.asarray(image)
        if not (grey.min() >= 0 and grey.max() <= 255):  # NaN fails too
            raise ValueError("its float values lie outside of 0..255")
        return _grey_to_rgb(grey * 255 if grey.max() <= 1 else grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(grey):
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def crop_resize(image, resolution):
    """An RGB PIL image, cropped to its central square and resized (bicubic, antialiased) to uint8 (3,R,R)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# From pixels to a file


def write_hdf5(path, images, labels, class_names, source, rule):
    """Write a data set; the file appears under its name only when it is complete.

    Args: images: iterable of N uint8 arrays (3,R,R); labels: ints (N,); class_names: list of str;
        source, rule: text for the attributes `source` and `crop_resize`.
    Raises: UserError if the file cannot be written, ValueError if there are fewer images than labels.
    """
    labels = np.asarray(labels, dtype=np.int64)
    images = iter(images)
    with utils.atomic_path(path) as temporary:
        first = next(images, None)
        if first is None:
            raise ValueError("no images to write")
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs["complete"] = False
                file.attrs["class_names"] = json.dumps(list(class_names))
                file.attrs["source"] = source
                file.attrs["crop_resize"] = rule
                file["labels"] = labels
                pixels = _allocate(file, (len(labels), *first.shape))
                _fill(pixels, itertools.chain([first], images))
                file.attrs["complete"] = True
        except (OSError, RuntimeError) as error:  # what h5py raises when the disk is full
            raise utils.UserError(f"cannot write {path}: {error}") from error


def _allocate(file, shape):
    """The data set `imgs` as one block that is in the file from the start: a loader can map it into memory."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte is written below
    properties.set_obj_track_times(False)  # the same images make the same file, to the byte
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, b"imgs", h5py.h5t.STD_U8LE, space, properties))


def _fill(pixels, images):
    filled = 0
    while block := list(itertools.islice(images, WRITE_BLOCK)):
        pixels[filled : filled + len(block)] = np.stack(block)
        filled += len(block)
    if filled != len(pixels):
        raise ValueError(f"{filled} images for {len(pixels)} labels")


if __name__ == "__main__":
    utils.run_main(main)
