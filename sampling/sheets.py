"""Sample sheets: classes side by side, random images, interpolations of noise and of class, as PIL images.

Symbols: N images, resolution R, K classes of the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from sampling.classes import SHOWN, spread_classes
from sampling.generate import make_images
from sampling.latents import Truncation, balanced_labels, latents, random_labels
from torch_utils.images import image_grid
from utils import Options, numbered, option

COLUMNS = SHOWN  # of every sheet
TRUNCATION_COLUMNS = 12  # of a sheet of truncations, about
# Images at a time for a sheet, and their pixels: it fits wherever training did, and 128x128 into 2 GB.
SHEET_BATCH, SHEET_PIXELS = 20, 20 * 64**2


@dataclass(frozen=True)
class SheetOptions(Options):
    """What moves along the rows of a sheet, and what is the same in all of them."""

    title = "sheets"

    interpolation: str | None = option(
        None,
        "path from one end of a row to the other: straight, or cos and sin of the ends; None: spherical for z, every "
        "point then being distributed as z is, and linear for the class",
        choices=("linear", "spherical"),
    )
    fix_z: bool = option(False, "the same z, or ends of z, in all rows and random images", switch=True)
    fix_y: bool = option(False, "the same class, or ends of it, in all rows and random images", switch=True)

    def between(self, start: Tensor, end: Tensor, usual: str) -> Tensor:
        """The path of COLUMNS points between ends (rows,d): (rows,10,d); usual: where no --interpolation is given."""
        if (self.interpolation or usual) == "linear":
            return torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, COLUMNS)[:, None])
        angle = torch.linspace(0, math.pi / 2, COLUMNS)[:, None]
        return angle.cos() * start[:, None] + angle.sin() * end[:, None]

    def numbers(self, rows: int, each: int = 1) -> list[int]:
        """Of the z of all rows, `each` a row."""
        return [i % each if self.fix_z else i for i in range(rows * each)]

    def class_ends(self, rows: int, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """From which class to which each row goes, int64 (rows,) each: from one to the next, in turns."""
        ends = balanced_labels(rows + 1, classes)
        return (ends[:1].expand(rows), ends[1:2].expand(rows)) if self.fix_y else (ends[:-1], ends[1:])


def few(G: nn.Module) -> int:
    """How many images of G are made at a time where memory matters more than speed."""
    return max(1, min(SHEET_BATCH, SHEET_PIXELS // G.config.resolution**2))


def render(G: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K): uint8 (N,3,R,R), a few at a time."""
    number = few(G)
    batches = zip(z.split(number), y.split(number), strict=True)
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
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    options: SheetOptions | None = None,
) -> Image.Image:
    """Rows of 10 images with a z each and classes drawn from `classes`, all if None."""
    options = options or SheetOptions()
    num_images = rows * COLUMNS
    y = random_labels(seed, num_images, classes or range(G.config.n_classes))
    y = y[:1].expand(num_images) if options.fix_y else y
    return image_grid(render(G, latents(seed, options.numbers(num_images), G.config.dim_z, truncation), y), COLUMNS)


def truncation_sheet(
    images: Sequence[Tensor], titles: Sequence[str], classes: Sequence[int], class_names: list[str] | None = None
) -> Image.Image:
    """Truncations side by side: a row per class, a block of columns per truncation, in each block the same z.

    Args: images: for each truncation uint8 (rows*columns,3,R,R), of `truncation_samples`; titles: of the blocks.
    """
    rows = len(classes)
    blocks = [block.unflatten(0, (rows, -1)) for block in images]  # (rows,columns,3,R,R)
    columns = blocks[0].shape[1]
    labels = [label for title in titles for label in (title, *[""] * (columns - 1))]
    names = [numbered(c, class_names) for c in classes]
    return image_grid(
        torch.cat(blocks, dim=1).flatten(0, 1), columns * len(blocks), labels, left=names, blocks=len(blocks)
    )


def truncation_samples(
    G: nn.Module, classes: Sequence[int], blocks: int, seed: int, truncation: Truncation | None
) -> Tensor:
    """One block of a `truncation_sheet` of so many: uint8 (rows*columns,3,R,R), a row per class."""
    columns = max(1, TRUNCATION_COLUMNS // blocks)
    z = latents(seed, range(columns), G.config.dim_z, truncation).repeat(len(classes), 1)
    return render(G, z, torch.tensor(classes).repeat_interleave(columns))


def z_interpolation_sheet(
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    class_names: list[str] | None = None,
    options: SheetOptions | None = None,
) -> Image.Image:
    """From one z to another along each row, whose class is fixed and named; the rows take turns through `classes`.

    The path is cos(t pi/2) z0 + sin(t pi/2) z1: for independent normal ends every point on it is distributed as z is,
    whereas the middle of a straight line has half the variance, which G has never seen.
    """
    options = options or SheetOptions()
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, options.numbers(rows, each=2), G.config.dim_z, truncation)
    z = options.between(z[0::2], z[1::2], "spherical")  # (rows,10,dim_z)
    y, _ = options.class_ends(rows, classes)
    names = [numbered(c, class_names) for c in y.tolist()] if G.config.n_classes > 1 else []
    return image_grid(render(G, z.flatten(0, 1), y.repeat_interleave(COLUMNS)), COLUMNS, left=names)


def class_interpolation_sheet(
    G: nn.Module,
    rows: int,
    seed: int,
    truncation: Truncation | None = None,
    classes: Sequence[int] | None = None,
    class_names: list[str] | None = None,
    options: SheetOptions | None = None,
    with_z: bool = False,
) -> Image.Image:
    """From one class to the next of `classes` along each row; both are named at its ends. z is fixed, or `with_z` goes
    from one to another as well.

    Every embedding of the class in G moves on the path from one class's to the other's, usually a straight line.
    """
    options = options or SheetOptions()
    classes = classes or spread_classes(G.config.n_classes)
    z = latents(seed, options.numbers(rows, each=2 if with_z else 1), G.config.dim_z, truncation)
    z = options.between(z[0::2], z[1::2], "spherical").flatten(0, 1) if with_z else z.repeat_interleave(COLUMNS, dim=0)
    ends = options.class_ends(rows, classes)
    one_hot = [torch.nn.functional.one_hot(end, G.config.n_classes).float() for end in ends]
    y = options.between(*one_hot, "linear")  # (rows,10,K)
    left, right = ([numbered(c, class_names) for c in end.tolist()] for end in ends)
    return image_grid(render(G, z, y.flatten(0, 1)), COLUMNS, left=left, right=right)
