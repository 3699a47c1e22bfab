"""Draws docs/ssm.png, the picture of spatial self-modulation (variant `voxel`) in a SAGAN generator for 64x64 images.

python tools/draw_ssm.py

Coordinates are pixels of the picture, y pointing down.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Polygon
from PIL import Image

WIDTH, HEIGHT = 1600, 1540
TEXT, QUIET, LINE = "#1f2430", "#5b6472", "#6b7280"
NEUTRAL = ("#ffffff", "#8a93a1")
STREAM = ("#d3efec", "#0f766e")  # the modulation stream: fill, edge
MAIN = ("#e2e6fc", "#3f3cbb")
MODULATION = ("#ffe6c2", "#b45309")

X_RULER, X_STREAM, X_MAPS, X_MAIN, X_RAIL = 88, 365, 768, 1148, 1470
STAGES = ((8, "16ch"), (16, "8ch"), (32, "4ch"), (64, "2ch"))  # size and width after each stage of G at 64x64
ATTENTION = 32


def text(ax, x, y, string, size=16, color=TEXT, **options):
    ax.text(x, y, string, **{"ha": "center", "va": "center_baseline", "fontsize": size, "color": color, **options})


def box(ax, x, y, width, height, colors, *lines, size=16):
    """A rounded box centred at (x, y), with lines of text, if any."""
    fill, edge = colors
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=10"
    ax.add_patch(FancyBboxPatch(corner, width, height, style, facecolor=fill, edgecolor=edge, linewidth=2, zorder=3))
    for i, line in enumerate(lines):
        text(ax, x, y + (i - (len(lines) - 1) / 2) * 31, line, size, zorder=4)


def path(ax, *points, color=LINE, head=True):
    """A line through the points, with an arrow head at the last one."""
    xs, ys = zip(*points, strict=True)
    ax.plot(xs, ys, color=color, linewidth=2.2, solid_joinstyle="round", solid_capstyle="round", zorder=2)
    if head:
        style = {
            "arrowstyle": "-|>,head_width=0.38,head_length=0.7",
            "color": color,
            "linewidth": 0,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        tail = (xs[-1] - 12 * np.sign(xs[-1] - xs[-2]), ys[-1] - 12 * np.sign(ys[-1] - ys[-2]))
        ax.annotate("", (xs[-1], ys[-1]), tail, arrowprops=style, zorder=2)


def cube(ax, x, y, values, cmap, cell=21, step=12):
    """A feature map centred at (x, y): values (channels, rows, columns) in [0, 1], the first channel in front."""
    colors = plt.get_cmap(cmap)
    channels, rows, columns = values.shape
    left = x - (columns * cell + (channels - 1) * step) / 2
    top = y - (rows * cell - (channels - 1) * step) / 2
    for c in reversed(range(channels)):
        for i, j in np.ndindex(rows, columns):
            corner = np.array([left + c * step + j * cell, top - c * step + i * cell])
            corners = corner + np.array([(0, 0), (cell, 0), (cell, cell), (0, cell)])
            face = colors(0.12 + 0.7 * values[c, i, j])
            ax.add_patch(Polygon(corners, facecolor=face, edgecolor="white", linewidth=1, zorder=3 - 0.01 * c))


def draw_inputs(ax, top):
    """Row of the first feature maps: both streams start from a linear layer; returns where they leave the row."""
    upper, lower = top + 45, top + 128
    box(ax, X_MAPS, upper, 230, 52, NEUTRAL, "class $y$,  noise $z$")
    box(ax, X_STREAM, upper, 250, 52, STREAM, "[ $e(y),\\ z$ ]")
    box(ax, X_MAIN, upper, 120, 52, MAIN, "$z$")
    path(ax, (X_MAPS - 115, upper), (X_STREAM + 125, upper))
    path(ax, (X_MAPS + 115, upper), (X_MAIN - 60, upper))
    for x, width, colors in ((X_STREAM, 380, STREAM), (X_MAIN, 430, MAIN)):
        path(ax, (x, upper + 26), (x, lower - 27))
        box(ax, x, lower, width, 54, colors, "linear  →  4 × 4 × 16ch")
    return lower + 27


def draw_stage(ax, i, size, top, above):
    """Stage i: the block of each stream and, between them, the maps; `above` is where the last row was left."""
    attention = 78 if size == ATTENTION else 0
    block, modulation = top + 44, top + 141 + attention

    path(ax, (X_STREAM, above["stream"]), (X_STREAM, modulation - 48))
    text(ax, X_STREAM + 26, modulation - 80, f"$s_{i - 1}$", 18, STREAM[1])
    lines = ("ReLU  –  up  –  conv 3×3", "ReLU  –  conv 3×3")
    box(ax, X_STREAM, modulation, 380, 96, STREAM, *lines)

    fork = X_STREAM + 238
    path(ax, (X_STREAM + 190, modulation), (fork, modulation), color=STREAM[1], head=False)
    text(ax, X_STREAM + 216, modulation - 22, f"$s_{i}$", 18, STREAM[1])
    for offset, name in ((-27, "a"), (27, "b")):
        y = modulation + offset
        path(ax, (fork, modulation), (fork, y), (X_MAPS - 100, y), color=STREAM[1])
        box(ax, X_MAPS, y, 200, 44, MODULATION, f"conv 1×1  →  ${name}_{i}$", size=15)
        path(ax, (X_MAPS + 100, y), (X_MAIN - 215, y), color=MODULATION[1])

    path(ax, (X_MAIN, above["main"]), (X_MAIN, block - 27))
    box(ax, X_MAIN, block, 430, 54, MAIN, "residual block  (up, conditional BN)")
    path(ax, (X_RAIL, above["rail"]), (X_RAIL, block), (X_MAIN + 215, block))
    text(ax, (X_RAIL + X_MAIN + 215) / 2 + 6, block - 19, "$y$", 18, QUIET)
    if attention:
        path(ax, (X_MAIN, block + 27), (X_MAIN, block + attention - 27))
        box(ax, X_MAIN, block + attention, 430, 54, MAIN, "self-attention")
    path(ax, (X_MAIN, block + attention + 27), (X_MAIN, modulation - 49))
    box(ax, X_MAIN, modulation, 430, 98, MODULATION)
    text(ax, X_MAIN, modulation - 19, "$h \\leftarrow (h - \\mathrm{mean})\\,/\\,\\mathrm{std}$", 18, zorder=4)
    text(ax, X_MAIN, modulation + 21, f"$h \\leftarrow h\\,(1 + a_{i}) + b_{i}$", 18, zorder=4)
    return {"stream": modulation + 48, "main": modulation + 49, "rail": block}


def draw_legend(ax, top):
    """What modulating voxels means, beside the one number per channel of conditional batch norm."""
    rng = np.random.default_rng(4)
    shape = (4, 5, 5)
    h, a, b = (smooth(rng.random(shape)) for _ in range(3))
    gain, bias = (np.broadcast_to(rng.permutation(np.linspace(0.1, 1, 4))[:, None, None], shape) for _ in range(2))

    middle = top + 132
    left = X_RULER - 45
    text(ax, left, top, "conditional BN:  a gain and a bias for every channel", 16, MAIN[1], ha="left", weight="bold")
    text(ax, left, top + 30, "$h$ normalised over the batch, channel by channel", 15, QUIET, ha="left")
    terms = ((gain, "Purples", "$1 + \\gamma(y)$"), "+", (bias, "Purples", "$\\beta(y)$"))
    draw_equation(ax, left, middle, (h, "Greys", "$h$"), "⊙", *terms)

    left = WIDTH / 2 + 45
    text(ax, left, top, "SSM:  a gain and a bias for every voxel", 16, MODULATION[1], ha="left", weight="bold")
    text(ax, left, top + 30, "$h$ normalised over all voxels of the sample", 15, QUIET, ha="left")
    terms = ((a, "Oranges", "$1 + a_i$"), "+", (b, "Oranges", "$b_i$"))
    draw_equation(ax, left, middle, (h, "Greys", "$h$"), "⊙", *terms)


def draw_equation(ax, left, y, *terms):
    """Feature maps, each (values, colour map, name), and the signs between them, from left to right."""
    for term in terms:
        if isinstance(term, str):
            text(ax, left + 33, y, term, 26, QUIET)
            left += 66
        else:
            values, cmap, name = term
            cube(ax, left + 70, y, values, cmap)
            text(ax, left + 54, y + 98, name, 18)
            left += 140


def smooth(values):
    """Noise that varies slowly over the positions, stretched to [0, 1]."""
    for axis in (1, 2):
        values = values + np.roll(values, 1, axis) + np.roll(values, -1, axis)
    return (values - values.min()) / np.ptp(values)


def band(ax, top, bottom, size, width, shaded):
    if shaded:
        ax.axhspan(top, bottom, color="#f4f5f8", zorder=0)
    text(ax, X_RULER, (top + bottom) / 2 - 14, f"{size} × {size}", 18, weight="bold")
    text(ax, X_RULER, (top + bottom) / 2 + 18, width, 16, QUIET)


def draw():
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    ax.axis("off")

    text(ax, X_STREAM, 40, "modulation stream", 21, STREAM[1], weight="bold")
    text(ax, X_MAPS, 40, "voxel maps", 21, MODULATION[1], weight="bold")
    text(ax, X_MAIN, 40, "main stream", 21, MAIN[1], weight="bold")

    top = 84
    band(ax, top, top + 174, 4, "16ch", shaded=True)
    left_at = draw_inputs(ax, top)
    path(ax, (X_MAPS, top + 19), (X_MAPS, top - 8), (X_RAIL, top - 8), (X_RAIL, top + 60), head=False)
    above = {"stream": left_at, "main": left_at, "rail": top + 60}
    top += 174
    for i, (size, width) in enumerate(STAGES, start=1):
        bottom = top + 207 + (78 if size == ATTENTION else 0)
        band(ax, top, bottom, size, width, shaded=i % 2 == 0)
        above = draw_stage(ax, i, size, top, above)
        top = bottom

    output = top + 50
    path(ax, (X_MAIN, above["main"]), (X_MAIN, output - 27))
    box(ax, X_MAIN, output, 430, 54, MAIN, "BN  –  ReLU  –  conv 3×3  –  tanh")
    path(ax, (X_MAIN + 215, output), (X_RAIL - 70, output))
    box(ax, X_RAIL, output, 140, 54, NEUTRAL, "image")
    draw_legend(ax, top + 128)

    save(figure, "ssm.png")


def save(figure, name):
    """Write a figure into docs/."""
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    docs = Path(__file__).parent.parent / "docs"
    picture.quantize(256, dither=Image.Dither.NONE).save(docs / name, optimize=True)


if __name__ == "__main__":
    draw()
