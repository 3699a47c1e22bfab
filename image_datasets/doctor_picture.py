"""The picture of a data set: images of some of its classes, and how many images each class has."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

import utils
from image_datasets.hdf5 import HDF5Dataset
from torch_utils import text

MAX_CLASSES = 16  # of which images are shown
MAX_BARS = 50  # classes with a bar and a name of their own; of more only the sorted sizes are drawn
COLUMNS = 10  # images in a row
TILE = 64  # pixels of a small image, enlarged by a whole number
MAX_TILE = 96  # pixels that larger images are brought down to
NAME_WIDTH, LINE, PAD, MARGIN = 260, 20, 4, 20  # pixels
FONT_SIZE, HEAD_LINES, NAME_LINES = 13, 3, 2  # lines that a line of the head, or a name, is wrapped into at most
FAINT, PALE, BAR = (110, 110, 110), (210, 210, 210), (70, 110, 170)


def draw(dataset: HDF5Dataset, counts: ArrayLike, head: str) -> Image.Image:
    """One picture of a data set: `head` above all; rows of up to 10 images for up to 16 classes spread over all; a
    bar per class, or for more than 50 classes their sizes in decreasing order.

    counts: images of each class, ints (num_classes,).
    """
    counts = np.asarray(counts)
    names = [utils.numbered(c, dataset.class_names) for c in range(len(counts))]
    tile = min(dataset.resolution * max(1, TILE // dataset.resolution), MAX_TILE)
    width = 2 * MARGIN + NAME_WIDTH + COLUMNS * (tile + PAD)
    parts = [
        _head(head.splitlines(), width),
        *_class_rows(dataset, names, counts, tile, width),
        _histogram(names, counts, width) if len(counts) > MAX_BARS else _bars(names, counts, width),
    ]
    sheet = Image.new("RGB", (width, sum(part.height for part in parts) + 2 * MARGIN), "white")
    y = MARGIN
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _head(lines, width):
    texts = [text.fit(line, width - 2 * MARGIN, HEAD_LINES, FONT_SIZE) for line in lines]
    part = Image.new("RGB", (width, sum(lines.height + PAD for lines in texts) + MARGIN), "white")
    y = 0
    for i, lines in enumerate(texts):
        lines.draw(part, (MARGIN, y), text.INK if i == 0 else FAINT)
        y += lines.height + PAD
    return part


def _class_rows(dataset, names, counts, tile, width):
    """A picture per class with its name, size and images; few classes get several rows of images each."""
    shown = np.arange(len(counts)) if len(counts) <= MAX_CLASSES else _spread(np.flatnonzero(counts), MAX_CLASSES)
    rows = max(1, 8 // len(shown))
    for c in shown:
        indices = _spread(np.flatnonzero(dataset.labels == c), rows * COLUMNS)
        lines = max(1, -(-len(indices) // COLUMNS))
        name = text.fit(names[c], NAME_WIDTH - MARGIN, NAME_LINES, FONT_SIZE)
        part = Image.new("RGB", (width, max(lines * (tile + PAD), PAD + name.height + LINE) + PAD), "white")
        name.draw(part, (MARGIN, PAD))
        _write(part, (MARGIN, PAD + name.height + PAD), _images(counts[c]), NAME_WIDTH - MARGIN, FAINT)
        for i, pixels in enumerate(dataset.read(indices).permute(0, 2, 3, 1).numpy()):
            resampling = Image.Resampling.BOX if dataset.resolution > tile else Image.Resampling.NEAREST
            image = Image.fromarray(pixels).resize((tile, tile), resampling)
            row, column = divmod(i, COLUMNS)
            part.paste(image, (MARGIN + NAME_WIDTH + column * (tile + PAD), row * (tile + PAD)))
        yield part


def _spread(indices, number):
    """At most `number` of the indices, evenly spread over them."""
    number = min(number, len(indices))
    return indices[np.linspace(0, len(indices) - 1, number).round().astype(np.int64)]


def _images(count):
    return utils.counted(count, "image") if count else "no images"


def _bars(names, counts, width):
    """A horizontal bar per class, in the classes' order."""
    part = Image.new("RGB", (width, MARGIN + LINE * len(counts)), "white")
    canvas = ImageDraw.Draw(part)
    left, right = MARGIN + NAME_WIDTH, width - MARGIN - 90  # room for the number behind the longest bar
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        top = MARGIN + i * LINE
        end = left + int((right - left) * count / counts.max())
        _write(part, (MARGIN, top), name, NAME_WIDTH - MARGIN)
        if count:
            canvas.rectangle([left, top + 2, end, top + LINE - 4], fill=BAR)
        _write(part, (end + 8, top), f"{count:,}", 90, FAINT)
    return part


def _histogram(names, counts, width):
    """Sizes of all classes in decreasing order, on a logarithmic axis where they differ much; both ends are named."""
    height, left, right = 220, MARGIN + 60, width - MARGIN
    part = Image.new("RGB", (width, MARGIN + height + 4 * LINE), "white")
    canvas = ImageDraw.Draw(part)
    bottom = MARGIN + height
    order = np.argsort(-counts, kind="stable")
    largest = counts[order[0]]
    logarithmic = largest > 20 * max(1, np.median(counts))
    scale = (lambda count: np.log1p(count) / np.log1p(largest)) if logarithmic else (lambda count: count / largest)
    for x in range(left, right):
        count = counts[order[(x - left) * len(counts) // (right - left)]]
        canvas.line([x, bottom - round(height * scale(count)), x, bottom], fill=BAR)
    for tick in (0, *(10 ** np.arange(int(np.log10(largest))) if logarithmic else [largest // 2]), largest):
        y = bottom - round(height * scale(tick))
        canvas.line([left - 5, y, right, y], fill=FAINT if tick == 0 else PALE)
        _write(part, (left - 10, y), f"{tick:,.0f}", left - 10, FAINT, "rm")
    median = f"{np.median(counts):,.1f}".removesuffix(".0")
    title = f"images a class, {len(counts):,} classes by size; median {median}"
    _write(part, ((left + right) // 2, bottom + 8), title, right - left, FAINT, "ma")
    for i, (kind, c) in enumerate((("largest", counts.argmax()), ("smallest", counts.argmin()))):
        where, anchor = ((left, "la"), (right, "ra"))[i]
        line = f"{kind}: {_images(counts[c])}, class {names[c]}"
        _write(part, (where, bottom + 8 + (i + 1) * LINE), line, right - left, anchor=anchor)
    return part


def _write(picture, position, line, width, fill=text.INK, anchor="la"):
    """Write a line of text, cut with an ellipsis where it is wider than `width` pixels."""
    text.fit(line, width, size=FONT_SIZE).draw(picture, position, fill, anchor)
