"""What a training step sees: real images, noise and classes, as functions of the seed and the step.

Each pass is drawn for the whole batch and every rank takes its slice, so that any number of ranks sees the same.
Symbols: N images of this rank in a pass, R resolution.
"""

import argparse

import torch

import utils


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
    if args.flip:
        flips = utils.rng(args.seed, "flip", step, draw).integers(2, size=args.batch_size)
        flips = torch.from_numpy(ranks.slice(flips)).to(ranks.device).bool()
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    y = torch.zeros_like(y) if args.unconditional else y
    if not args.dequantise:
        return utils.to_float(images), y
    noise = utils.rng(args.seed, "dequantise", step, draw).random((args.batch_size, *images.shape[1:]), dtype="float32")
    noise = torch.from_numpy(ranks.slice(noise)).to(ranks.device)
    return (images.float() + noise) / 128 - 1, y


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
