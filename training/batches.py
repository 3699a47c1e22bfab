"""What a training step sees: real images, noise and classes, as functions of the seed and the step.

Each pass is drawn for the whole batch and every rank takes its slice, so that any number of ranks sees the same.
Symbols: N images of this rank in a pass, R resolution.
"""

import argparse

import torch
from torch.nn import functional as F

import utils
from torch_utils.images import to_float

CIFAR_RESOLUTION, CIFAR_PADDING = 32, 4  # files of this resolution are padded by so much where --augment crops them


def add_batch_args(parser):
    """Add the flags that say what G and D are shown."""
    group = parser.add_argument_group("batches")
    group.add_argument(
        "--batch_size", type=utils.positive_int, default=64, help="images of one pass, over all processes"
    )
    group.add_argument("--G_batch_size", type=utils.count, default=0, help="fakes of one pass of G; 0: batch_size")
    group.add_argument(
        "--D_fake_labels",
        choices=("random", "real"),
        default="random",
        help="classes of the fakes in a step of D: drawn at random, or those of the real images beside them",
    )
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="random horizontal flips")
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="random horizontal flips and random crops: of --crop_size from larger images, or, at 32x32 (CIFAR), of "
        "the image padded by 4 black pixels",
    )
    group.add_argument(
        "--dequantise",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="uniform noise of one grey level on real images: 2 (x/256 - 1/2) + U(0, 1/128)",
    )
    group.add_argument("--unconditional", action="store_true", help="ignore labels: one class, and a D without class")


def draw_latents(args, config, ranks, step, draw, batch_size):
    """z (N,dim_z) and y (N,) of this rank for pass `draw` of a step."""
    z = utils.rng(args.seed, "z", step, draw).standard_normal((batch_size, config.dim_z), dtype="float32")
    y = utils.rng(args.seed, "y", step, draw).integers(config.n_classes, size=batch_size)
    return [torch.from_numpy(ranks.slice(array)).to(ranks.device, non_blocking=True) for array in (z, y)]


def draw_reals(args, loader, ranks, step, draw):
    """Real images x (N,3,R,R) in [-1,1] and their classes y (N,) of this rank for a pass of D."""
    images, y = next(loader)
    images, y = (tensor.to(ranks.device, non_blocking=True) for tensor in (images, y))
    images = augment(images, args, ranks, step, draw)
    y = torch.zeros_like(y) if args.unconditional else y
    if not args.dequantise:
        return to_float(images), y
    noise = utils.rng(args.seed, "dequantise", step, draw).random((args.batch_size, *images.shape[1:]), dtype="float32")
    noise = torch.from_numpy(ranks.slice(noise)).to(ranks.device)
    return (images.float() + noise) / 128 - 1, y


def augment(images, args, ranks, step, draw):
    """What --augment and --flip make of the real images of a pass.

    Crops are uniform over all positions: in images larger than --crop_size, without that flag in images padded by 4
    black pixels on every side, as torchvision's RandomCrop(32, padding=4). Flips are horizontal, with probability 1/2.
    Args: images: uint8 (N,3,S,S) of this rank, S the resolution of the file. Returns: uint8 (N,3,R,R).
    """

    def drawn(stream, high, *shape):
        numbers = utils.rng(args.seed, stream, step, draw).integers(high, size=(args.batch_size, *shape))
        return torch.from_numpy(ranks.slice(numbers)).to(ranks.device, non_blocking=True)

    if args.augment:
        size = args.crop_size or images.shape[-1]
        padded = images if args.crop_size else F.pad(images, [CIFAR_PADDING] * 4)
        top, left = drawn("crop", padded.shape[-1] - size + 1, 2).T
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view (N,3,positions,positions,size,size)
        images = windows[torch.arange(len(images), device=images.device), :, top, left]
    if args.augment or args.flip:
        images = torch.where(drawn("flip", 2).bool()[:, None, None, None], images.flip(3), images)
    return images


def D_passes(args, config, ranks, loader, step, draws):
    """The passes of one step of D: (x (N,3,R,R), y (N,), z (N,dim_z), y_fake (N,)) for each number in `draws`."""
    for draw in draws:
        x, y = draw_reals(args, loader, ranks, step, draw)
        z, y_fake = draw_latents(args, config, ranks, step, draw, args.batch_size)
        yield x, y, z, y if args.D_fake_labels == "real" else y_fake


def G_passes(args, config, ranks, step, draws):
    """The passes of one step of G: (z (N,dim_z), y (N,)) for each number in `draws`."""
    for draw in draws:
        yield draw_latents(args, config, ranks, step, draw, args.G_batch_size or args.batch_size)
