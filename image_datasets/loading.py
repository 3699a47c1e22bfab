"""Data sets: names and paths, the order of training images, and prefetching loaders.

Resolution and number of classes come from the file that `make_hdf5.py` wrote (see `hdf5.py`), never from a table.

Symbols: N images, resolution R, B images in a batch over all ranks, b = B / world_size of them on this rank.
"""

import collections
import concurrent.futures
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

import utils
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.image_sets import CentreCrop, ImageSet, cropped_name
from utils import Check, Options, option

MAX_WORKERS = 1024
# The names, I64 or I64_hdf5, under which the family's launch scripts know ImageNet.
FAMILY_FILES = {f"I{resolution}": f"ILSVRC{resolution}.hdf5" for resolution in (32, 64, 128, 256)}


@dataclass(frozen=True)
class DataOptions(Options):
    """Which data set to read, and how."""

    title = "data"

    dataset: str | None = option(
        None,
        "name of a data set: NAME or NAME_hdf5 reads NAME.hdf5 under --data_root, I64_hdf5 reads ILSVRC64.hdf5 "
        "(likewise I32, I128, I256); or the path of a file that ends in .hdf5 or .h5",
    )
    data_root: str = option("data", "folder of the data sets and of their statistics", changeable=True)
    load_in_mem: bool = option(
        False, "read the whole file into memory first (of use for compressed files and slow disks)", changeable=True
    )
    num_workers: int = option(
        1,
        "threads that read batches ahead; 0 is taken as 1",
        kind=utils.count,
        changeable=True,
        check=Check(lambda n: n <= MAX_WORKERS, f"be at most {MAX_WORKERS}; more than there are cores gain little"),
    )
    crop_size: int | None = option(
        None,
        "side of the images to train on where those of the file are larger: random crops in training (with "
        "--augment), the centre for statistics and classifier",
        kind=utils.positive_int,
    )

    def check_named(self) -> None:
        """Raise utils.UserError where no data set is named."""
        if self.dataset is None:
            raise utils.UserError("--dataset is required: the name of a data set made by make_hdf5.py")

    @property
    def path(self) -> Path:
        """The file of the data set, whether or not it is there."""
        return dataset_path(self.dataset, self.data_root)

    @property
    def reference_name(self) -> str:
        """The name under which statistics and the classifier are stored: that of the file, or of its centre crops."""
        return cropped_name(self.path.stem, self.crop_size) if self.crop_size else self.path.stem

    def open(self) -> HDF5Dataset:
        """The data set. Raises: as `open_dataset`."""
        self.check_named()
        return open_dataset(self.dataset, self.data_root, self.load_in_mem)

    def reference_part(self, images: ImageSet) -> ImageSet:
        """What statistics are of: the images, or their centres where training crops."""
        return CentreCrop(images, self.crop_size) if self.crop_size else images


def dataset_path(name: str, data_root: str | Path) -> Path:
    """The file of a data set, whether or not there is such a file.

    Args: name: `NAME` or `NAME_hdf5`, the family's `I64_hdf5` included, or the path of a .hdf5 or .h5 file, which is
        taken as it is; data_root: folder that names are looked up in.
    """
    if Path(name).suffix in (".hdf5", ".h5"):
        return Path(name)
    stem = name.removesuffix("_hdf5")
    return Path(data_root) / FAMILY_FILES.get(stem, f"{stem}.hdf5")


def open_dataset(name: str, data_root: str | Path, load_in_mem: bool = False) -> HDF5Dataset:
    """Open a data set by name (see `dataset_path`).

    Raises: UserError if there is no such file, naming the command that makes it, or if the file is not a data set.
    """
    path = dataset_path(name, data_root)
    if not path.exists():
        present = ", ".join(sorted(file.stem for file in path.parent.glob("*.hdf5") if not file.name.startswith(".")))
        there = f"{path.parent} holds {present}; " if present else ""
        raise utils.UserError(f"--dataset {name}: there is no {path}; {there}make it with: {_make_command(path)}")
    return HDF5Dataset(path, load_in_mem)


def _make_command(path):
    flags = "folder --images FOLDER --resolution R"
    for name, file_name in FAMILY_FILES.items():
        if path.name == file_name:
            flags = f"{name} --images IMAGENET_TRAIN_FOLDER"
    if path.stem in ("C10", "C100"):
        flags = f"{path.stem} --images CIFAR_FOLDER"
    if path.stem in ("digits", "shapes"):
        flags = path.stem
    if path.stem == "shapes64":
        flags = "shapes --resolution 64"
    return f"python make_hdf5.py --dataset {flags} --out {path}"


@functools.lru_cache(maxsize=2)  # around an epoch's border, batches of two epochs are asked for in turn
def _epoch_order(num_images, seed, epoch):
    order = utils.rng(seed, "order", epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def batch_indices(num_images: int, batch_size: int, batch_number: int, seed: int) -> np.ndarray:
    """Which images are in a batch: a pure function, so that a run can be resumed at any batch on any number of ranks.

    Shuffle the data set anew for every epoch and write the epochs one after the other: batch k is the k-th piece of
    batch_size images of that endless list. It is never short, and over an epoch every image occurs exactly once.

    Args: num_images: N; batch_size: B, may exceed N; batch_number: k >= 0; seed: >= 0. Returns: int64 (B,).
    """
    start, stop = batch_number * batch_size, (batch_number + 1) * batch_size
    pieces = []
    for epoch in range(start // num_images, (stop - 1) // num_images + 1):
        first = epoch * num_images
        pieces.append(_epoch_order(num_images, seed, epoch)[max(start - first, 0) : stop - first])
    return np.concatenate(pieces)


class BatchLoader:
    """Endless iterator over this rank's part of the training batches, read ahead by threads.

    Yields (images uint8 (b,3,R,R), labels int64 (b,)) for batch numbers start, start + 1, ... in order, whatever the
    number of threads: rows rank*b to (rank+1)*b of the batch that a single process would see. An error while reading
    is raised by `next`. It is also a context manager that closes itself.

    Args: batch_size: B; seed: >= 0; start: number of the first batch; num_workers: reading threads, 0 is taken as 1;
        pin_memory: page-lock the images (CUDA only).
    Raises: UserError if the ranks do not divide B.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        pin_memory: bool = False,
    ):
        if batch_size % world_size:
            raise utils.UserError(f"--batch_size {batch_size} cannot be split evenly over {world_size} processes")
        self.dataset, self.batch_size, self.seed, self.pin_memory = dataset, batch_size, seed, pin_memory
        local = batch_size // world_size
        self.rows = slice(rank * local, (rank + 1) * local)
        self.next_number = start
        num_workers = max(1, num_workers)
        self.threads = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="BatchLoader")
        self.pending = collections.deque()  # futures in the order of their batches
        for _ in range(num_workers + 1):  # one batch ready while every thread is at work on another
            self._submit()

    def _submit(self):
        self.pending.append(self.threads.submit(self._read, self.next_number))
        self.next_number += 1

    def _read(self, batch_number):
        indices = batch_indices(len(self.dataset), self.batch_size, batch_number, self.seed)[self.rows]
        return self.dataset.read(indices, pin_memory=self.pin_memory), self.dataset.labels_at(indices)

    def __iter__(self):
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self.pending:
            raise ValueError("the BatchLoader is closed")
        try:
            batch = self.pending.popleft().result()
        except BaseException:  # an error of the reading thread, or Ctrl-C while we waited for it
            self.close()
            raise
        self._submit()
        return batch

    def close(self) -> None:
        """End the threads; batches read ahead are dropped."""
        self.pending.clear()
        self.threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def iterate(dataset: ImageSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once over a data set in its own order, for statistics.

    Yields: images uint8 (b,3,R,R) and labels int64 (b,); b is batch_size, less in the last pair.
    """
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        yield dataset.read(indices), dataset.labels_at(indices)
