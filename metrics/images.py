"""What evaluate.py measures: images of a checkpoint, a folder, an archive or an array, as ImageSets, beside HDF5 files.

They read images at increasing indices.

Symbols: N images of H x W, b of them in a batch.
"""

import concurrent.futures
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import utils
from image_datasets import decoding, layouts, listing, metadata
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.image_sets import ImageSet
from metrics.array_files import NpyImages, NpzImages, image_name, npz_headers, what_npz_holds
from metrics.tar_files import TarTree, is_tar
from sampling.batch_norm import BatchNormMode
from sampling.class_sampling import is_balanced
from sampling.generate import make_images
from sampling.latents import Truncation, balanced_labels, latents, shuffled_labels
from torch_utils import checkpoints

# What other files are, by suffix, and what to do with them.
OTHER_FILES = {
    ".json": "JSON: results of --json are shown with --compare",
    ".pkl": "a pickle, which may run any code: convert_weights.py takes weights, and arrays are saved with numpy.save",
    ".mat": "an array of MATLAB: save it with numpy.save, as uint8 (N,R,R,3)",
    ".csv": "a table, no images",
    ".txt": "text, no images",
    ".safetensors": "a file of weights: convert_weights.py takes checkpoints of other codebases",
}


@dataclass(frozen=True)
class Source:
    """A path named on the command line, and its kind: `checkpoint` (or run folder), `folder` of images (or a zip or tar
    of them), `npz` or `npy` of images, `hdf5` or `statistics` (an npz of them)."""

    path: Path
    kind: str

    @classmethod
    def at(cls, path: str | Path) -> "Source":
        """Raises: utils.UserError if there is nothing there, or nothing to measure."""
        return cls(Path(path), kind_of(Path(path)))

    @property
    def holds_images(self) -> bool:
        return self.kind in ("folder", "npz", "npy", "hdf5")

    def open(self) -> ImageSet:
        """The images of a folder, archive, array or HDF5 file. Raises: utils.UserError."""
        kinds = {"folder": FolderImages, "npz": NpzImages, "npy": NpyImages, "hdf5": HDF5Dataset}
        return kinds[self.kind](self.path)


def kind_of(path: Path) -> str:
    """Which kind of `Source` a path is. Raises: utils.UserError if there is nothing there, or nothing to measure."""
    if path.is_dir():
        return "checkpoint" if _holds_checkpoints(path) else "folder"
    suffix = path.suffix.lower()
    if suffix == ".zip" or any(part.suffix.lower() == ".zip" and part.is_file() for part in path.parents):
        return "folder"  # or a folder within a zip
    if not path.exists():
        raise utils.UserError(f"{path}: no such checkpoint, folder or archive of images, npz, npy or HDF5 file")
    if suffix in (".hdf5", ".h5"):
        return "hdf5"
    if suffix == ".npy":
        return "npy"
    if suffix == ".npz":
        return _kind_of_npz(path)
    if is_tar(path):
        return "folder"
    _check_suffix(path, suffix)
    return "checkpoint"


def _kind_of_npz(path):
    headers = npz_headers(path)
    if image_name(headers):
        return "npz"
    if {"mu", "sigma"} <= headers.keys():
        return "statistics"
    raise utils.UserError(f"{path} {what_npz_holds(headers)}")


def _check_suffix(path, suffix):
    """Raise utils.UserError that says what a file is, where its suffix tells that it is no checkpoint."""
    if suffix in listing.IMAGE_SUFFIXES:
        raise utils.UserError(f"{path} is a single image; name the folder that holds all of them")
    if suffix in OTHER_FILES:
        raise utils.UserError(f"{path} is {OTHER_FILES[suffix]}")
    if suffix in listing.FORMAT_OF and suffix != ".tar":  # a checkpoint may be named x.pth.tar
        kind = listing.FORMAT_OF[suffix]
        tools = listing.OTHER_FORMATS[kind][1]
        raise utils.UserError(f"{path}: a format that is not read here ({kind}: {suffix}); what may help: {tools}")


def _holds_checkpoints(folder):
    try:
        checkpoints.find_checkpoint(folder)
    except utils.UserError:
        return (folder / "weights").is_dir()  # a run without checkpoints yet: its samples are not what is meant
    return True


class GeneratedImages(ImageSet):
    """Images 0 to N-1 of a seed, made by G when they are read.

    Where images share batch statistics, a block of them (batch_norm.BatchNormMode) is always made whole: which images
    are read, in batches of which size, makes no difference. There, classes take turns in a shuffled order.
    """

    def __init__(
        self,
        G: nn.Module,
        num_images: int,
        seed: int,
        mode: BatchNormMode,
        truncation: Truncation | None = None,
        name: str = "generated",
        class_names: Sequence[str] = ("all",),
        class_counts: Sequence[int] | None = None,
    ):
        """G: in the mode to use it in (batch_norm.prepared); class_counts: what classes are drawn by, None: evenly."""
        drawn = (mode.whole(num_images), range(G.config.n_classes), class_counts)
        self.all_labels = shuffled_labels(seed, *drawn) if mode.block_size else balanced_labels(*drawn)
        super().__init__(name, name, G.config.resolution, self.all_labels[:num_images].numpy(), class_names)
        self.G, self.seed, self.truncation, self.block_size = G, seed, truncation, mode.block_size
        self.made = (None, None)  # number and images of the newest block

    def read(self, indices: np.ndarray) -> Tensor:
        if not self.block_size:
            return self._make(indices)
        blocks = np.asarray(indices) // self.block_size
        return torch.cat([self._block(b)[indices[blocks == b] % self.block_size] for b in np.unique(blocks)])

    def _block(self, number):
        if self.made[0] != number:
            self.made = number, self._make(np.arange(number * self.block_size, (number + 1) * self.block_size))
        return self.made[1]

    def _make(self, indices):
        z = latents(self.seed, indices, self.G.config.dim_z, self.truncation)
        return make_images(self.G, z, self.all_labels[indices])


class FolderImages(ImageSet):
    """The images in a folder or archive and its sub-folders, in the order of their sorted paths.

    Hidden files and files of other kinds are passed over. Without labels, until `know_classes`.
    Raises: utils.UserError where there is none, one is unreadable, or two differ in size.
    """

    def __init__(self, path: Path):
        self.tree = _open_tree(path)
        if isinstance(self.tree, listing.DiskTree):
            paths, others = _image_files(path)
        else:
            paths, others = listing.files_below(self.tree)
        left_out = f" ({text} left out)" if (text := listing.counted(others)) else ""
        if not paths:
            if any("_batch" in os.path.basename(other) for other in others):
                left_out += "; are these CIFAR's files? make_hdf5.py --dataset C10 or C100 makes an HDF5 file of them"
            raise utils.UserError(f"{path} holds no images, and no checkpoint either{left_out}")
        if any(listing.suffix(other) in listing.FORMAT_OF for other in others) and utils.is_main_process():
            print(f"{path}: {utils.counted(len(paths), 'image')}{left_out}", file=sys.stderr)
        self.files = [self.tree.item(file) for file in paths]
        self.threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        sizes = list(self.threads.map(_image_size, self.files))
        self.size = sizes[0]
        super().__init__(path, layouts.folder_name(path), self.size[0] if self.size[0] == self.size[1] else None)
        self._check_sizes(self.files, sizes)

    def __len__(self) -> int:
        return len(self.files)

    def _check_sizes(self, files, sizes):
        for file, (h, w) in zip(files, sizes, strict=True):
            if (h, w) != self.size:
                raise utils.UserError(
                    f"{file} is {w}x{h}, {self.files[0]} is {self.size[1]}x{self.size[0]}: all images must have one "
                    "size (make_hdf5.py brings them to one)"
                )

    def know_classes(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """Take the sub-folders for classes, where each is one of a data set's; else labels stay None.

        A folder is a class of its name, or, as sample.py makes them, begins with its number. Labels of a list beside
        the images (`layouts.find`) count as well. Nothing is guessed.
        Args: class_names: of the data set, in its order, None where they are not known; num_classes: their number.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = layouts.find(self.tree, unconditional=False)
        except utils.UserError:  # no folder for each class
            return
        if found.list_name == "dataset.json":  # which holds numbers
            ids = range(len(found.class_names)) if len(found.class_names) <= num_classes else None
        else:
            ids = class_ids(found.class_names, class_names, num_classes)
        class_of = dict(zip(found.files, found.labels, strict=True))
        if ids is not None and len(class_of) == len(self.files) and all(str(file) in class_of for file in self.files):
            self.labels = np.array([ids[class_of[str(file)]] for file in self.files], dtype=np.int64)
            self.class_names = list(class_names or map(str, range(num_classes)))

    def read(self, indices: np.ndarray) -> Tensor:
        files = [self.files[i] for i in indices]
        pixels = list(self.threads.map(_read_image, files))
        self._check_sizes(files, [image.shape[:2] for image in pixels])
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def know_classes(images: ImageSet, class_names: Sequence[str] | None, num_classes: int) -> None:
    """Take the sub-folders of images in a folder for classes of a data set, see `FolderImages.know_classes`.

    Args: num_classes: where no class_names are known.
    """
    if isinstance(images, FolderImages):
        images.know_classes(class_names, len(class_names) if class_names else num_classes)


def class_warning(images: ImageSet, real_counts: Sequence[int] | None) -> str | None:
    """What to say where images are of each class as often as of any other, but the real ones (K,) are not."""
    counts = images.class_counts or ()
    known = real_counts and len(counts) == len(real_counts)
    if not (known and is_balanced(counts) and not is_balanced(real_counts)):
        return None
    return (
        "has about as many images of each class, the real images have not: distances and coverage suffer; "
        "sample.py --class_sampling data draws classes as in the data"
    )


def class_ids(folders: Sequence[str], class_names: Sequence[str] | None, num_classes: int) -> list[int] | None:
    """The class of each sub-folder, by its name or by its number (007_cat); None where one is of no class.

    Args: as of `FolderImages.know_classes`.
    """
    if class_names is not None and len(set(class_names)) == len(class_names) and set(folders) <= set(class_names):
        return [list(class_names).index(folder) for folder in folders]
    digits = len(str(num_classes - 1))
    numbered = [re.fullmatch(rf"(\d{{{digits}}})(_.*)?", folder, re.DOTALL) for folder in folders]
    ids = [int(match[1]) for match in numbered if match]
    if len(ids) < len(folders) or len(set(ids)) < len(ids) or max(ids) >= num_classes:
        return None
    bare = [i for i, match in zip(ids, numbered, strict=True) if not match[2]]
    if class_names is not None:
        return ids if all(class_names[i] == str(i) for i in bare) else None
    return ids if not bare or len(ids) == num_classes else None


def _open_tree(path):
    if is_tar(path):
        return TarTree(path)
    try:
        return listing.open_tree(path)
    except utils.UserError as error:
        raise utils.UserError(str(error).removeprefix("--images ")) from error


def _image_files(folder):
    """Image files below a folder, sorted by path, and its other files; links are followed, but to no folder again."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not listing.is_hidden(name)]
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        files += [Path(parent, name) for name in names if not listing.is_hidden(name)]
    return sorted(filter(listing.is_image, files)), [file for file in files if not listing.is_image(file)]


def _refuse_folder(error):
    raise utils.UserError(f"cannot read the folder {error.filename}: {error.strerror}")


@contextlib.contextmanager
def _named(path):
    """What reading an image raises becomes one line that names its file."""
    try:
        yield
    except Exception as error:  # damaged files make Pillow raise nearly anything: SyntaxError, struct.error ...
        reason = decoding.reason(error)
        raise utils.UserError(f"{path} cannot be read as an image ({reason}); repair or remove it") from error


def _image_size(path):
    """(height, width) of a file's image, its EXIF rotation obeyed, from its header alone."""
    with _named(path), metadata.opened(_content(path), load=False) as image:
        return metadata.upright_size(image)


def _read_image(path):
    with _named(path):
        return np.array(decoding.read_rgb(_content(path)))


def _content(file):
    """A path, or the bytes of a member of an archive."""
    return file if isinstance(file, str | os.PathLike) else file.read()
