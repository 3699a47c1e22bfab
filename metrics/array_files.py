"""Images that other programs have written as arrays: npz and npy files, read a batch at a time.

Symbols: N images of H x W.
"""

import contextlib
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import utils
from image_datasets.image_sets import ImageSet, number_of_classes

# Names of images, in an npz with several arrays of four dimensions, and of their class ids: numpy.savez's without names
# (guided-diffusion, sample.py), those of BigGAN-PyTorch's sample.py, and others in use.
IMAGE_NAMES = ("arr_0", "x", "images", "imgs", "samples", "fake", "fakes", "data")
LABEL_NAMES = ("arr_1", "y", "labels", "label", "classes")
RANGES = (  # lowest and highest value, what makes uint8 of it
    ((0, 1), "np.rint(255 * x).astype(np.uint8)"),
    ((-1, 1), "np.rint(127.5 * (x + 1)).astype(np.uint8)"),
    ((0, 255), "np.rint(x).astype(np.uint8)"),
)


class Header(NamedTuple):
    """What an npy file, or a part of an npz, begins with."""

    shape: tuple
    fortran_order: bool
    dtype: np.dtype

    def __str__(self):
        return f"{self.dtype} {self.shape}"

    @property
    def channels(self) -> int | None:
        """The axis of the three colours of images (N,H,W,3) or (N,3,H,W); None where there is none."""
        return next((axis for axis in (3, 1) if len(self.shape) == 4 and self.shape[axis] == 3), None)


def npz_headers(path: Path) -> dict[str, Header]:
    """The arrays of an npz file by name, none of them read. Raises: utils.UserError for a damaged file."""
    with damage_named(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {}
        for name in names:
            with archive.open(name) as member:
                headers[name.removesuffix(".npy")] = _read_header(member)
        return headers


def _read_header(file):
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return Header(*read(file))


def image_name(headers: dict[str, Header]) -> str | None:
    """Which of the arrays of an npz holds images; None where none has four dimensions, or several have."""
    candidates = [name for name, header in headers.items() if len(header.shape) == 4]
    named = [name for name in IMAGE_NAMES if name in candidates]
    return (named or (candidates if len(candidates) == 1 else [None]))[0]


@contextlib.contextmanager
def damage_named(path: Path):
    """What a damaged file raises becomes one line that names it."""
    try:
        yield
    except PermissionError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    except utils.DAMAGED_NPZ as error:
        kind = path.suffix.lower().removeprefix(".")
        raise utils.UserError(
            f"{path} is not a readable {kind} file (damaged, truncated, or another format)"
        ) from error


class ArrayImages(ImageSet):
    """uint8 images (N,H,W,3) or (N,3,H,W) of an array, in the order of C or Fortran.

    Raises: utils.UserError where the file is damaged or holds something else.
    """

    def __init__(self, path: Path, header: Header, where: str, labels: np.ndarray | None = None):
        """where: the array's place in the file, for messages."""
        self.path, self.header, self.axis = path, header, header.channels
        _check(header, where, lambda: self._rows(0, min(16, header.shape[0])))
        h, w = (size for axis, size in enumerate(header.shape) if axis not in (0, self.axis))
        super().__init__(path, path.stem, h if h == w else None, labels)

    def __len__(self) -> int:
        return self.header.shape[0]

    def read(self, indices: np.ndarray) -> Tensor:
        indices = np.asarray(indices)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)  # of neighbours
        images = torch.from_numpy(np.concatenate([self._rows(int(run[0]), len(run)) for run in runs]))
        return images.permute(0, 3, 1, 2) if self.axis == 3 else images

    def _rows(self, first, number):
        """Images `first` to `first` + number - 1 as they are stored."""
        raise NotImplementedError


class NpyImages(ArrayImages):
    """The images of an npy file, over a memory map."""

    def __init__(self, path: Path):
        with damage_named(path):
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        super().__init__(path, Header(self.array.shape, False, self.array.dtype), str(path))

    def _rows(self, first, number):
        return np.ascontiguousarray(self.array[first : first + number])


class NpzImages(ArrayImages):
    """The images of an npz file, never whole in memory unless they are in Fortran's order.

    `labels` are those beside them, where these are one class id for each image.
    """

    def __init__(self, path: Path):
        headers = npz_headers(path)
        name = image_name(headers)
        if name is None:
            raise utils.UserError(f"{path} {what_npz_holds(headers)}")
        with damage_named(path):
            self.member = zipfile.ZipFile(path).open(f"{name}.npy")  # noqa: SIM115  (read from for as long as this lives)
            header = _read_header(self.member)
        self.offset, self.array = self.member.tell(), None
        if header.fortran_order and not header.dtype.hasobject:
            self.array = utils.load_npz(path, only=(name,))[name]
        super().__init__(path, header, f"{path}: {name}", _labels(path, headers, header.shape[0]))

    def _rows(self, first, number):
        if self.array is not None:
            return np.ascontiguousarray(self.array[first : first + number])
        image_bytes = math.prod(self.header.shape[1:]) * self.header.dtype.itemsize
        start, length = self.offset + first * image_bytes, number * image_bytes
        with damage_named(self.path):
            if self.member.tell() != start:  # a seek that goes nowhere would cost the member's checksum
                self.member.seek(start)
            data = self.member.read(length)
            if len(data) != length:
                raise EOFError
        return np.frombuffer(data, self.header.dtype).reshape(number, *self.header.shape[1:])


def what_npz_holds(headers: dict[str, Header]) -> str:
    """Why an npz file is not taken, to follow its name."""
    held = ", ".join(f"{name} {header}" for name, header in headers.items()) or "no arrays"
    return (
        f"holds {held}: neither images (one array uint8 (N,R,R,3) or (N,3,R,R), by the name arr_0 or x where there are "
        "several) nor statistics (mu and sigma)"
    )


def _check(header, where, first_images):
    """Raise utils.UserError that says what an array is, unless it is uint8 images."""
    shape, kind = header.shape, header.dtype.kind
    wanted = f"{where} must be uint8 images (N,R,R,3) or (N,3,R,R)"
    if kind == "O":
        raise utils.UserError(f"{wanted}, not pickled objects, which are not read")
    if len(shape) == 3 and (shape[-1] == 3 or shape[0] == 3):
        raise utils.UserError(f"{wanted}, not a single image {shape}")
    if len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3])):
        raise utils.UserError(f"{wanted}, not grey ones {shape}: repeat their values three times")
    if len(shape) == 2:
        raise utils.UserError(f"{wanted}, not {header}: vectors, of features or logits?")
    if header.channels is None or 0 in shape or kind not in "fiub":
        raise utils.UserError(f"{wanted}, not {header}")
    if header.dtype != np.uint8:
        raise utils.UserError(f"{wanted}, not {header} {_range(first_images())}")


def _range(values):
    low, high = (float(value) for value in (values.min(), values.max()))
    for (lowest, highest), conversion in RANGES:
        if lowest - 1e-3 <= low and high <= highest + 1e-3:
            return f"with values in [{lowest}, {highest}]; save {conversion}"
    return f"with values from {low:g} to {high:g}; bring them to 0..255"


def _labels(path, headers, num_images):
    """Class ids, int64 (N,), of the first of LABEL_NAMES that holds N of them, or None."""
    for name in LABEL_NAMES:
        if name not in headers or headers[name].dtype.kind not in "iu" or not num_images:
            continue
        if headers[name].shape in ((num_images,), (num_images, 1)):
            labels = utils.load_npz(path, only=(name,))[name].reshape(-1)
            if labels.min() < 0:
                return None
            number_of_classes(int(labels.min()), int(labels.max()), num_images, f"{path}: {name}")
            return labels.astype(np.int64)
    return None
