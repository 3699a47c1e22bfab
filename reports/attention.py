"""Where attention looks: for a point of the image, how much of every other place reaches it.

Symbols: N images of resolution R, P points, H the side of an attention layer's maps (keys are pooled to H/2).
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

import utils
from layers import SelfAttention
from reports.pictures import coloured, enlarged, interleaved, marked, over, with_scale
from torch_utils.images import image_grid


class LayerMaps(NamedTuple):
    """Of one attention layer: its side H, its gamma, and its weights (N,P,H/2,H/2), of each point 1 in all."""

    side: int
    gamma: float
    weights: Tensor


def attention_layers(network: nn.Module) -> list[SelfAttention]:
    """In the order that an image passes them in."""
    return [layer for layer in network.modules() if isinstance(layer, SelfAttention)]


def spread_points(number: int, resolution: int) -> list[tuple[int, int]]:
    """So many points (x, y), evenly spread over an image: in rows of about as many, each in the middle of its cell."""
    rows = max(1, round(math.sqrt(number)))
    bounds = [i * number // rows for i in range(rows + 1)]
    return [
        (int((column + 0.5) * resolution / (end - start)), int((row + 0.5) * resolution / rows))
        for row, (start, end) in enumerate(itertools.pairwise(bounds))
        for column in range(end - start)
    ]


def parse_points(texts: Sequence[str], resolution: int) -> list[tuple[int, int]]:
    """Points "X,Y" in pixels of the image, from 0 at the top left. Raises: utils.UserError."""
    points = []
    for text in texts:
        try:
            x, y = map(int, text.split(","))
        except ValueError:
            raise utils.UserError(f"--points {text}: a point is X,Y in pixels, such as 16,8") from None
        if not (0 <= x < resolution and 0 <= y < resolution):
            raise utils.UserError(
                f"--points {text}: outside of the {resolution}x{resolution} image, where x and y go from 0 to "
                f"{resolution - 1}"
            )
        points.append((x, y))
    return points


@torch.no_grad()
def attention_maps(
    network: nn.Module, inputs: tuple, points: Sequence[tuple[int, int]], resolution: int
) -> list[LayerMaps]:
    """What each attention layer does at some points, in one forward of network(*inputs).

    points: (x, y) in pixels of the image; the position of a layer's map that covers a pixel stands for it.
    """
    found = []

    def look(layer, args):
        side = args[0].shape[-1]
        positions = torch.tensor([y * side // resolution * side + x * side // resolution for x, y in points])
        weights = layer.weights(args[0], positions.to(args[0].device))
        found.append(LayerMaps(side, layer.gamma.item(), weights.float().cpu()))

    with contextlib.ExitStack() as stack:
        for layer in attention_layers(network):
            stack.enter_context(layer.register_forward_pre_hook(look))
        network(*inputs)
    return found


def attention_sheet(
    images: Tensor, maps: LayerMaps, points: Sequence[tuple[int, int]], rows: Sequence[str]
) -> Image.Image:
    """A row per image: the image with its points, then for each point its map over the image in grey.

    Args: images: uint8 (N,3,R,R); rows: text beside each. Each map goes from 0 to its own largest weight.
    """
    R = images.shape[-1]
    tiles = enlarged(images)
    size = tiles.shape[-1]
    scale, first = size // R, tiles.clone()
    columns = []
    for p, (x, y) in enumerate(points):
        weights = maps.weights[:, p]
        relative = weights / weights.amax(dim=(1, 2), keepdim=True)
        seen = over(tiles, coloured(relative, 0, 1, size))
        columns.append(torch.stack([marked(tile, x, y, scale) for tile in seen]))
        first = torch.stack([marked(tile, x, y, scale) for tile in first])
    names = ["image", *(f"seen from {x},{y}" for x, y in points)]
    sheet = image_grid(interleaved([first, *columns]), len(names), names, scale=1, left=rows)
    return with_scale(
        sheet, "attention 0", f"the largest of a map (uniform: {1 / maps.weights[0, 0].numel():.2g} each)"
    )
