"""Data sets: names and paths, opening an HDF5 file, the order of training images, and prefetching loaders.

A data set is one HDF5 file with `imgs` uint8 (N,3,R,R) and `labels` int64 (N,), the layout of the BigGAN-PyTorch
family; `make_hdf5.py` writes it. Resolution and number of classes come from the file, never from a table.

Symbols: N images, resolution R, B images in a batch over all ranks, b = B / world_size of them on this rank.
"""

import argparse
import collections
import concurrent.futures
import functools
import itertools
import json
import math
from pathlib import Path

import h5py
import numpy as np
import torch

import utils

# The names under which the family's launch scripts know ImageNet.
FAMILY_FILES = {f"I{resolution}_hdf5": f"ILSVRC{resolution}.hdf5" for resolution in (32, 64, 128, 256)}


def add_data_args(parser, loader=True):
    """Add the flags that say which data set to read, and how, to an argparse parser; `loader`: those of BatchLoader."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default=None,
        help="name of a data set: NAME or NAME_hdf5 reads NAME.hdf5 under --data_root, I64_hdf5 reads ILSVRC64.hdf5 "
        "(likewise I32, I128, I256); or the path of a file that ends in .hdf5 or .h5",
    )
    group.add_argument("--data_root", default="data", help="folder of the data sets and of their statistics")
    group.add_argument(
        "--load_in_mem",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="read the whole file into memory first (of use for compressed files and slow disks)",
    )
    if loader:
        group.add_argument("--num_workers", type=utils.positive_int, default=1, help="threads that read batches ahead")


def dataset_path(name, data_root):
    """The file of a data set.

    Args: name: `NAME` or `NAME_hdf5`, the family's `I64_hdf5` included, or the path of a .hdf5 or .h5 file, which is
        taken as it is; data_root: folder that names are looked up in.
    Returns: Path, whether or not there is such a file.
    """
    if Path(name).suffix in (".hdf5", ".h5"):
        return Path(name)
    stem = name.removesuffix("_hdf5")
    return Path(data_root) / FAMILY_FILES.get(f"{stem}_hdf5", f"{stem}.hdf5")


def open_dataset(name, data_root, load_in_mem=False):
    """Open a data set by name (see `dataset_path`).

    Returns: HDF5Dataset.
    Raises: UserError if there is no such file, naming the command that makes it, or if the file is not a data set.
    """
    path = dataset_path(name, data_root)
    if not path.exists():
        present = ", ".join(sorted(file.stem for file in path.parent.glob("*.hdf5") if not file.name.startswith(".")))
        there = f"{path.parent} holds {present}; " if present else ""
        raise utils.UserError(f"--dataset {name}: there is no {path}; {there}make it with: {_make_command(path)}")
    return HDF5Dataset(path, load_in_mem)


def _make_command(path):
    for name, file_name in FAMILY_FILES.items():
        if path.name == file_name:
            dataset = name.removesuffix("_hdf5")
            return f"python make_hdf5.py --dataset {dataset} --images IMAGENET_TRAIN_FOLDER --out {path}"
    if path.stem == "digits":
        return f"python make_hdf5.py --dataset digits --out {path}"
    return f"python make_hdf5.py --dataset folder --images FOLDER --resolution R --out {path}"


# ---------------------------------------------------------------------------------------------------------------------
# One file


class HDF5Dataset:
    """Images and labels of one HDF5 file, read a batch at a time from any number of threads.

    Contiguous, uncompressed pixels are memory-mapped: the system's file cache then is the only copy, shared by all
    processes. Chunked or compressed files, as the family makes them, are read through h5py.

    Attributes: path; name: file stem; images: uint8 (N,3,R,R), a memory map, an array (load_in_mem) or a
        `ChunkedImages`; labels: int64 array (N,); num_classes; resolution: R; class_names: list of str;
        source and crop_resize: where the images came from and how they were brought to RxR (None: the file is silent).
    Raises: UserError with one line that names the file and what is wrong with it.
    """

    def __init__(self, path, load_in_mem=False):
        self.path = Path(path)
        self.name = self.path.stem
        try:
            with _open_hdf5(self.path) as file:
                pixels, self.labels = _checked(file, self.path)
                self.resolution = pixels.shape[-1]
                self.class_names = _class_names(file, self.labels, self.path)
                self.num_classes = len(self.class_names)
                self.source = file.attrs.get("source")
                self.crop_resize = file.attrs.get("crop_resize")
                self.images = pixels[()] if load_in_mem else _memory_map(pixels, self.path)
                chunk_cache = _chunk_cache(pixels)
            if self.images is None:
                self.images = ChunkedImages(self.path, chunk_cache)
        except (OSError, RuntimeError) as error:  # what h5py raises for damage inside a file
            raise utils.UserError(f"{self.path}: damaged HDF5 file ({_first_line(error)})") from error

    def __len__(self):
        return len(self.labels)

    def read(self, indices, pin_memory=False):
        """Pixels of some images.

        Args: indices: int array (B,), in any order, repeats allowed; pin_memory: page-lock the result, so that copies
            to a GPU overlap with its work.
        Returns: uint8 tensor (B,3,R,R).
        Raises: IndexError for an index outside 0..N-1.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"{self.path} has images 0 to {len(self) - 1}, asked for {indices.min()}..{indices.max()}")
        shape = (len(indices), 3, self.resolution, self.resolution)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        # The indices are checked above: "clip" only spares numpy the extra copy that its own check would cost.
        self.images.take(indices, axis=0, out=batch.numpy(), mode="clip")
        return batch

    def labels_at(self, indices):
        """Class ids of some images: int array (B,) to int64 tensor (B,)."""
        return torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)])


class ChunkedImages:
    """Pixels that cannot be memory-mapped (chunked, compressed), behind the part of numpy's interface that we use.

    h5py serialises calls into HDF5 by itself, so any thread may read.
    """

    def __init__(self, path, chunk_cache):
        self.pixels = _open_hdf5(path, chunk_cache)["imgs"]  # keeps its file open
        self.shape, self.dtype = self.pixels.shape, self.pixels.dtype

    def take(self, indices, axis, out, mode):
        """`numpy.ndarray.take` along axis 0 for indices within range."""
        del axis, mode
        # In increasing order each chunk is unpacked once. Runs of neighbours are read one by one, since h5py's own
        # selection by a list of indices is slower by a factor of 3 (LZF) to 100 (plain chunks).
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = np.empty((len(unique), *self.shape[1:]), dtype=self.dtype)
        borders = [0, *(np.flatnonzero(np.diff(unique) != 1) + 1), len(unique)]
        try:
            for start, stop in itertools.pairwise(borders):
                if start < stop:
                    self.pixels.read_direct(rows, np.s_[unique[start] : unique[stop - 1] + 1], np.s_[start:stop])
        except OSError as error:
            raise utils.UserError(f"{self.pixels.file.filename}: damaged chunk ({_first_line(error)})") from error
        return np.take(rows, inverse, axis=0, out=out, mode="clip")


def _open_hdf5(path, chunk_cache=0):
    try:
        # No lock: files are replaced, never changed in place, and some network file systems cannot lock.
        return h5py.File(path, "r", locking=False, rdcc_nbytes=chunk_cache)
    except OSError as error:
        if path.is_dir():
            raise utils.UserError(f"{path} is a folder, not an HDF5 file") from error
        if error.errno is not None:  # the system's refusal: permissions, a broken disk
            raise utils.UserError(f"cannot read {path}: {error.strerror or _first_line(error)}") from error
        if "truncated" in str(error):
            raise utils.UserError(f"{path} is truncated (an unfinished copy?); copy or make it again") from error
        raise utils.UserError(f"{path} is not an HDF5 file") from error


def _checked(file, path):
    """The h5py data set of the pixels and the labels, int64 (N,), of an open file, if they are what they should be."""
    if not file.attrs.get("complete", True):  # no such attribute: a file of the family
        raise utils.UserError(f"{path} was never finished; make it again with make_hdf5.py --overwrite")
    for key in ("imgs", "labels"):
        if not isinstance(file.get(key), h5py.Dataset):
            found = ", ".join(file) or "nothing"
            raise utils.UserError(f"{path} has no data set '{key}' (it has {found}); make_hdf5.py makes such files")
    pixels, labels = file["imgs"], file["labels"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise utils.UserError(f"{path}: 'imgs' must be uint8 (N,3,R,R), not {pixels.dtype} {pixels.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise utils.UserError(
            f"{path}: 'labels' must be integers ({len(pixels)},), one an image, not {labels.dtype} {labels.shape}"
        )
    if not pixels.size:
        raise utils.UserError(f"{path} holds no images")
    labels = labels[()].astype(np.int64)
    if labels.min() < 0:
        raise utils.UserError(f"{path}: 'labels' go down to {labels.min()}; class ids start at 0")
    return pixels, labels


def _class_names(file, labels, path):
    num_classes = int(labels.max()) + 1
    text = file.attrs.get("class_names")
    if text is None:
        return [str(i) for i in range(num_classes)]
    try:
        names = json.loads(text)
    except (TypeError, ValueError) as error:
        raise utils.UserError(f"{path}: the attribute 'class_names' is not a JSON list") from error
    if not isinstance(names, list) or len(names) < num_classes:
        raise utils.UserError(f"{path}: 'labels' go up to {num_classes - 1}, but 'class_names' does not name that many")
    return [str(name) for name in names]


def _memory_map(pixels, path):
    """The pixels as an array over a memory map of the file, or None where they are not one plain block of it."""
    offset = pixels.id.get_offset()
    if offset is None or pixels.chunks is not None:
        return None
    if path.stat().st_size < offset + pixels.size:  # touching a page that is not there would kill the process
        raise utils.UserError(f"{path} is truncated: its pixels do not fit in it; copy or make it again")
    # A plain array over the map: np.memmap's own class makes every operation slower.
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=pixels.shape))


def _chunk_cache(pixels):
    """Bytes for HDF5's cache of chunks: room for two if they are compressed, so that neighbours do not unpack a chunk
    again (the usual 6 MB at 64x64 exceed HDF5's default); none for plain chunks, which it can read a part of."""
    compressed = pixels.chunks is not None and pixels.id.get_create_plist().get_nfilters() > 0
    return 2 * math.prod(pixels.chunks) if compressed else 0


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------------------------------------------------
# Order and loaders


@functools.lru_cache(maxsize=2)  # around an epoch's border, batches of two epochs are asked for in turn
def _epoch_order(num_images, seed, epoch):
    order = utils.rng(seed, "order", epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def batch_indices(num_images, batch_size, batch_number, seed):
    """Which images are in a batch: a pure function, so that a run can be resumed at any batch on any number of ranks.

    Shuffle the data set anew for every epoch and write the epochs one after the other: batch k is the k-th piece of
    batch_size images of that endless list. It is never short, and over an epoch every image occurs exactly once.

    Args: num_images: N; batch_size: B, may exceed N; batch_number: k >= 0; seed: int >= 0.
    Returns: int64 array (B,).
    """
    start, stop = batch_number * batch_size, (batch_number + 1) * batch_size
    epochs = range(start // num_images, (stop - 1) // num_images + 1)
    pieces = [
        _epoch_order(num_images, seed, epoch)[max(start - epoch * num_images, 0) : stop - epoch * num_images]
        for epoch in epochs
    ]
    return np.concatenate(pieces)


class BatchLoader:
    """Endless iterator over this rank's part of the training batches, read ahead by threads.

    Yields (images uint8 (b,3,R,R), labels int64 (b,)) for batch numbers start, start + 1, ... in order, whatever the
    number of threads: rows rank*b to (rank+1)*b of the batch that a single process would see. An error while reading
    is raised by `next`. It is also a context manager that closes itself.

    Args: dataset: has `len`, `read` and `labels_at` as `HDF5Dataset` has; batch_size: B; seed: int >= 0;
        start: number of the first batch; num_workers: reading threads; pin_memory: page-lock the images (CUDA only).
    Raises: UserError if the ranks do not divide B.
    """

    def __init__(self, dataset, batch_size, seed, start=0, rank=0, world_size=1, num_workers=1, pin_memory=False):
        if batch_size % world_size:
            raise utils.UserError(f"--batch_size {batch_size} cannot be split evenly over {world_size} processes")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.pin_memory = pin_memory
        local = batch_size // world_size
        self.rows = slice(rank * local, (rank + 1) * local)
        self.next_number = start
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

    def __next__(self):
        if not self.pending:
            raise ValueError("the BatchLoader is closed")
        try:
            batch = self.pending.popleft().result()
        except BaseException:  # an error of the reading thread, or Ctrl-C while we waited for it
            self.close()
            raise
        self._submit()
        return batch

    def close(self):
        """End the threads; batches read ahead are dropped."""
        self.pending.clear()
        self.threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def iterate(dataset, batch_size):
    """Go once over a data set in its own order, for statistics.

    Yields: (images uint8 (b,3,R,R), labels int64 (b,)); b is batch_size, less in the last pair.
    """
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        yield dataset.read(indices), dataset.labels_at(indices)
