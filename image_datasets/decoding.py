"""From an image file to pixels: any image mode to RGB, crop and resize, on one core or on all of them."""

import collections
import concurrent.futures
import contextlib
import functools
import math
import mmap
import multiprocessing
import os
import signal
import threading
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

import utils
from image_datasets import metadata
from image_datasets.listing import ZipMember

CROP_RESIZE = "centre crop to the short side, then Pillow bicubic (antialiased) to {0}x{0}; transparency over white"
BLOCK_IMAGES = 64  # at most, in what a process decodes at a time ...
BLOCK_BYTES = 4 * 2**20  # ... and bytes of its pixels
IMAGES_PER_PROCESS = 16  # fewer are not worth the start of a process

ValueRange = tuple[float, float]  # values of a file that become 0 and 255


class Block(typing.NamedTuple):
    """Some decoded neighbours: `pixels` uint8 (n,3,R,R) of those that could be read, `stop` the number of images of
    the source up to and with this block, `unreadable` (index in the source, reason) of the others."""

    pixels: np.ndarray
    stop: int
    unreadable: list[tuple[int, str]]


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def rule(resolution: int, value_range: ValueRange | None = None) -> str:
    """How images become uint8 (3,R,R), in words, for the attribute `crop_resize`."""
    scaled = f"; values {value_range[0]:g} to {value_range[1]:g} as 0 to 255" if value_range else ""
    return CROP_RESIZE.format(resolution) + scaled


def read_pixels(
    image: str | Path | ZipMember | np.ndarray, resolution: int, value_range: ValueRange | None = None
) -> np.ndarray:
    """Decode, crop and resize one image: a file, or an array uint8 (H,W) or (H,W,3), to uint8 (3,R,R).

    Raises: as `read_rgb`.
    """
    return crop_resize(read_rgb(image, value_range), resolution)


def read_rgb(image: str | Path | ZipMember | np.ndarray, value_range: ValueRange | None = None) -> Image.Image:
    """Decode one image, upright and as RGB: the one way in which files become pixels, for data sets and for metrics.

    Args: value_range: as of `to_rgb`.
    Raises: of a damaged file nearly anything, as Pillow does: OSError, SyntaxError, struct.error ...
    """
    if isinstance(image, np.ndarray):
        return to_rgb(Image.fromarray(image), value_range)
    file = image.read() if isinstance(image, ZipMember) else image
    if value_range:
        with metadata.opened(file, load=False) as opened:
            if opened.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in opened.tile):
                raise ValueError(
                    "of colours of 16 bits Pillow reads 8, too few to scale: make the image grey, or 8 bits"
                )
    with metadata.opened(file) as opened:
        return to_rgb(metadata.upright(opened), value_range)


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """An image of any mode as RGB.

    16-bit grey (modes I;16 and I) is scaled, 65535 to 255; float grey is taken as 0..1, or as 0..255 if it goes past 1;
    transparency is laid over white. With a value_range (low, high), low becomes 0 and high 255 instead, in whatever
    values the file holds, and what lies outside is clipped.
    Raises: ValueError for float values outside of 0..255, or that are no numbers.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_rgb(np.asarray(image), value_range)
    if image.has_transparency_data:
        image = _stretched(image.convert("RGBA"), value_range)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return _stretched(image if image.mode == "RGB" else image.convert("RGB"), value_range)


def _stretched(image, value_range):
    """An RGB or RGBA image whose colours are stretched."""
    if value_range is None:
        return image
    table = _stretch(np.arange(256), value_range).tolist()
    return image.point(table * 3 + list(range(256)) * (image.mode == "RGBA"))


def _stretch(values, value_range):
    """Values of any type as uint8: low is 0, high is 255."""
    low, high = value_range
    return np.rint(((values - low) * (255 / (high - low))).clip(0, 255)).astype(np.uint8)


def _grey_to_rgb(grey, value_range):
    is_float = grey.dtype.kind == "f"
    if is_float and not np.isfinite(grey).all():
        raise ValueError("its float values lie outside of 0..255: some are NaN or infinite")
    if value_range:
        grey = _stretch(grey.astype(np.float64), value_range)
    elif not is_float:
        grey = grey.clip(0, 65535) * (255 / 65535)
    elif grey.min() >= 0 and grey.max() <= 255:
        grey = grey * 255 if grey.max() <= 1 else grey
    else:
        raise ValueError(f"its float values lie outside of 0..255 ({grey.min():g} to {grey.max():g}); --range scales")
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def crop_resize(image: Image.Image, resolution: int) -> np.ndarray:
    """An RGB image, cropped to its central square and resized (bicubic, antialiased) to uint8 (3,R,R)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def decode(
    images: Sequence, resolution: int, num_workers: int, start: int = 0, value_range: ValueRange | None = None
) -> Iterator[Block]:
    """Decode images on several cores.

    The processes are forks of this one and put pixels into memory that they share with it; only what could not be
    read comes back as a message. They end with this process, however it ends.

    Args: images: of what `read_pixels` takes; num_workers: processes (1: this one decodes), on which the pixels do not
        depend; start: index of the first image; value_range: as of `to_rgb`.
    Yields: `Block`s in the order of `images`; the pixels are overwritten once the next block is asked for.
    Raises: UserError if a process is killed from outside. Close the generator to end the processes before its end.
    """
    num_images = len(images) - start
    num_workers = max(1, min(num_workers, num_images // IMAGES_PER_PROCESS))
    limit = min(BLOCK_IMAGES, max(1, BLOCK_BYTES // (3 * resolution**2)))
    size = max(1, min(limit, math.ceil(num_images / (8 * num_workers))))  # small enough that all finish together
    ranges = [(first, min(first + size, len(images))) for first in range(start, len(images), size)]
    num_slots = 3 * num_workers if num_workers > 1 else 1
    shape = (num_slots, size, 3, resolution, resolution)
    slots = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)  # shared with forks
    read = functools.partial(read_pixels, value_range=value_range) if value_range else read_pixels
    if num_workers == 1:
        results = (_decode_block(read, images, slots[0], *borders) for borders in ranges)
    else:
        results = _decode_in_processes(read, images, slots, ranges, num_workers)
    with contextlib.closing(results):
        for number, ((first, stop), unreadable) in enumerate(zip(ranges, results, strict=True)):
            yield Block(slots[number % num_slots][: stop - first - len(unreadable)], stop, unreadable)


def _decode_block(read, images, pixels, first, stop):
    """Decode images first to stop - 1 by `read` into the first rows of `pixels`.

    Returns: (index, reason) of the unreadable.
    """
    unreadable = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF data and the like, of no use to us
        for i in range(first, stop):
            try:
                pixels[i - first - len(unreadable)] = read(images[i], pixels.shape[-1])
            except Exception as error:
                unreadable.append((i, reason(error)))
    return unreadable


def reason(error: Exception) -> str:
    """Why an image could not be read, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _decode_in_processes(read, images, slots, ranges, num_workers):
    """What `_decode_block` returns for each range, in order; the pixels of range k are in slots[k % len(slots)]."""
    fork = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, fork, _start_process, (read, images, slots))
    pending = collections.deque()
    try:
        with _signals_held_back():  # for good in the forks: they are for the parent, which ends them
            pool.submit(int)  # the first task makes the forks
        for number, borders in enumerate(ranges):
            if len(pending) == len(slots):  # a slot is free again once what it held has been taken
                yield pending.popleft().result()
            pending.append(pool.submit(_decode_slot, number % len(slots), *borders))
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise utils.UserError(
            "a decoding process was killed (out of memory?); the same command goes on, perhaps with fewer --num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _signals_held_back():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process(read, images, slots):
    """Keep what the fork has inherited, where `_decode_slot` finds it: a pool passes on nothing but small arguments."""
    global _inherited
    _inherited = read, images, slots
    Image.core.set_blocks_max(4)  # keep the memory of the last image for the next: fresh pages cost a tenth of the time
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()  # returns however the parent ends, SIGKILL included
    os._exit(1)


def _decode_slot(slot, first, stop):
    read, images, slots = _inherited
    return _decode_block(read, images, slots[slot], first, stop)
