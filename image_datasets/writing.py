"""Writing an HDF5 data set: how it is laid out, and a writer that goes on where it was after any interruption.

While it is being made, a file FILE.hdf5 is `FILE.hdf5.partial`, an HDF5 file marked as incomplete, of which the pixels
are filled in order, and `FILE.hdf5.journal`, which says how far they are. An unreadable image leaves no gap, so that
at the end only the number of images is left to be put right. The name FILE.hdf5 never stands for less than the whole.
"""

import collections
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import time
from pathlib import Path

import h5py
import numpy as np
import PIL
from tqdm import tqdm

import utils
from image_datasets.decoding import decode

WRITE_BLOCK = 64  # images per HDF5 call: one call for each image would cost as much as decoding a small one
COMMIT_SECONDS = 1.0  # between two entries of the journal: at most this much work is done again


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
                pixels = _lay_out(file, labels, first.shape, class_names, source, rule)
                _fill(pixels, itertools.chain([first], images))
                file.attrs.modify("complete", np.True_)
        except (OSError, RuntimeError) as error:  # what h5py raises when the disk is full
            raise utils.UserError(f"cannot write {path}: {error}") from error


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
    filled = 0
    while block := list(itertools.islice(images, WRITE_BLOCK)):
        pixels[filled : filled + len(block)] = np.stack(block)
        filled += len(block)
    if filled != len(pixels):
        raise ValueError(f"{filled} images for {len(pixels)} labels")


# ---------------------------------------------------------------------------------------------------------------------
# A writer that can be interrupted


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the pixels are: of the first `done` images all but the `unreadable` (index, reason) are in the file."""

    done: int = 0
    unreadable: tuple = ()

    @property
    def rows(self):
        """Images in the file."""
        return self.done - len(self.unreadable)


def write_source(out, source, resolution, rule, num_workers, max_bad, overwrite=False):
    """Decode the images of a `Source` and write them, from where an interrupted call with the same arguments got to.

    Whatever ends it, also in the middle of a write, the next call goes on, and the finished file is the same to the
    byte; num_workers and max_bad may change in between. What another source or rule, or another version of the
    libraries that decode and write, has got done is refused, unless there is nothing of it yet or `overwrite` is given:
    then it starts anew. An existing `out` is replaced at the end. Unreadable images are left out and listed in
    `report_path(out)`.

    Args: out: path of the HDF5 file; rule: text for the attribute `crop_resize`; num_workers: decoding processes.
    Returns: list of (index, reason) of the unreadable images.
    Raises: UserError if there are more than max_bad of those, or nothing else in a class, if `out` cannot be written,
        or if another process is writing it, or has left it unfinished with other images.
    """
    out = Path(out)
    with _explained(out), _locked(_beside(out, "journal")) as journal:
        offset, progress = _resume(out, journal, source, resolution, rule, overwrite) or _begin(
            out, journal, source, resolution, rule
        )
        _check_unreadable(out, source, progress, max_bad)
        with open(_beside(out, "partial"), "r+b", buffering=0) as partial:
            progress = _write_pixels(out, partial, offset, journal, progress, source, resolution, num_workers, max_bad)
        _finish(out, offset, progress, source, resolution, rule)
    return list(progress.unreadable)


def report_path(out):
    """The list of the images that were left out of the data set `out`."""
    return _beside(Path(out), "unreadable.txt")


def bytes_held(out):
    """Bytes on disk that an unfinished `out` already takes up."""
    partial = _beside(Path(out), "partial")
    return partial.stat().st_blocks * 512 if partial.exists() else 0


def remove_leftovers(out):
    """Remove what a call that was interrupted just after finishing `out` has left behind.

    An unfinished file that is to replace `out` stays, and so does all while another process is at work.
    """
    leftovers = [_beside(out, ending) for ending in ("header", "journal")]
    if any(path.exists() for path in leftovers) and not _beside(out, "partial").exists():
        with contextlib.suppress(utils.UserError, OSError), _locked(leftovers[-1]):
            for path in leftovers:
                path.unlink(missing_ok=True)


def _beside(out, ending):
    return out.with_name(f"{out.name}.{ending}")


@contextlib.contextmanager
def _explained(out):
    """Make the folder of `out`; whatever the system refuses becomes one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise utils.UserError(f"the disk of {out} is full; make room, and the same command goes on") from error
        raise utils.UserError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def _locked(path):
    """Yield a file, made if need be, open for one process at a time. Raises: UserError if another one has it."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process; its forks do not hold it
            except (BlockingIOError, PermissionError):
                raise utils.UserError(f"another process is writing {path.with_suffix('')} right now") from None
            except OSError:
                pass  # some network file systems cannot lock
            if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                continue  # the other process has just finished and removed it
            try:
                yield file
            finally:
                if path.exists() and not path.stat().st_size:  # nothing came of it
                    path.unlink()
            return


# The journal is a line about what is being made, then one per commit: images `start` to `done` are in the file but for
# the `unreadable` ones among them. A line that begins before the last one's end takes back what lies after `start`.


def _key(source, rule):
    return [source.description, rule, PIL.__version__, h5py.version.hdf5_version]


def _begin(out, journal, source, resolution, rule):
    """Lay out the partial file and reserve its space. Returns: the byte at which pixels begin, no `Progress`."""
    partial = _beside(out, "partial")
    journal.truncate(0)
    with h5py.File(partial, "w") as file:
        shape = (3, resolution, resolution)
        offset = _lay_out(file, source.labels, shape, source.class_names, source.description, rule).id.get_offset()
    with open(partial, "r+b") as file:
        try:
            _reserve(file, os.path.getsize(partial))
        except OSError:
            partial.unlink()  # it may hold what there was
            raise
        os.fsync(file.fileno())
    _append(journal, {"key": _key(source, rule), "offset": offset})
    return offset, Progress()


def _resume(out, journal, source, resolution, rule, overwrite):
    """Where an interrupted call got to, as `_begin` returns it, or None if there is none to go on from.

    Raises: UserError if it has got somewhere with other images, unless these are to be overwritten.
    """
    lines, end = _read_journal(journal)
    if not lines:
        return None
    partial = _beside(out, "partial")
    if not partial.exists():
        print(f"starting anew: {partial} is no longer there")
        return None
    if lines[0].get("key") != _key(source, rule):
        origin = f"{partial} was begun from other images, by another rule or by other versions"
        if lines[-1].get("done") and not overwrite:  # it may be the work of hours
            raise utils.UserError(f"{origin}; --overwrite starts anew, --out writes another file")
        print(f"starting anew: {origin}")
        return None
    journal.truncate(end)
    progress = Progress()
    for line in lines[1:]:
        before = [entry for entry in progress.unreadable if entry[0] < line["start"]]
        progress = Progress(line["done"], (*before, *map(tuple, line["unreadable"])))
    offset = lines[0]["offset"]
    if partial.stat().st_size < offset + progress.rows * 3 * resolution**2:
        print(f"starting anew: {partial} is shorter than it was")
        return None
    readable = next((index for index, _ in progress.unreadable if _is_readable(source.images[index], resolution)), None)
    if readable is not None:  # a permission given, a disk that is back: everything after it moves
        progress = Progress(readable, tuple(entry for entry in progress.unreadable if entry[0] < readable))
        _append(journal, {"start": readable, "done": readable, "unreadable": []})
    print(f"going on with {partial}: {progress.done} of {len(source.images)} images are done")
    return offset, progress


def _is_readable(image, resolution):
    return not next(decode([image], resolution, num_workers=1)).unreadable


def _read_journal(journal):
    """The lines of the journal, and where the last whole one ends (a write may have been cut short)."""
    lines, end = [], 0
    journal.seek(0)
    for line in journal.readall().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not line.endswith(b"\n"):
            break
        lines.append(entry)
        end += len(line)
    return lines, end


def _append(journal, line):
    journal.seek(0, os.SEEK_END)
    journal.write(json.dumps(line).encode() + b"\n")


def _reserve(file, size):
    """Have the disk keep `size` bytes for a file, so that it cannot fill up half-way, where the file system can.

    Raises: OSError if there is no such space. `os.posix_fallocate` would write to every block where it cannot.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate and fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


def _write_pixels(out, partial, offset, journal, progress, source, resolution, num_workers, max_bad):
    """Decode the images that are not done yet and write them, one row after the other. Returns: the `Progress`."""
    committed, committed_at = progress, time.monotonic()
    blocks = decode(source.images, resolution, num_workers, progress.done)
    bar = tqdm(
        desc=out.name,
        total=len(source.images),
        initial=progress.done,
        unit="images",
        dynamic_ncols=True,
        **utils.bar_interval(),
    )
    with bar, contextlib.closing(blocks):
        try:
            for block in blocks:
                _write_at(partial, block.pixels, offset + progress.rows * 3 * resolution**2)
                bar.update(block.stop - progress.done)
                progress = Progress(block.stop, (*progress.unreadable, *block.unreadable))
                if block.unreadable:
                    _check_unreadable(out, source, progress, max_bad)
                if time.monotonic() - committed_at > COMMIT_SECONDS:
                    _commit(partial, journal, committed, progress)
                    committed, committed_at = progress, time.monotonic()
        finally:
            _commit(partial, journal, committed, progress)
    return progress


def _write_at(file, pixels, position):
    content = memoryview(pixels.reshape(-1))
    while content:  # a single call may write less
        written = os.pwrite(file.fileno(), content, position)
        content, position = content[written:], position + written


def _commit(partial, journal, committed, progress):
    """Enter in the journal what has been done since `committed`, once it is on the disk."""
    if progress != committed:
        os.fsync(partial.fileno())
        unreadable = progress.unreadable[len(committed.unreadable) :]
        _append(journal, {"start": committed.done, "done": progress.done, "unreadable": unreadable})


def _check_unreadable(out, source, progress, max_bad):
    """Raise UserError, and write the report, if too many images are unreadable, or all of a class."""
    unreadable = progress.unreadable
    if not unreadable:
        return
    images_of = np.bincount(source.labels)
    unreadable_of = collections.Counter(source.labels[index] for index, _ in unreadable)
    empty = next((y for y, number in unreadable_of.items() if number == images_of[y]), None)
    first = f"{source.images[unreadable[0][0]]}: {unreadable[0][1]}"
    listed = f"{report_path(out)} lists them"
    if empty is not None:
        _write_report(out, source, unreadable)
        raise utils.UserError(f"every image of class {source.class_names[empty]} is unreadable ({first}); {listed}")
    if len(unreadable) > max_bad:
        _write_report(out, source, unreadable)
        raise utils.UserError(
            f"{len(unreadable)} image(s) cannot be read, more than --max_bad {max_bad} ({first}); {listed}; "
            "a higher --max_bad goes on without them, after repairing or removing them --overwrite starts anew"
        )


def _write_report(out, source, unreadable):
    lines = [f"{source.images[index]}\t{reason}".replace("\n", "\\n") for index, reason in unreadable]
    with utils.atomic_path(report_path(out)) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _finish(out, offset, progress, source, resolution, rule):
    """Give the partial file, whose pixels are there, the other parts of a file of that many images, and its name."""
    header, partial = _beside(out, "header"), _beside(out, "partial")
    labels = np.delete(source.labels, [index for index, _ in progress.unreadable])
    shape = (3, resolution, resolution)
    with h5py.File(header, "w") as file:  # a twin, of which the pixels are a hole
        names, text, number = source.class_names, source.description, len(progress.unreadable)
        pixels = _lay_out(file, labels, shape, names, text, rule, number)
        file.attrs.modify("complete", np.True_)
        if pixels.id.get_offset() != offset:
            raise RuntimeError("HDF5 has laid out the same file differently")
    with open(header, "rb") as twin, open(partial, "r+b") as file:
        file.write(twin.read(offset))
        after = offset + len(labels) * 3 * resolution**2
        twin.seek(after)
        file.seek(after)
        file.write(twin.read())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    report_path(out).unlink(missing_ok=True)
    if progress.unreadable:
        _write_report(out, source, progress.unreadable)
    os.replace(partial, out)
    header.unlink()
    _beside(out, "journal").unlink()
