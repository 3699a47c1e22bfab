"""Draws docs/data_flow.png: how images flow from files to a score, and which file of the project does what on the way.

python tools/draw_data_flow.py

Coordinates are pixels of the picture, y pointing down.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from draw_ssm import MAIN, MODULATION, NEUTRAL, QUIET, STREAM, box, path, save, text

WIDTH, HEIGHT = 1600, 1250
DATA, TRAINING, METRICS, FILE = STREAM, MAIN, MODULATION, NEUTRAL  # fill and edge of each kind of box
SAMPLING = ("#fbe0ea", "#be185d")
X_REFERENCE, X_TRAINING, X_SAMPLING = 272, 800, 1328  # the three lanes
BOX_WIDTH, BOX_HEIGHT = 440, 76
LEGEND = (
    (FILE, "a file on disk"),
    (DATA, "image_datasets/"),
    (TRAINING, "training/, the model"),
    (SAMPLING, "sampling/"),
    (METRICS, "metrics/, selection/"),
)


def node(ax, x, y, colors, title, where, width=BOX_WIDTH):
    """A box centred at (x, y): what happens, or which file it is, and below it where the code is, or what it holds."""
    box(ax, x, y, width, BOX_HEIGHT, colors)
    text(ax, x, y - 15, title, 15, zorder=4)
    text(ax, x, y + 17, where, 13, QUIET, zorder=4)


def down(ax, x, top, bottom, label=""):
    """An arrow between two boxes of a lane, centred at these heights."""
    path(ax, (x, top + BOX_HEIGHT / 2), (x, bottom - BOX_HEIGHT / 2))
    text(ax, x + 12, (top + bottom) / 2, label, 13, QUIET, ha="left")


def draw_data(ax):
    """From image files to the data file, and what is known of it."""
    half = BOX_WIDTH / 2
    node(ax, X_TRAINING, 60, FILE, "image files", "folders, zip, ImageNet, CIFAR, the digits")
    down(ax, X_TRAINING, 60, 180)
    node(ax, X_TRAINING, 180, DATA, "decode, crop, resize, write", "make_hdf5.py: sources, cifar, decoding, writing")
    down(ax, X_TRAINING, 180, 300)
    node(ax, X_TRAINING, 300, FILE, "data/NAME.hdf5", "imgs uint8 (N,3,R,R), labels int64 (N,)")
    path(ax, (X_TRAINING - half, 300), (X_REFERENCE + half, 300))
    node(ax, X_REFERENCE, 300, DATA, "look at each image once", "doctor: NAME_doctor.json and .png")
    path(ax, (X_TRAINING + half, 300), (X_SAMPLING - half, 300))
    node(ax, X_SAMPLING, 300, METRICS, "density of each image in its class", "selection/: NAME_..._scores.npz")


def draw_training(ax):
    """From the data file to a checkpoint."""
    down(ax, X_TRAINING, 300, 440, "uint8")
    node(ax, X_TRAINING, 440, DATA, "batches, read ahead by threads", "loading, hdf5")
    path(ax, (X_SAMPLING, 338), (X_SAMPLING, 440), (X_TRAINING + BOX_WIDTH / 2, 440))
    text(ax, X_SAMPLING - 14, 418, "which images are kept", 13, QUIET, ha="right")
    down(ax, X_TRAINING, 440, 570, "uint8 (N,3,R,R), int64 (N,)")
    node(ax, X_TRAINING, 570, TRAINING, "flip, crop, to [-1, 1];  z, y", "batches: functions of seed and step")
    down(ax, X_TRAINING, 570, 700, "float32 in [-1, 1]")
    node(ax, X_TRAINING, 700, TRAINING, "steps of D, a step of G, average", "train.py: steps, losses, optimizers, ema")
    down(ax, X_TRAINING, 700, 830)
    node(ax, X_TRAINING, 830, FILE, "runs/NAME/weights/*.pth", "G, G_ema, D, optimizers, config, flags")


def draw_reference(ax):
    """From the data file to the reference statistics."""
    path(ax, (X_TRAINING - 120, 338), (X_TRAINING - 120, 370), (X_REFERENCE, 370), (X_REFERENCE, 402))
    text(ax, X_REFERENCE + 12, 386, "uint8, once over all", 13, QUIET, ha="left")
    node(ax, X_REFERENCE, 440, METRICS, "resize, feature network", "calculate_inception_moments.py: networks")
    down(ax, X_REFERENCE, 440, 570, "features float32 (N,d)")
    node(ax, X_REFERENCE, 570, METRICS, "moments, 10,000 features, IS", "functional, reference")
    down(ax, X_REFERENCE, 570, 700)
    node(ax, X_REFERENCE, 700, FILE, "data/NAME_..._reference.npz", "mu, sigma, real_features, protocol")


def draw_sampling(ax):
    """From a checkpoint to images."""
    half = BOX_WIDTH / 2
    node(ax, X_SAMPLING, 700, SAMPLING, "seed and i:  z, y of image i", "latents")
    down(ax, X_SAMPLING, 700, 830, "float32 (N,dim_z), int64 (N,)")
    node(ax, X_SAMPLING, 830, SAMPLING, "G(z, y), rounded to uint8", "generate, batch_norm")
    path(ax, (X_TRAINING + half, 830), (X_SAMPLING - half, 830))
    path(ax, (X_SAMPLING - 150, 868), (X_SAMPLING - 150, 895), (X_TRAINING, 895), (X_TRAINING, 922))
    node(ax, X_TRAINING, 960, FILE, "sheets; PNG files; npz", "sample.py: sheets, files")


def draw_metrics(ax):
    """From images to numbers."""
    half, wide = BOX_WIDTH / 2, 640
    down(ax, X_SAMPLING, 830, 960, "uint8 (N,3,R,R)")
    node(ax, X_SAMPLING, 960, METRICS, "resize, feature network", "images, features, networks, resizing")
    path(ax, (X_TRAINING + half, 960), (X_SAMPLING - half, 960))
    path(ax, (X_SAMPLING, 998), (X_SAMPLING, 1085), (X_TRAINING + wide / 2, 1085))
    text(ax, X_SAMPLING + 12, 1042, "features (N,d), logits (N,K)", 13, QUIET, ha="left")
    path(ax, (X_REFERENCE, 738), (X_REFERENCE, 1085), (X_TRAINING - wide / 2, 1085))
    title = "FID or FD, IS, KID, precision, recall, density, coverage"
    node(ax, X_TRAINING, 1085, METRICS, title, "evaluate.py, train.py: inception_utils.py, functional, prdc.py", wide)
    down(ax, X_TRAINING, 1085, 1200)
    node(ax, X_TRAINING, 1200, FILE, "numbers with their protocol", "log.jsonl, curves.png, checkpoints, --json", wide)


def draw():
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    ax.axis("off")
    for i, (colors, name) in enumerate(LEGEND):
        box(ax, 74, 40 + 36 * i, 44, 24, colors)
        text(ax, 112, 40 + 36 * i, name, 14, ha="left")
    for draw_part in (draw_data, draw_training, draw_reference, draw_sampling, draw_metrics):
        draw_part(ax)
    save(figure, "data_flow.png")


if __name__ == "__main__":
    draw()
