"""What a generator does: where it attends, what spatial self-modulation adds, which directions of z matter.

    python explain.py runs/quickstart
    python explain.py runs/quickstart --only attention --points 16,8 20,20 --classes 3 8

Image i of a seed is the same as in sample.py with the same --classes: z and class depend on (seed, i).

Symbols: N samples, resolution R.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import BigGAN
import utils
from reports import attention, directions, modulation
from sampling import batch_norm
from sampling.batch_norm import BatchNormMode
from sampling.classes import class_ids, spread_classes
from sampling.generate import SamplingOptions, describe
from sampling.latents import balanced_labels, latents
from sampling.sheets import render
from torch_utils import checkpoints, distributed
from torch_utils.images import FORMATS, save_image, to_float
from torch_utils.memory import keep_freed_blocks
from torch_utils.mixed_precision import PrecisionOptions


class Samples(NamedTuple):
    """z (N,dim_z), classes y int64 (N,), images uint8 (N,3,R,R), and a name for each."""

    z: Tensor
    y: Tensor
    images: Tensor
    names: list[str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser(
        "Pictures of what a checkpoint's generator does: attention maps of chosen points, maps of spatial "
        "self-modulation, samples with parts of it taken out or exchanged, walks along the leading directions of z.",
        "CHECKPOINT",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file, or a run folder: its best checkpoint")
    SamplingOptions.add_to(parser)
    group = parser.add_argument_group("what is drawn")
    group.add_argument(
        "--only", nargs="+", choices=tuple(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}; None: all there is"
    )
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="classes of the samples, by number or name")
    group.add_argument("--num_samples", type=utils.positive_int, default=4, help="samples, the rows of a picture")
    group.add_argument("--points", nargs="+", metavar="X,Y", help="attention: points of the image, in pixels from 0")
    group.add_argument("--num_points", type=utils.positive_int, default=5, help="without --points: so many, spread")
    group.add_argument("--channels", type=utils.positive_int, default=3, help="ssm: channels that vary most")
    group.add_argument("--directions", type=utils.positive_int, default=5, help="directions: how many")
    group.add_argument("--steps", type=utils.positive_int, default=7, help="directions: images of a walk")
    group.add_argument("--reach", type=float, default=4.0, help="directions: how far a walk goes to either side")
    PrecisionOptions.add_to(parser, only=("amp", "tf32"))
    BatchNormMode.add_to(parser, bn_mode=None)
    group = parser.add_argument_group("output")
    group.add_argument("--out", help="folder to write to; None: samples/explain in the checkpoint's run folder")
    group.add_argument("--format", choices=FORMATS, default="png", help="of the pictures; both hold exact pixels")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = SamplingOptions.of(args)
    if not 0 < args.reach < float("inf"):
        raise utils.UserError(f"--reach {args.reach:g}: must be positive")
    keep_freed_blocks()
    device = distributed.resolve_device(options.device)
    G, meta = BigGAN.load_generator(args.checkpoint, device, options.ema)
    PrecisionOptions.of(args).apply(G)
    D = discriminator_of(meta["path"], device) if "attention" in (args.only or PARTS) else None
    parts = chosen_parts(args, G, D)
    points = chosen_points(args, G.config.resolution)
    names = meta.get("class_names") or [str(c) for c in range(G.config.n_classes)]
    classes = class_ids(args.classes, names) if args.classes else spread_classes(G.config.n_classes)
    directions.check_number(G, args.directions)
    out = Path(args.out) if args.out else checkpoints.samples_folder(Path(meta["path"])) / "explain"
    utils.check_writable(out)
    truncation = options.chosen_truncation(meta)
    mode = batch_norm.chosen_mode(vars(args), truncation, options.own_truncation(meta))
    if mode.bn_mode == "batch":
        raise utils.UserError("--bn_mode batch: samples that share statistics explain each other; use standing")
    print(describe(G, meta, device))
    with batch_norm.prepared(G, mode, options.seed, truncation) as G:
        z = latents(options.seed, range(args.num_samples), G.config.dim_z, truncation)
        y = balanced_labels(args.num_samples, classes)
        images = render(G, z, y)
        samples = Samples(z, y, images, [f"sample {i}: {utils.numbered(c, names)}" for i, c in enumerate(y.tolist())])
        for part in parts:
            for name, picture, what in PARTS[part](G, samples, args, points, D):
                path = out / f"{name}.{args.format}"
                save_image(picture, path)
                print(f"wrote {utils.printable(str(path))} ({what})")


def chosen_parts(args: argparse.Namespace, G: nn.Module, D: nn.Module | None) -> list[str]:
    """The parts to draw. Raises: utils.UserError for one asked for by name that the model has nothing for."""
    attends = any(attention.attention_layers(network) for network in (G, D) if network)
    lacking = {} if attends else {"attention": "attention"}
    if G.ssm is None:
        lacking |= dict.fromkeys(("ssm", "identity", "exchange"), "spatial self-modulation")
    for part in [part for part in args.only or () if part in lacking]:
        others = ", ".join(name for name in PARTS if name not in lacking)
        raise utils.UserError(f"--only {part}: the model of {args.checkpoint} has no {lacking[part]}; it has {others}")
    if args.points and "attention" in lacking:
        raise utils.UserError(f"--points: the model of {args.checkpoint} has no attention")
    for what in dict.fromkeys(lacking.values()):
        if not args.only:
            print(f"note: this model has no {what}: no pictures of it")
    return [part for part in args.only or PARTS if part not in lacking]


def chosen_points(args: argparse.Namespace, resolution: int) -> list[tuple[int, int]]:
    """Raises: utils.UserError for a point outside of the image, or more of them than there are pixels."""
    if args.points:
        return attention.parse_points(args.points, resolution)
    if args.num_points > 100:
        raise utils.UserError(f"--num_points {args.num_points}: at most 100, each is a column of the picture")
    return attention.spread_points(args.num_points, resolution)


# ---------------------------------------------------------------------------------------------------------------------
# Each part yields the names of its files, their pictures, and what to say of them.


def draw_attention(G, samples, args, points, D):
    """Of the generator; and of the discriminator, looking at the samples, where the checkpoint holds one."""
    device = next(G.parameters()).device
    networks = {"G": (G, (samples.z.to(device), samples.y.to(device)))}
    if D:
        networks["D"] = (D, (to_float(samples.images).to(device), samples.y.to(device)))
    for name, (network, inputs) in networks.items():
        maps = attention.attention_maps(network, inputs, points, samples.images.shape[-1])
        for i, layer in enumerate(maps):
            number = f"_{i + 1}" if len(maps) > 1 else ""
            what = (
                f"{name} at {layer.side}x{layer.side}; the image plus gamma {layer.gamma:.3g} times what is attended to"
            )
            sheet = attention.attention_sheet(samples.images, layer, points, samples.names)
            yield f"attention_{name}{number}_{layer.side}x{layer.side}", sheet, what


def discriminator_of(path: str, device: torch.device) -> nn.Module | None:
    """That of the same file; the small best_*.pth have none."""
    if Path(path).name.startswith("best_"):
        return None
    try:
        return BigGAN.load_discriminator(path, device)[0]
    except utils.UserError:
        return None


def draw_ssm(G, samples, args, points, D):
    stages = modulation.modulation_maps(G, samples.z, samples.y)
    yield (
        "ssm",
        modulation.overview_sheet(samples.images, stages, samples.names),
        "magnitude of gain and bias, by stage",
    )
    for stage in stages:
        side = stage.gain.shape[-1]
        sheet = modulation.channels_sheet(samples.images, stage, samples.names, args.channels)
        yield f"ssm_{side}x{side}", sheet, f"the channels of the {side}x{side} stage that vary most"


def draw_identity(G, samples, args, points, D):
    without = modulation.without_stages(G, samples.z, samples.y)
    sides = G.config.stage_resolutions("G")
    sheet = modulation.without_sheet(samples.images, without, sides, samples.names)
    yield "ssm_without", sheet, "one stage's gain 1 and bias 0 at a time; what normalises stays"


def draw_exchange(G, samples, args, points, D):
    for what in modulation.EXCHANGES:
        if what == "class" and len(samples.y.unique()) == 1:
            print("note: all samples are of one class: no exchange of classes")
            continue
        images = modulation.exchanged(G, samples.z, samples.y, what)
        sheet = modulation.exchange_sheet(images, samples.names, what)
        yield (
            f"ssm_exchange_{what}",
            sheet,
            f"rows: main stream of one sample; columns: the second stream has the {what} of another",
        )


def draw_directions(G, samples, args, points, D):
    sheet = directions.walks_sheet(G, samples.z[0], samples.y[0], args.directions, args.reach, args.steps)
    yield "directions", sheet, "leading singular directions of G's first linear layer, from sample 0"


PARTS = {
    "attention": draw_attention,
    "ssm": draw_ssm,
    "identity": draw_identity,
    "exchange": draw_exchange,
    "directions": draw_directions,
}

if __name__ == "__main__":
    utils.run_main(main)
