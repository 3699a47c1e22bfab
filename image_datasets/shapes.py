"""The data set `shapes`: ten kinds of figures, drawn here, whose place, size, rotation and colour vary freely.

Image i is a pure function of (seed, i): it does not depend on how many are made, or by how many processes. It shows a
figure of class i mod 10 on a gradient or on stripes; one in three is partly covered by a smaller second figure.

Symbols: R resolution; outlines are float (n,2), x to the right and y down, within the unit circle around 0.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

import utils
from image_datasets.sources import Source

SUPERSAMPLING = 8  # lines a pixel in which outlines are filled, before they are averaged
RESOLUTIONS = range(16, 257)
MOST_IMAGES = 10**7
VERSION = 1  # of the drawing: another one makes other images
# All lengths as shares of the image's side.
RADII = (0.27, 0.44)  # of the circle around the figure
COVERED = 1 / 3  # of the images have a second figure before the first,
COVER_RADIUS = (0.35, 0.5)  # with a circle of so many of the first's radii around it,
HIDDEN = (0.05, 0.25)  # which hides so much of the first figure
STRIPES = 0.5  # of the backgrounds; the others are gradients
STRIPE_WIDTHS = (0.06, 0.2)
CONTRAST = 0.45  # least distance in RGB, each of [0, 1], of a figure's colour from what is behind it


def _circle(radius=1.0, centre=(0.0, 0.0), start=0.0, stop=2 * math.pi, number=96):
    angles = np.linspace(start, stop, number)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius + centre


def _star():
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    return _circle(number=11, start=-math.pi / 2, stop=1.5 * math.pi)[:-1] * radii


def _polar(radii, angles):
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _spiral():
    """A band of two turns that grows outwards."""
    angles = np.linspace(0, 4 * math.pi, 160)
    middle, half = 0.06 + 0.76 * angles / angles[-1], 0.1 + 0.04 * angles / angles[-1]
    return np.concatenate([_polar(middle + half, angles), _polar(middle - half, angles)[::-1]])


def _heart():
    t = np.linspace(0, 2 * math.pi, 96)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 1.5], 1) / 17.7


def _cross(width=0.3):
    long = math.sqrt(1 - width**2)
    corners = [(width, width), (long, width), (long, -width), (width, -width), (width, -long), (-width, -long)]
    corners += [(-width, -width), (-long, -width), (-long, width), (-width, width), (-width, long), (width, long)]
    return np.array(corners)


ARROW = [(0.0, -1.0), (0.75, -0.15), (0.24, -0.15), (0.24, 0.95), (-0.24, 0.95), (-0.24, -0.15), (-0.75, -0.15)]

# Class -> what is filled, and what is taken out of it again.
FIGURES = {
    "disc": (_circle(0.85), None),
    "ring": (_circle(0.95), _circle(0.55)),
    "square": (_circle(number=5, start=math.pi / 4, stop=2.25 * math.pi)[:-1], None),
    "triangle": (_circle(number=4, start=-math.pi / 2, stop=1.5 * math.pi)[:-1], None),
    "star": (_star(), None),
    "cross": (_cross(), None),
    "crescent": (_circle(0.95), _circle(0.8, (0.5, 0.0))),
    "heart": (_heart(), None),
    "arrow": (np.array(ARROW), None),
    "spiral": (_spiral(), None),
}
CLASS_NAMES = list(FIGURES)


def shapes_source(num_images: int, seed: int, resolution: int) -> Source:
    """The first `num_images` images of a seed. Raises: utils.UserError for a size or number that cannot be made."""
    if resolution not in RESOLUTIONS:
        raise utils.UserError(
            f"--resolution {resolution}: shapes are drawn at {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}; 32 and 64 are usual"
        )
    if not len(CLASS_NAMES) <= num_images <= MOST_IMAGES:
        raise utils.UserError(
            f"--num_images {num_images}: choose {len(CLASS_NAMES)}, one of each class, to {MOST_IMAGES:,}"
        )
    labels = np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
    about = f"shapes: {num_images} images of seed {seed}, drawing {VERSION}"
    return Source(about, CLASS_NAMES, labels, Drawings(num_images, seed, resolution))


class Drawings(Sequence):
    """The images of a seed, each drawn when it is asked for: uint8 (R,R,3)."""

    def __init__(self, number: int, seed: int, resolution: int):
        self.number, self.seed, self.resolution = number, seed, resolution

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < self.number:
            raise IndexError(i)
        return draw(self.seed, i, self.resolution)


def draw(seed: int, i: int, resolution: int) -> np.ndarray:
    """Image i of a seed: uint8 (R,R,3).

    At another resolution it is the same picture, but where the figure in front hides so little or so much of the other
    that pixels decide whether it is taken (about 4 of 1,000 images at 32 and 64).
    """
    rng = utils.rng(seed, "shapes", i)
    figure = FIGURES[CLASS_NAMES[i % len(CLASS_NAMES)]]
    behind = rng.random((2, 3))  # the two colours of the background
    picture = _background(rng, behind, resolution)
    radius = rng.uniform(*RADII)
    centre = rng.uniform(radius, 1 - radius, 2)
    colour = _contrasting(rng, _between(behind))
    mask = _filled(figure, centre, radius, rng.uniform(0, 2 * math.pi), resolution)
    picture = _over(picture, mask, colour)
    if rng.random() < COVERED:
        cover = _cover(rng, centre, radius, mask, resolution)
        seen = np.concatenate([_between(behind), colour[None]])
        picture = _over(picture, cover, _contrasting(rng, seen))
    return np.rint(255 * picture).astype(np.uint8)


def _cover(rng, centre, radius, mask, resolution):
    """The mask of a smaller figure that hides some of the first; where none does in 50 tries, of nothing."""
    for _ in range(50):
        figure = FIGURES[CLASS_NAMES[rng.integers(len(CLASS_NAMES))]]
        size, direction, distance = radius * rng.uniform(*COVER_RADIUS), *rng.uniform((0, 0.5), (2 * math.pi, 1.1))
        place = centre + radius * distance * np.array([math.cos(direction), math.sin(direction)])
        cover = _filled(figure, place, size, rng.uniform(0, 2 * math.pi), resolution)
        if HIDDEN[0] <= (cover * mask).sum() / mask.sum() <= HIDDEN[1]:
            return cover
    return np.zeros_like(mask)


def _background(rng, colours, resolution):
    """float (R,R,3): a gradient from one colour to the other, or stripes of both, in any direction."""
    direction, striped = rng.uniform(0, 2 * math.pi), rng.random() < STRIPES
    width, phase = rng.uniform(*STRIPE_WIDTHS), rng.random()
    if striped:
        offsets = width * (2 * (np.arange(-12, 13) + phase))  # of every second stripe from the centre
        share = np.zeros((resolution, resolution))
        for offset in offsets[np.abs(offsets) < 1]:
            band = np.array([(offset, -1.0), (offset + width, -1.0), (offset + width, 1.0), (offset, 1.0)])
            share += _filled((band, None), (0.5, 0.5), 1.0, direction, resolution)
    else:
        y, x = (np.mgrid[:resolution, :resolution] + 0.5) / resolution - 0.5
        reach = abs(math.cos(direction)) + abs(math.sin(direction))
        share = (x * math.cos(direction) + y * math.sin(direction)) / reach + 0.5
    return colours[0] + share.clip(0, 1)[..., None] * (colours[1] - colours[0])


def _filled(figure, centre, radius, angle, resolution):
    """The share of each pixel that a turned and moved figure takes up: float (R,R)."""
    size = resolution * SUPERSAMPLING
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    canvas = Image.new("L", (size, size))
    for outline, level in zip(figure, (255, 0), strict=True):
        if outline is not None:
            points = (np.asarray(centre) + radius * outline @ turn) * size
            ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=level)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255


def _over(picture, mask, colour):
    return picture + mask[..., None] * (colour - picture)


def _between(colours, number=5):
    """Colours from one to the other: (number,3)."""
    return colours[0] + np.linspace(0, 1, number)[:, None] * (colours[1] - colours[0])


def _contrasting(rng, others):
    """A colour (3,) far from all others (n,3); where 50 tries give none, the farthest of them."""
    tried = rng.random((50, 3))
    distances = np.linalg.norm(tried[:, None] - others, axis=2).min(axis=1)
    far = np.flatnonzero(distances >= CONTRAST)
    return tried[far[0] if len(far) else distances.argmax()]
