"""Maps of numbers as pictures, beside and over the images that they belong to.

Colours are those of viridis, from dark to bright: in grey, and to the colour-blind, more is brighter.
Symbols: N images, resolution R, side T of a tile in pixels, a whole multiple of R.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_utils import text

TILE = 128  # pixels that an image is enlarged to, about
MARK = ((255, 255, 255), (220, 30, 30))  # the colours of a mark, from the outside
BAR = 160, 12  # pixels of the scale of colours
COLOUR_SHARE = 0.65  # of a map that lies over an image


@functools.cache
def palette() -> Tensor:
    """The 256 colours, from the lowest value to the highest: uint8 (256,3)."""
    import matplotlib  # takes a second to import

    colours = matplotlib.colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    return torch.from_numpy(colours.copy())


def enlarged(images: Tensor, size: int | None = None) -> Tensor:
    """uint8 (N,3,R,R) to (N,3,T,T), each pixel a square; size: T, None for about TILE."""
    scale = size // images.shape[-1] if size else max(1, TILE // images.shape[-1])
    return images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)


def coloured(maps: Tensor, low: float, high: float, size: int) -> Tensor:
    """Maps (N,h,w) as pictures (N,3,T,T), uint8; size: T, which h and w divide.

    Values from low to high go to the 256 colours, those beyond to the first and the last.
    """
    places = (maps.float() - low) / max(high - low, 1e-12) * 255
    colours = palette()[places.round().clamp(0, 255).long().cpu()]  # (N,h,w,3)
    return enlarged(colours.permute(0, 3, 1, 2), size)


def over(tiles: Tensor, colours: Tensor) -> Tensor:
    """Coloured maps over the images in grey, both uint8 (N,3,T,T)."""
    grey = tiles.float().mean(dim=1, keepdim=True)
    return torch.lerp(grey.expand(tiles.shape), colours.float(), COLOUR_SHARE).round().to(torch.uint8)


def marked(tile: Tensor, x: int, y: int, scale: int) -> Tensor:
    """A copy of a tile (3,T,T) with a frame around pixel (x, y) of the image that it is `scale` times as large as."""
    tile = tile.clone()
    first = max(2, scale // 2) if scale > 1 else 2
    for width, colour in zip((first + 1, first - 1), MARK, strict=True):
        left, top = max(x * scale - width, 0), max(y * scale - width, 0)
        right, bottom = ((p + 1) * scale + width for p in (x, y))
        inner = tile[:, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].clone()
        tile[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        tile[:, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = inner
    return tile


def interleaved(columns: Sequence[Tensor]) -> Tensor:
    """Columns of N pictures each, (N,3,T,T), as the pictures of a grid, row by row."""
    return torch.stack(list(columns), dim=1).flatten(0, 1)


def with_scale(sheet: Image.Image, low: str, high: str) -> Image.Image:
    """A sheet with the scale of colours below it, and what its two ends stand for."""
    ends = [text.fit(end, sheet.width // 2) for end in (low, high)]
    width = max(sheet.width, BAR[0] + 24 + sum(lines.width for lines in ends))
    whole = Image.new("RGB", (width, sheet.height + text.LINE + 10), "white")
    whole.paste(sheet, (0, 0))
    bar = Image.fromarray(palette()[None].numpy()).resize(BAR, Image.Resampling.NEAREST)
    y, x = sheet.height + 4, 6
    ends[0].draw(whole, (x, y))
    whole.paste(bar, (x + ends[0].width + 6, y + 1))
    ends[1].draw(whole, (x + ends[0].width + BAR[0] + 12, y))
    return whole
