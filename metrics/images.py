"""What evaluate.py measures: images of a checkpoint, a folder or an npz, as ImageSets, beside those of HDF5 files.

They read images at increasing indices.

Symbols: N images of H x W, b of them in a batch.
"""

import concurrent.futures
import contextlib
import os
import sys
import zipfile
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
from sampling.batch_norm import BatchNormMode
from sampling.generate import make_images
from sampling.latents import Truncation, balanced_labels, latents, shuffled_labels
from torch_utils import checkpoints


@dataclass(frozen=True)
class Source:
    """A path named on the command line, and its kind: `checkpoint` (or run folder), `folder` of images, `npz` with
    arr_0, `hdf5` or `statistics` (an npz of them)."""

    path: Path
    kind: str

    @classmethod
    def at(cls, path: str | Path) -> "Source":
        """Raises: utils.UserError if there is nothing there, or nothing to measure."""
        return cls(Path(path), kind_of(Path(path)))

    @property
    def holds_images(self) -> bool:
        return self.kind in ("folder", "npz", "hdf5")

    def open(self) -> ImageSet:
        """The images of a folder, npz or HDF5 file. Raises: utils.UserError."""
        return {"folder": FolderImages, "npz": NpzImages, "hdf5": HDF5Dataset}[self.kind](self.path)


def kind_of(path: Path) -> str:
    """Which kind of `Source` a path is. Raises: utils.UserError if there is nothing there, or nothing to measure."""
    if path.is_dir():
        return "checkpoint" if _holds_checkpoints(path) else "folder"
    if not path.exists():
        raise utils.UserError(f"{path}: no such checkpoint, folder of images, npz or HDF5 file")
    if path.suffix in (".hdf5", ".h5"):
        return "hdf5"
    if path.suffix != ".npz":
        return "checkpoint"
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "arr_0" in names:
        return "npz"
    if {"mu", "sigma"} <= set(names):
        return "statistics"
    raise utils.UserError(f"{path} holds {', '.join(names) or 'nothing'}: neither images (arr_0) nor statistics (mu)")


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
    """The images in a folder and its sub-folders, in the order of their sorted paths; without labels.

    Hidden files and files of other kinds are passed over.
    Raises: utils.UserError where there is none, one is unreadable, or two differ in size.
    """

    def __init__(self, path: Path):
        self.files, others = _image_files(path)
        left_out = f" ({text} left out)" if (text := listing.counted(others)) else ""
        if not self.files:
            raise utils.UserError(f"{path} holds no images, and no checkpoint either{left_out}")
        if any(listing.suffix(other) in listing.FORMAT_OF for other in others) and utils.is_main_process():
            print(f"{path}: {utils.plural(len(self.files), 'image')}{left_out}", file=sys.stderr)
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

    def read(self, indices: np.ndarray) -> Tensor:
        files = [self.files[i] for i in indices]
        pixels = list(self.threads.map(_read_image, files))
        self._check_sizes(files, [image.shape[:2] for image in pixels])
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


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
    with _named(path), metadata.opened(path, load=False) as image:
        return metadata.upright_size(image)


def _read_image(path):
    with _named(path):
        return np.array(decoding.read_rgb(path))


class NpzImages(ImageSet):
    """`arr_0` uint8 (N,H,W,3) of an npz file, as sample.py and guided-diffusion (ADM) write it, read batch by batch.

    `labels` is its `arr_1`, where that is one class id for each image.
    Raises: utils.UserError where the file is damaged or holds something else.
    """

    def __init__(self, path: Path):
        with _damage_named(path):
            self.member = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115  (read from for as long as this lives)
            first = np.lib.format.read_magic(self.member) == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            self.shape, fortran_order, dtype = read_header(self.member)
        if dtype != np.uint8 or fortran_order or len(self.shape) != 4 or self.shape[3] != 3 or 0 in self.shape:
            raise utils.UserError(f"{path}: arr_0 must be uint8 images (N,R,R,3), not {dtype} {self.shape}")
        self.offset, self.image_bytes = self.member.tell(), int(np.prod(self.shape[1:]))
        resolution = self.shape[1] if self.shape[1] == self.shape[2] else None
        super().__init__(path, path.stem, resolution, _npz_labels(path, len(self)))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: np.ndarray) -> Tensor:
        indices = np.asarray(indices)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)  # of neighbours
        return torch.from_numpy(np.concatenate([self._read_run(run[0], len(run)) for run in runs])).permute(0, 3, 1, 2)

    def _read_run(self, first, number):
        """Images `first` to `first` + number - 1: (number,H,W,3)."""
        start, length = self.offset + int(first) * self.image_bytes, number * self.image_bytes
        with _damage_named(self.path):
            if self.member.tell() != start:  # a seek that goes nowhere would cost the member's checksum
                self.member.seek(start)
            data = self.member.read(length)
            if len(data) != length:
                raise EOFError
        return np.frombuffer(data, np.uint8).reshape(number, *self.shape[1:])


def _npz_labels(path, num_images):
    """`arr_1` as int64 (N,), or None where it is anything but N class ids."""
    with _damage_named(path), np.load(path, allow_pickle=False) as file:
        labels = file["arr_1"] if "arr_1" in file.files else None
    if labels is None or labels.shape != (num_images,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        return None
    return labels.astype(np.int64)


@contextlib.contextmanager
def _damage_named(path):
    """What a damaged npz file raises becomes one line that names it."""
    try:
        yield
    except utils.DAMAGED_NPZ as error:
        raise utils.UserError(f"{path} is not a readable npz file (damaged, truncated, or another format)") from error
