"""Writing an HDF5 data set: how it is laid out, and a writer that goes on where it was after any interruption.

While it is being made, a file FILE.hdf5 is `FILE.hdf5.partial`, an HDF5 file marked as incomplete, of which the pixels
are filled in order, and `FILE.hdf5.journal`, which says how far they are. An unreadable image leaves no gap, so that
at the end only the number of images is left to be put right. The name FILE.hdf5 never stands for less than the whole.
"""

import collections
import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import PIL
from numpy.typing import ArrayLike
from tqdm import tqdm

import utils
from image_datasets.content import content_hash, image_hashes
from image_datasets.decoding import ValueRange, decode
from image_datasets.hdf5 import lock_hint
from image_datasets.journal import Journal, Progress, locked
from image_datasets.sources import Source

WRITE_BLOCK = 64  # images per HDF5 call: one call for each image would cost as much as decoding a small one
PATH_BYTES = 64  # a packed path takes up, at most as a rule
COMMIT_SECONDS = 1.0  # between two entries of the journal: at most this much work is done again


def write_hdf5(
    path: str | Path,
    images: Iterable[np.ndarray],
    labels: ArrayLike,
    class_names: list[str],
    source: str,
    rule: str,
    paths: Sequence[str] = (),
) -> None:
    """Write a data set; the file appears under its name only when it is complete.

    Args: images: N uint8 arrays (3,R,R); labels: ints (N,); rule: text for the attribute `crop_resize`; paths: of the
        N files that the images came from, if they are known.
    Raises: UserError if the file cannot be written, ValueError if there are fewer images than labels.
    """
    images = iter(images)
    with utils.atomic_path(path) as temporary:
        first = next(images, None)
        if first is None:
            raise ValueError("no images to write")
        try:
            with _new_hdf5(temporary) as file:
                pixels = _lay_out(file, np.asarray(labels, np.int64), first.shape, class_names, source, rule)
                hashes = _fill(pixels, itertools.chain([first], images))
                _complete(file, content_hash(hashes, labels, first.shape[-1]), paths)
        except (OSError, RuntimeError) as error:  # what h5py raises when the disk is full
            raise utils.UserError(f"cannot write {path}: {error}{lock_hint(error)}") from error


def _new_hdf5(path):
    # Without HDF5's lock, which some network file systems refuse: only this process knows of the file.
    return h5py.File(path, "w", locking=False)


def _lay_out(file, labels, shape, class_names, source, rule, unreadable=0):
    """Put everything but the pixels into an open, empty HDF5 file, marked as incomplete.

    The pixels come before the labels: where they begin depends neither on N nor on `unreadable`.

    Args: labels: int64 (N,); shape: (3,R,R). Returns: the h5py data set `imgs`, allocated, not written.
    """
    file.attrs["class_names"] = json.dumps(list(class_names))
    file.attrs["source"] = source
    file.attrs["crop_resize"] = rule
    file.attrs["unreadable"] = np.int64(unreadable)
    file.attrs["complete"] = np.False_
    pixels = _allocate(file, (len(labels), *shape))
    file["labels"] = labels
    return pixels


def _complete(file, content, paths=(), class_order="", stamp=""):
    """Put what is known at the end only into an open file, behind all else, and mark it as complete.

    Args: content: its `content_hash`; paths: N paths, of any bytes, or none; class_order, stamp: as of `Source`.
    """
    file.attrs["content"] = content
    for name, text in (("class_order", class_order), ("stamp", stamp)):
        if text:
            file.attrs[name] = text
    if len(paths):
        as_bytes = np.array([path.encode(errors="surrogateescape") for path in paths])
        file.create_dataset("paths", data=as_bytes, compression="gzip")  # of one length, mostly padding
    file.attrs.modify("complete", np.True_)


def _allocate(file, shape):
    """The data set `imgs` as one block that is in the file from the start: a loader can map it into memory."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte is written later
    properties.set_obj_track_times(False)  # the same images make the same file, to the byte
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, b"imgs", h5py.h5t.STD_U8LE, space, properties))


def _fill(pixels, images):
    """Write all images. Returns: their hashes."""
    filled, hashes = 0, []
    while block := list(itertools.islice(images, WRITE_BLOCK)):
        pixels[filled : filled + len(block)] = np.stack(block)
        hashes.append(image_hashes(np.stack(block)))
        filled += len(block)
    if filled != len(pixels):
        raise ValueError(f"{filled} images for {len(pixels)} labels")
    return np.concatenate(hashes)


def check_disk(out: str | Path, num_images: int, resolution: int) -> None:
    """Say how large the file `out` will be. Raises: UserError if it would not fit on its disk."""
    out, partial = Path(out), _beside(out, "partial")
    held = partial.stat().st_blocks * 512 if partial.exists() else 0  # what an unfinished one already takes up
    needed = num_images * (3 * resolution**2 + 8 + PATH_BYTES) + 2**20
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free + held
    if free < needed:
        raise utils.UserError(
            f"{out} needs {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; make room or change --out"
        )
    print(f"{out}: {num_images} images of {resolution}x{resolution}, {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free")


def report_path(out: str | Path) -> Path:
    """The list of the images that were left out of the data set `out`."""
    return _beside(out, "unreadable.txt")


def remove_leftovers(out: str | Path) -> None:
    """Remove what a call that was interrupted just after finishing `out` has left behind.

    An unfinished file that is to replace `out` stays, and so does all while another process is at work.
    """
    leftovers = [_beside(out, ending) for ending in ("header", "journal")]
    if any(path.exists() for path in leftovers) and not _beside(out, "partial").exists():
        with contextlib.suppress(utils.UserError, OSError), locked(leftovers[-1]):
            for path in leftovers:
                path.unlink(missing_ok=True)


def _beside(out, ending):
    return Path(out).with_name(f"{Path(out).name}.{ending}")


class ResumableWriter:
    """Decodes the images of a `Source` and writes them, from where an interrupted run of the same got to.

    Whatever ends it, also in the middle of a write, the next run goes on, and the finished file is the same to the
    byte; num_workers and max_bad may change in between. What another source or rule, or another version of the
    libraries that decode and write, has got done is refused, unless there is nothing of it yet or `overwrite` is given:
    then it starts anew. An existing `out` is replaced at the end. Unreadable images are left out and listed in
    `report_path(out)`.

    Args: out: path of the HDF5 file; rule: text for the attribute `crop_resize`; max_bad: unreadable images at most;
        value_range: as of `decoding.to_rgb`, said in the rule.
    Attributes, from `run` on: progress: what is in the partial file; offset: the byte at which its pixels begin;
        journal: its `Journal`.
    """

    def __init__(
        self,
        out: str | Path,
        source: Source,
        resolution: int,
        rule: str,
        max_bad: int,
        value_range: ValueRange | None = None,
    ) -> None:
        self.out, self.partial = Path(out), _beside(out, "partial")
        self.source, self.resolution, self.max_bad, self.value_range = source, resolution, max_bad, value_range
        self.layout = (3, resolution, resolution), source.class_names, source.description, rule
        self.key = [source.description, rule, PIL.__version__, h5py.version.hdf5_version]

    def run(self, num_workers: int, overwrite: bool = False) -> list[tuple[int, str]]:
        """Write the file. Args: num_workers: decoding processes. Returns: (index, reason) of the unreadable images.

        Raises: UserError if there are more than max_bad of those, or nothing else in a class, if `out` cannot be
            written, or if another process is writing it, or has left it unfinished with other images.
        """
        journal = _beside(self.out, "journal")
        with _explained(self.out), locked(journal) as file:
            self.journal = Journal(file)
            if not self._resume(overwrite):
                self._begin()
            self._check_unreadable()
            self._write_pixels(num_workers)
            self._finish()
            journal.unlink()
        return list(self.progress.unreadable)

    def _begin(self):
        """Lay out the partial file and reserve its space."""
        self.journal.file.truncate(0)
        self.progress = self.journal.committed = Progress()
        with _new_hdf5(self.partial) as file:
            self.offset = _lay_out(file, self.source.labels, *self.layout).id.get_offset()
        try:
            _reserve(self.partial)
        except OSError:
            self.partial.unlink()  # it may hold all the space that there was
            raise
        stamp = {"stamp": self.source.stamp} if self.source.stamp else {}
        self.journal.append({"key": self.key, "offset": self.offset} | stamp)

    def _resume(self, overwrite):
        """Take up the work of an interrupted run. Returns: whether there is any.

        Raises: UserError if it has got somewhere with other images, unless these are to be overwritten.
        """
        lines = self.journal.read()
        if not lines:
            return False
        if not self.partial.exists():
            print(f"starting anew: {self.partial} is no longer there")
            return False
        if not self._is_of_these_images(lines[0]):
            origin = f"{self.partial} was begun from other images, by another rule or by other versions"
            if lines[-1].get("done") and not overwrite:  # it may be the work of hours
                raise utils.UserError(f"{origin}; --overwrite starts anew, --out writes another file")
            print(f"starting anew: {origin}")
            return False
        self.offset, self.progress = lines[0]["offset"], self.journal.replay(lines[1:])
        if self.partial.stat().st_size < self._position():
            print(f"starting anew: {self.partial} is shorter than it was")
            return False
        self._retry_unreadable()
        print(f"going on with {self.partial}: {self.progress.done} of {len(self.source.images)} images are done")
        return True

    def _is_of_these_images(self, about):
        """Whether the first line of a journal is what `_begin` would write, here or in an earlier version of it."""
        if about.get("key") != self.key or not self.source.stamp:
            return about.get("key") == self.key
        if "stamp" in about:
            return about["stamp"] == self.source.stamp
        # Earlier versions knew nothing of stamps, and no order of classes but that of their names as text.
        return self.source.class_names == sorted(self.source.class_names)

    def _retry_unreadable(self):
        """Go back to the first image that has become readable (a disk that is back), if any: all after it moves."""
        for index, _ in self.progress.unreadable:
            image = [self.source.images[index]]
            if not next(decode(image, self.resolution, 1, value_range=self.value_range)).unreadable:
                self.journal.append({"start": index, "done": index, "unreadable": []})
                self.progress = self.journal.committed = self.progress.then(index, index, ())
                return

    def _position(self):
        """The byte of the partial file at which the next image goes."""
        return self.offset + (self.progress.done - len(self.progress.unreadable)) * 3 * self.resolution**2

    def _write_pixels(self, num_workers):
        """Decode the images that are not done yet and write them, one row after the other."""
        images, done = self.source.images, self.progress.done
        options = {"unit": "images", "dynamic_ncols": True, **utils.bar_interval()}
        bar = tqdm(desc=self.out.name, total=len(images), initial=done, **options)
        blocks = decode(images, self.resolution, num_workers, done, self.value_range)
        committed_at = time.monotonic()
        with open(self.partial, "r+b", buffering=0) as file, bar, contextlib.closing(blocks):
            self.hashes = self._hashes_written(file)
            try:
                for block in blocks:
                    _write_at(file, block.pixels, self._position())
                    self.hashes.append(image_hashes(block.pixels))
                    bar.update(block.stop - self.progress.done)
                    self.progress = self.progress.then(self.progress.done, block.stop, block.unreadable)
                    if block.unreadable:
                        self._check_unreadable()
                    if time.monotonic() - committed_at > COMMIT_SECONDS:
                        self.journal.commit(self.progress, file)
                        committed_at = time.monotonic()
            finally:
                self.journal.commit(self.progress, file)

    def _hashes_written(self, file):
        """Hashes of the images that an interrupted run has put into the partial file: a list of uint8 (b,32)."""
        file.seek(self.offset)
        shape = (-1, 3, self.resolution, self.resolution)
        left, hashes = self._position() - self.offset, []
        while left and (content := file.read(min(left, WRITE_BLOCK * math.prod(shape[1:])))):
            hashes.append(image_hashes(np.frombuffer(content, np.uint8).reshape(shape)))
            left -= len(content)
        return hashes

    def _check_unreadable(self):
        """Raise UserError, and write the report, if too many images are unreadable, or all of a class."""
        unreadable, labels = self.progress.unreadable, self.source.labels
        images_of = np.bincount(labels)
        unreadable_of = collections.Counter(labels[index] for index, _ in unreadable)
        empty = next((y for y, number in unreadable_of.items() if number == images_of[y]), None)
        if empty is None and len(unreadable) <= self.max_bad:
            return
        self._write_report()
        if empty is not None:
            problem, hint = f"every image of class {self.source.class_names[empty]} is unreadable", ""
        else:
            problem = f"{len(unreadable)} image(s) cannot be read, more than --max_bad {self.max_bad}"
            hint = "; a higher --max_bad goes on without them, after repairing or removing them --overwrite starts anew"
        first = f"{self.source.images[unreadable[0][0]]}: {unreadable[0][1]}"
        raise utils.UserError(f"{problem} ({first}); {report_path(self.out)} lists them{hint}")

    def _write_report(self):
        unreadable = self.progress.unreadable
        lines = [f"{self.source.images[index]}\t{reason}".replace("\n", "\\n") for index, reason in unreadable]
        with utils.atomic_path(report_path(self.out)) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")

    def _finish(self):
        """Give the partial file, whose pixels are there, the other parts of a file of that many, and its name."""
        header, unreadable = _beside(self.out, "header"), self.progress.unreadable
        source, left_out = self.source, [index for index, _ in unreadable]
        labels = np.delete(source.labels, left_out)
        paths = np.delete(np.array(source.paths, dtype=object), left_out) if len(source.paths) else ()
        content = content_hash(np.concatenate(self.hashes), labels, self.resolution)
        with _new_hdf5(header) as file:  # a twin, of which the pixels are a hole
            pixels = _lay_out(file, labels, *self.layout, len(unreadable))
            _complete(file, content, paths, source.class_order, source.stamp)
            if pixels.id.get_offset() != self.offset:
                raise RuntimeError("HDF5 has laid out the same file differently")
        with open(header, "rb") as twin, open(self.partial, "r+b") as file:
            file.write(twin.read(self.offset))
            twin.seek(self._position())
            file.seek(self._position())
            file.write(twin.read())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        report_path(self.out).unlink(missing_ok=True)
        if unreadable:
            self._write_report()
        os.replace(self.partial, self.out)
        header.unlink()


@contextlib.contextmanager
def _explained(out):
    """Make the folder of `out`; whatever the system refuses becomes one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise utils.UserError(f"the disk of {out} is full; make room, and the same command goes on") from error
        reason = getattr(error, "strerror", None) or error
        raise utils.UserError(f"cannot write {out}: {reason}{lock_hint(error)}") from error


def _reserve(path):
    """Put a file on the disk, with all of its space where that can be reserved: the disk cannot fill up half-way then.

    Raises: OSError if there is not enough space.
    """
    # Open for appending only: where the file system cannot reserve, glibc would otherwise write to every block, which
    # takes hours over a network; with such a descriptor it cannot, and says EBADF.
    with open(path, "ab") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
        os.fsync(file.fileno())


def _write_at(file, pixels, position):
    content = memoryview(pixels.reshape(-1))
    while content:  # a single call may write less
        written = os.pwrite(file.fileno(), content, position)
        content, position = content[written:], position + written
