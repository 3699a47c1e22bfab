"""Images as pixels and as pictures: uint8 and [-1, 1], sheets of many, files.

Symbols: N images, resolution R.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import utils
from torch_utils import text

HEADER_LINES = 4  # above a column, at most
BLOCK_GAP = 10  # pixels between blocks of columns
SIDE_WIDTH = 150  # pixels beside a row, at most
FORMATS = ("png", "pdf")  # of sheets


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], float (..., H, W), to uint8 by rounding (never truncation)."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]; the inverse of `to_uint8`."""
    return images.float() / 127.5 - 1


def image_grid(
    images: Tensor,
    columns: int,
    labels: Sequence[str] = (),
    scale: int | None = None,
    pad: int = 2,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    blocks: int = 1,
) -> Image.Image:
    """One picture, RGB, of many, with text around them that is wrapped, and at last cut off, where it is long.

    Args: images: uint8 (N,3,R,R), row by row; columns: images in a row; labels: text above each column, which may
        reach over the columns behind it whose label is empty; scale: whole-number enlargement, or None for about 64
        pixels an image; pad: pixels between images; left, right: text beside each row; blocks: equal
        parts that the columns stand in, with a gap of BLOCK_GAP pixels between them.
    """
    n, _, height, width = images.shape
    scale = scale or max(1, 64 // max(height, width))
    cell_w, cell_h = width * scale + pad, height * scale + pad
    above = [(column, _header(labels, column, cell_w, pad)) for column, label in enumerate(labels) if label]
    beside = [[text.fit(label, SIDE_WIDTH, max(1, cell_h // text.LINE)) for label in side] for side in (left, right)]
    header = max((lines.height + 3 for _, lines in above), default=0)
    margins = [max((lines.width + 8 for lines in side), default=0) for side in beside]
    lefts = [margins[0] + pad + column * cell_w + column * blocks // columns * BLOCK_GAP for column in range(columns)]
    grid_w, grid_h = columns * cell_w + pad + (blocks - 1) * BLOCK_GAP, math.ceil(n / columns) * cell_h + pad
    sheet = Image.new("RGB", (sum(margins) + grid_w, header + grid_h), "white")
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (lefts[i % columns], header + i // columns * cell_h + pad))
    for column, lines in above:
        lines.draw(sheet, (lefts[column], 2))
    for side, x in zip(beside, (4, margins[0] + grid_w + 4), strict=True):
        for row, lines in enumerate(side):
            lines.draw(sheet, (x, header + pad + row * cell_h + (cell_h - pad - lines.height) // 2))
    return sheet


def _header(labels, column, cell_width, pad):
    """The lines above a column: as wide as the columns up to the next label."""
    free = next((i for i, label in enumerate(labels[column + 1 :]) if label), len(labels) - column - 1)
    return text.fit(labels[column], (1 + free) * cell_width - pad - 1, HEADER_LINES)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image in the format of the path's suffix; a PDF holds the exact pixels, a point each."""
    with utils.atomic_path(path) as temporary:
        if Path(path).suffix == ".pdf":
            temporary.write_bytes(_pdf(image.convert("RGB")))
        else:
            image.save(temporary, format=Path(path).suffix[1:].upper().replace("JPG", "JPEG"))


def _pdf(image):
    """A PDF of one page with an RGB image, compressed without loss, which Pillow's own is not (it writes JPEG)."""
    width, height = image.size
    pixels = zlib.compress(image.tobytes())
    about = f"/Width {width} /Height {height} /ColorSpace /DeviceRGB /BitsPerComponent 8 /Interpolate false"
    page = f"q {width} 0 0 {height} 0 0 cm /Im Do Q".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents 4 0 R "
        "/Resources << /XObject << /Im 5 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(page), page),
        f"<< /Type /XObject /Subtype /Image {about} /Filter /FlateDecode /Length {len(pixels)} >>\nstream\n".encode()
        + pixels
        + b"\nendstream",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return content + f"{end}startxref\n{len(content)}\n%%EOF\n".encode()
