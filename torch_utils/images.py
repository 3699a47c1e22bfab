"""Images as pixels and as pictures: uint8 and [-1, 1], sheets of many, files.

Symbols: N images, resolution R.
"""

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import utils


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], float (..., H, W), to uint8 by rounding (never truncation)."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]; the inverse of `to_uint8`."""
    return images.float() / 127.5 - 1


def image_grid(
    images: Tensor, columns: int, labels: list | None = None, scale: int | None = None, pad: int = 2
) -> Image.Image:
    """One picture, RGB, of many.

    Args: images: uint8 (N,3,R,R), row by row; columns: images in a row; labels: text above each column, or None;
        scale: whole-number enlargement, or None for about 64 pixels an image; pad: pixels between images.
    """
    n, _, height, width = images.shape
    scale = scale or max(1, 64 // max(height, width))
    cell_w, cell_h = width * scale + pad, height * scale + pad
    header = 16 if labels else 0
    sheet = Image.new("RGB", (columns * cell_w + pad, math.ceil(n / columns) * cell_h + pad + header), "white")
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (i % columns * cell_w + pad, i // columns * cell_h + pad + header))
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate((labels or [])[:columns]):
        draw.text((column * cell_w + pad + 1, 2), str(label)[: cell_w // 6], fill="black")
    return sheet


def save_image(image: Image.Image, path: str | Path) -> None:
    with utils.atomic_path(path) as temporary:
        image.save(temporary, format=Path(path).suffix[1:].upper().replace("JPG", "JPEG"))
