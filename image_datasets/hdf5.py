"""One data set file: HDF5 with `imgs` uint8 (N,3,R,R) and `labels` int64 (N,), as the BigGAN-PyTorch family has it.

It is read whole batches at a time.

Symbols: N images, resolution R, B images in a batch.
"""

import errno
import itertools
import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import ArrayLike

import utils
from image_datasets.image_sets import ImageSet, number_of_classes

MAX_INT64 = np.iinfo(np.int64).max


class HDF5Dataset(ImageSet):
    """Images and labels of one HDF5 file, read a batch at a time from any number of threads.

    Uncompressed pixels, contiguous or in the family's chunks of whole images, are memory-mapped: the system's file
    cache then is the only copy, shared by all processes. Compressed ones, and those behind a link to another file, are
    read through h5py. Pixels that the file only promises (virtual, external storage) are refused: where they are not
    all there, HDF5 gives zeros without a word.

    Attributes: as `ImageSet`; content: the `content_hash` that it was written with, class_order, stamp: as of
        `sources.Source` (all None where the file does not say); images: uint8 (N,3,R,R), a memory map, an array
        (load_in_mem), `MappedChunks` or `UnmappedImages`.
    Raises: UserError with one line that names the file and what is wrong with it.
    """

    def __init__(self, path: str | Path, load_in_mem: bool = False):
        path = Path(path)
        try:
            with _open_hdf5(path) as file:
                pixels, labels = _checked(file, path)
                super().__init__(path, path.stem, pixels.shape[-1], labels, _class_names(file, labels, path))
                self.source, self.crop_resize = file.attrs.get("source"), file.attrs.get("crop_resize")
                self.content, self.class_order, self.stamp = map(file.attrs.get, ("content", "class_order", "stamp"))
                self.images = pixels[()] if load_in_mem else _memory_map(pixels, path)
                chunk_cache = _chunk_cache(pixels)
            if self.images is None:
                self.images = UnmappedImages(path, chunk_cache)
            self.file = open(path, "rb") if self.is_mapped and not load_in_mem else None  # noqa: SIM115  (as the map)
            self.num_bytes = path.stat().st_size
        except (OSError, RuntimeError) as error:  # what h5py raises for damage inside a file
            raise utils.UserError(f"{path}: damaged HDF5 file ({utils.first_line(error)})") from error

    @property
    def is_mapped(self) -> bool:
        """Whether any image can be read without unpacking others."""
        return not isinstance(self.images, UnmappedImages)

    def read_paths(self) -> list[str] | None:
        """Paths of the N files that the images came from, below their folder or zip; None where that is not known."""
        with _open_hdf5(self.path) as file:
            paths = file.get("paths")
            if not isinstance(paths, h5py.Dataset) or paths.shape != (len(self),) or paths.dtype.kind != "S":
                return None
            return [path.decode(errors="surrogateescape") for path in paths[()]]

    def read(self, indices: ArrayLike, pin_memory: bool = False) -> torch.Tensor:
        """Pixels of some images: ints (B,), in any order, repeats allowed, to uint8 (B,3,R,R).

        pin_memory: page-lock the result, so that copies to a GPU overlap with its work.
        Raises: IndexError for an index outside 0..N-1; UserError where the file has been cut short since it was opened.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"{self.path} has images 0 to {len(self) - 1}, asked for {indices.min()}..{indices.max()}")
        if self.file and os.fstat(self.file.fileno()).st_size < self.num_bytes:
            # Touching a page of the map that is not there any more would kill the process without a word.
            raise utils.UserError(f"{self.path} has been cut short while it is read; make it again, or copy it again")
        shape = (len(indices), 3, self.resolution, self.resolution)
        if pin_memory:
            batch = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:  # numpy's memory is used again; torch's aligned blocks are new each time, at a page fault for every 4 kB
            batch = torch.from_numpy(np.empty(shape, dtype=np.uint8))
        # The indices are checked above: "clip" only spares numpy the extra copy that its own check would cost.
        self.images.take(indices, axis=0, out=batch.numpy(), mode="clip")
        return batch


class MappedChunks:
    """Pixels in uncompressed chunks of whole images, over a memory map, behind the part of numpy's interface we use.

    Args: file_map: uint8, all bytes of the file; offsets: int64, where each chunk starts; length: images in a chunk;
        shape: (N,3,R,R).
    """

    def __init__(self, file_map: np.ndarray, offsets: np.ndarray, length: int, shape: tuple):
        self.file_map, self.offsets, self.length = file_map, offsets, length
        self.shape, self.dtype = shape, file_map.dtype

    def take(self, indices: np.ndarray, axis: int, out: np.ndarray, mode: str) -> np.ndarray:
        """`numpy.ndarray.take` along axis 0 for indices within range."""
        num_bytes = math.prod(self.shape[1:])
        starts = self.offsets[indices // self.length] + indices % self.length * num_bytes
        for row, start in zip(out.reshape(len(indices), num_bytes), starts.tolist(), strict=True):
            row[:] = self.file_map[start : start + num_bytes]
        return out


class UnmappedImages:
    """Pixels that cannot be memory-mapped (compressed, chunks of parts of images), behind the same interface.

    h5py serialises calls into HDF5 by itself, so any thread may read.
    """

    def __init__(self, path: Path, chunk_cache: int):
        self.pixels = _open_hdf5(path, chunk_cache)["imgs"]  # keeps its file open
        self.shape, self.dtype = self.pixels.shape, self.pixels.dtype

    def take(self, indices: np.ndarray, axis: int, out: np.ndarray, mode: str) -> np.ndarray:
        """`numpy.ndarray.take` along axis 0 for indices within range."""
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
            raise utils.UserError(f"{self.pixels.file.filename}: damaged chunk ({utils.first_line(error)})") from error
        return np.take(rows, inverse, axis=0, out=out, mode="clip")


def _open_hdf5(path, chunk_cache=0):
    try:
        # No lock: files are replaced, never changed in place, and some network file systems cannot lock.
        return h5py.File(path, "r", locking=False, rdcc_nbytes=chunk_cache)
    except OSError as error:
        if path.is_dir():
            raise utils.UserError(f"{path} is a folder, not an HDF5 file") from error
        if error.errno is not None:  # the system's refusal: permissions, a broken disk
            raise utils.UserError(f"cannot read {path}: {os.strerror(error.errno)}{lock_hint(error)}") from error
        if "truncated" in str(error):
            raise utils.UserError(f"{path} is truncated (an unfinished copy?); copy or make it again") from error
        raise utils.UserError(f"{path} is not an HDF5 file") from error


def lock_hint(error: Exception) -> str:
    """What to do where HDF5 cannot lock a file, to follow a message; "" for any other error."""
    if "unable to lock" not in str(error):
        return ""
    return "; this file system has no locks: unset HDF5_USE_FILE_LOCKING, or set it to FALSE"


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
    for name, dataset in (("imgs", pixels), ("labels", labels)):
        _check_stored(dataset, name, path)
    labels = labels[()]
    if labels.min() < 0 or labels.max() > MAX_INT64 or "class_names" not in file.attrs:
        number_of_classes(int(labels.min()), int(labels.max()), len(labels), f"{path}: 'labels'")
    return pixels, labels.astype(np.int64)


def _check_stored(dataset, name, path):
    """Raise UserError where the values of an h5py data set are not in its own file."""
    if dataset.is_virtual or dataset.external:
        kind = "a virtual data set, put together of other files" if dataset.is_virtual else "stored in other files"
        raise utils.UserError(
            f"{path}: '{name}' is {kind}, which cannot be seen to be complete: write its values into one file "
            "(h5py: create_dataset), or make the data again with make_hdf5.py"
        )


def _class_names(file, labels, path):
    num_classes = int(labels.max()) + 1
    if "class_names" not in file.attrs:
        return [str(i) for i in range(num_classes)]
    try:
        names = json.loads(file.attrs["class_names"])
    except (TypeError, ValueError) as error:
        raise utils.UserError(f"{path}: the attribute 'class_names' is not a JSON list") from error
    if not isinstance(names, list) or len(names) < num_classes:
        raise utils.UserError(f"{path}: 'labels' go up to {num_classes - 1}, but 'class_names' does not name that many")
    return [str(name) for name in names]


def _memory_map(pixels, path):
    """The pixels over a memory map of the file, or None where the file does not hold them as plain blocks of images."""
    if not os.path.samefile(pixels.file.filename, path):  # a link leads to another file, whose offsets are its own
        return None
    chunked = pixels.chunks is not None
    offsets = _chunk_offsets(pixels) if chunked else pixels.id.get_offset()
    if offsets is None:
        return None
    block = math.prod(pixels.chunks) if chunked else pixels.size
    if path.stat().st_size < np.max(offsets) + block:  # touching a page that is not there would kill the process
        raise utils.UserError(f"{path} is truncated: its pixels do not fit in it; copy or make it again")
    try:  # plain arrays over the map: np.memmap's own class makes every operation slower
        file_map = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS):  # some file systems cannot map files
            return None
        raise
    if chunked:
        return MappedChunks(file_map, offsets, pixels.chunks[0], pixels.shape)
    return file_map[offsets : offsets + block].reshape(pixels.shape)


def _chunk_offsets(pixels):
    """Where each chunk starts in the file (int64), or None unless all are there, unfiltered, and of whole images."""
    if pixels.chunks[1:] != pixels.shape[1:] or pixels.id.get_create_plist().get_nfilters():
        return None
    if pixels.file.userblock_size:  # which some versions of HDF5 count in these offsets, and some do not
        return None
    firsts = range(0, len(pixels), pixels.chunks[0])
    offsets = [pixels.id.get_chunk_info_by_coord((first, 0, 0, 0)).byte_offset for first in firsts]
    return None if None in offsets else np.array(offsets)  # None: never written, HDF5 reads zeros there


def _chunk_cache(pixels):
    """Bytes for HDF5's cache of chunks: room for two if they are compressed, so that neighbours do not unpack a chunk
    again (the usual 6 MB at 64x64 exceed HDF5's default); none for plain chunks, which it can read a part of."""
    compressed = pixels.chunks is not None and pixels.id.get_create_plist().get_nfilters() > 0
    return 2 * math.prod(pixels.chunks) if compressed else 0
