"""Sample sheets: classes side by side, random images, interpolations of noise and of class, as PIL images.

Symbols: N images, resolution R, K classes of the model.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn

from sampling.generate import make_images
from sampling.latents import Truncation, balanced_labels, latents, random_labels
from torch_utils.images import image_grid

COLUMNS = 10  # of every sheet
SHEET_BATCH = 20  # images at a time for a sheet: fits wherever training did
MAX_HEADER = 10  # characters above a column of about 64 pixels


def _render(G, z, y):
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K): uint8 (N,3,R,R), a few at a time."""
    batches = zip(z.split(SHEET_BATCH), y.split(SHEET_BATCH), strict=True)
    return torch.cat([make_images(G, z_batch, y_batch) for z_batch, y_batch in batches])


def spread_classes(num_classes: int) -> list[int]:
    """Up to 10 class ids, evenly spread over all."""
    columns = min(COLUMNS, num_classes)
    return [i * num_classes // columns for i in range(columns)]


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
        None; class_names: names of all K classes, which head the columns if they are short (else the ids do).
    Returns: the sheet. A single class makes no columns: it is a `random_sheet`.
    """
    classes = classes or spread_classes(G.config.n_classes)
    if len(classes) == 1:
        return random_sheet(G, rows, seed, truncation, classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(len(classes), dim=0)
    images = _render(G, z, torch.tensor(classes).repeat(rows))
    return image_grid(images, columns=len(classes), labels=_headers(classes, class_names))


def random_sheet(
    G: nn.Module, rows: int, seed: int, truncation: Truncation | None = None, classes: Sequence[int] | None = None
) -> Image.Image:
    """Rows of 10 images with a z each and classes drawn from `classes`, all if None."""
    num_images = rows * COLUMNS
    y = random_labels(seed, num_images, classes or range(G.config.n_classes))
    return image_grid(_render(G, latents(seed, range(num_images), G.config.dim_z, truncation), y), COLUMNS)


def z_interpolation_sheet(
    G: nn.Module, rows: int, seed: int, truncation: Truncation | None = None, classes: Sequence[int] | None = None
) -> Image.Image:
    """From one z to another along each row, whose class is fixed; the rows take turns through `classes`.

    The path is cos(t pi/2) z0 + sin(t pi/2) z1: for independent normal ends every point on it is distributed as z is,
    whereas the middle of a straight line has half the variance, which G has never seen.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(2 * rows), G.config.dim_z, truncation)
    angle = torch.linspace(0, math.pi / 2, COLUMNS)[:, None]
    z = angle.cos() * z[0::2, None] + angle.sin() * z[1::2, None]  # (rows,10,dim_z)
    y = balanced_labels(rows, classes).repeat_interleave(COLUMNS)
    return image_grid(_render(G, z.flatten(0, 1), y), COLUMNS)


def class_interpolation_sheet(
    G: nn.Module, rows: int, seed: int, truncation: Truncation | None = None, classes: Sequence[int] | None = None
) -> Image.Image:
    """From one class to the next of `classes` along each row, whose z is fixed.

    Every embedding of the class in G moves on a straight line from one class's to the other's.
    """
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, range(rows), G.config.dim_z, truncation).repeat_interleave(COLUMNS, dim=0)
    one_hot = torch.nn.functional.one_hot(balanced_labels(rows + 1, classes), G.config.n_classes).float()
    share = torch.linspace(0, 1, COLUMNS)[:, None]
    y = torch.lerp(one_hot[:-1, None], one_hot[1:, None], share)  # (rows,10,K)
    return image_grid(_render(G, z, y.flatten(0, 1)), COLUMNS)


def _headers(classes, class_names):
    names = [class_names[c] for c in classes] if class_names else classes
    return names if max(len(str(name)) for name in names) <= MAX_HEADER else classes
