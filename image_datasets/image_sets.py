"""Sets of images of one size behind one interface, and parts and crops of them.

Symbols: N images of a set, H x W their size, R where they are square, B images in a batch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

import utils

MOST_CLASSES = 2**20  # that ids without names are taken for


class ImageSet:
    """Base of all that holds images: a file, a folder, a part of another set, a generator.

    Attributes: path: for messages; name: under which statistics are stored; resolution: R, None where images are not
    square; labels: int64 array (N,), None where classes are not known; class_names: list of str, ["all"] without
    classes; source and crop_resize: where the images came from and how they were brought to RxR, None: not known.
    """

    source = crop_resize = None

    def __init__(
        self,
        path: str | Path,
        name: str,
        resolution: int | None,
        labels: np.ndarray | None = None,
        class_names: Sequence[str] = ("all",),
    ):
        self.path, self.name, self.resolution = path, name, resolution
        self.labels, self.class_names = labels, list(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int] | None:
        """How many images each class has; None where classes are not known."""
        if self.labels is None:
            return None
        return np.bincount(self.labels, minlength=self.num_classes).tolist()

    def read(self, indices: ArrayLike) -> torch.Tensor:
        """Pixels of some images: ints (B,) to uint8 (B,3,H,W) on the CPU."""
        raise NotImplementedError

    def labels_at(self, indices: ArrayLike) -> torch.Tensor:
        """Class ids of some images of a set with classes: ints (B,) to int64 (B,)."""
        return torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)])


class Subset(ImageSet):
    """Some images of a set with classes, without copying any; classes keep their numbers and names.

    Args: indices: ints (n,), ascending, which of them; name: None for that of `images`.
    Raises: IndexError for an index outside the set.
    """

    def __init__(self, images: ImageSet, indices: ArrayLike, name: str | None = None):
        self.images, self.indices = images, np.asarray(indices, dtype=np.int64)
        labels = images.labels[self.indices]
        super().__init__(images.path, name or images.name, images.resolution, labels, images.class_names)
        self.source, self.crop_resize = images.source, images.crop_resize

    def read(self, indices: ArrayLike, pin_memory: bool = False) -> torch.Tensor:
        """As `HDF5Dataset.read`."""
        return self.images.read(self.indices[np.asarray(indices, dtype=np.int64)], pin_memory)


def fraction_of(images: ImageSet, fraction: float, seed: int) -> ImageSet:
    """So large a random share of each class, of at least one image; the set itself where that is all."""
    if fraction == 1:
        return images
    chosen = []
    for number in np.unique(images.labels):
        of_class = np.flatnonzero(images.labels == number)
        count = max(round(fraction * len(of_class)), 1)
        chosen.append(utils.rng(seed, "data_fraction", number).permutation(of_class)[:count])
    return Subset(images, np.sort(np.concatenate(chosen)))


class CentreCrop(ImageSet):
    """The centres of a set's images: what statistics are computed on where training crops at random.

    Raises: utils.UserError unless `size`, the side of the crops, is below the images' resolution.
    """

    def __init__(self, images: ImageSet, size: int):
        if size >= images.resolution:
            raise utils.UserError(
                f"--crop_size {size}: the images of {images.path} are {images.resolution}x{images.resolution}; "
                f"make a file of larger ones: make_hdf5.py --resolution R, with R above {size}"
            )
        super().__init__(images.path, cropped_name(images.name, size), size, images.labels, images.class_names)
        self.images, self.source, self.crop_resize = images, images.source, images.crop_resize

    def read(self, indices: ArrayLike, pin_memory: bool = False) -> torch.Tensor:
        """As `HDF5Dataset.read`: uint8 (B,3,size,size)."""
        start = (self.images.resolution - self.resolution) // 2
        centre = slice(start, start + self.resolution)
        crops = self.images.read(indices)[:, :, centre, centre].contiguous()
        return crops.pin_memory() if pin_memory else crops


def number_of_classes(smallest: int, largest: int, num_images: int, where: str) -> int:
    """How many classes the labels of some images stand for, where nothing but them says so: largest + 1.

    Args: smallest, largest: of the labels; where: what holds them, to begin a message with.
    Raises: utils.UserError for an id below 0, or one that so few images cannot mean.
    """
    if smallest < 0:
        raise utils.UserError(f"{where} go down to {smallest}; class ids start at 0")
    if largest >= min(MOST_CLASSES, 1000 + 100 * num_images):
        raise utils.UserError(
            f"{where} go up to {largest}, which is no class id among {utils.counted(num_images, 'image')}: ids are "
            "numbers from 0 to the number of classes - 1; correct them, or leave such images out"
        )
    return largest + 1


def empty_classes(empty: Sequence[str], class_names: Sequence[str]) -> str:
    """Classes without images in words, "" where there are none. Args: empty: their names, of all `class_names`."""
    if not empty:
        return ""
    names = ", ".join(map(quoted, empty[:3])) + (", ..." if len(empty) > 3 else "")
    text = f"{len(empty):,} of {len(class_names):,} classes have no images: {names}"
    from_one = list(empty) == ["0"] and list(class_names) == [str(i) for i in range(len(class_names))]
    return f"{text}; class ids start at 0, are these counted from 1?" if from_one else text


def quoted(name: str) -> str:
    """A class name as part of a line of text, however long it is and whatever it holds."""
    name = utils.printable(name)
    return f"'{name if len(name) <= 40 else name[:39] + '…'}'"


def cropped_name(name: str, size: int) -> str:
    return f"{name}_crop{size}"
