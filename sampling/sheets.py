"""Sample sheets: classes side by side, random images, interpolations of noise and of class, as PIL images.

Symbols: N images, resolution R, K classes of the model.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from sampling.classes import SHOWN, spread_classes
from sampling.generate import make_images
from sampling.latents import Truncation, balanced_labels, latents, random_labels
from torch_utils.images import image_grid
from utils import numbered

COLUMNS = SHOWN  # of every sheet
SHEET_BATCH = 20  # images at a time for a sheet: fits wherever training did


def render(G: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K): uint8 (N,3,R,R), a few at a time."""
    batches = zip(z.split(SHEET_BATCH), y.split(SHEET_BATCH), strict=True)
    return torch.cat([make_images(G, z_batch, y_batch) for z_batch, y_batch in batches])


def class_sheet(
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    class_names: list[str] | None = None,
) -> Image.Image:
    """One class per column, one z per row: down a column only z differs, along a row only the class.

    Args: rows: images in a column; truncation: see `latents`; classes: the columns' class ids, 10 spread over all if
        None; class_names: names of all K classes, which stand above the columns with the ids.
    Returns: the sheet. A single class makes no columns: it is a `random_sheet`.
    """
    classes = classes or spread_classes(G.config.n_classes)
    if len(classes) == 1:
        return random_sheet(G, rows, seed, truncation, classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(len(classes), dim=0)
    images = render(G, z, torch.tensor(classes).repeat(rows))
    return image_grid(images, len(classes), [numbered(c, class_names) for c in classes])


def random_sheet(
    G: nn.Module, rows: int, seed: int, truncation: Truncation | None = None, classes: Sequence[int] | None = None
) -> Image.Image:
    """Rows of 10 images with a z each and classes drawn from `classes`, all if None."""
    num_images = rows * COLUMNS
    y = random_labels(seed, num_images, classes or range(G.config.n_classes))
    return image_grid(render(G, latents(seed, range(num_images), G.config.dim_z, truncation), y), COLUMNS)


def z_interpolation_sheet(
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    class_names: list[str] | None = None,
) -> Image.Image:
    """From one z to another along each row, whose class is fixed and named; the rows take turns through `classes`.

    The path is cos(t pi/2) z0 + sin(t pi/2) z1: for independent normal ends every point on it is distributed as z is,
    whereas the middle of a straight line has half the variance, which G has never seen.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(2 * rows), G.config.dim_z, truncation)
    angle = torch.linspace(0, math.pi / 2, COLUMNS)[:, None]
    z = angle.cos() * z[0::2, None] + angle.sin() * z[1::2, None]  # (rows,10,dim_z)
    y = balanced_labels(rows, classes)
    names = [numbered(c, class_names) for c in y.tolist()] if G.config.n_classes > 1 else []
    return image_grid(render(G, z.flatten(0, 1), y.repeat_interleave(COLUMNS)), COLUMNS, left=names)


def class_interpolation_sheet(
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    class_names: list[str] | None = None,
) -> Image.Image:
    """From one class to the next of `classes` along each row, whose z is fixed; both are named at its ends.

    Every embedding of the class in G moves on a straight line from one class's to the other's.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(COLUMNS, dim=0)
    ends = balanced_labels(rows + 1, classes)
    one_hot = torch.nn.functional.one_hot(ends, G.config.n_classes).float()
    share = torch.linspace(0, 1, COLUMNS)[:, None]
    y = torch.lerp(one_hot[:-1, None], one_hot[1:, None], share)  # (rows,10,K)
    names = [numbered(c, class_names) for c in ends.tolist()]
    return image_grid(render(G, z, y.flatten(0, 1)), COLUMNS, left=names[:-1], right=names[1:])
