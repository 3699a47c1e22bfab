"""A small generator and a checkpoint of it, for the tests."""

import torch

import BigGAN
from model_config import ModelConfig
from torch_utils import checkpoints

RESOLUTION, CLASSES, DIM_Z = 16, 3, 6

NAMES = ["cat", "dog/wolf", "2"]


def small_config(n_classes=CLASSES, G_init="N02", **options):
    widths = {"G_ch": 4, "G_ch_mult": (2, 2, 1), "D_ch": 4, "D_ch_mult": (1, 2), "dim_z": DIM_Z}
    return ModelConfig(resolution=RESOLUTION, n_classes=n_classes, G_init=G_init, **{**widths, **options})


def small_generator(**options):
    """A generator with settled batch-norm statistics, whose images differ visibly between classes and z."""
    torch.manual_seed(0)
    G, _ = BigGAN.build(small_config(**options))
    for parameter in G.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        for _ in range(20):
            G(torch.randn(32, G.config.dim_z), torch.randint(G.config.n_classes, (32,)))
    return G.eval().requires_grad_(False)


def save_checkpoint(path, G, names=NAMES, args=None):
    """A checkpoint as train.py writes them, less what only resuming needs."""
    state = {
        "format": 1, "step": 7, "images_seen": 56, "model_config": G.config.to_dict(), "class_names": names,
        "args": args or {}, "G": None, "G_ema": G.state_dict(), "metrics": None,
    }  # fmt: skip
    checkpoints.save(state, path)
    return path
