"""What a generator does: where it attends, what spatial self-modulation adds, which directions of z matter.

    python explain.py runs/quickstart
    python explain.py runs/quickstart --only attention --points 16,8 20,20 --classes 3 8
    python explain.py runs/quickstart --only memorisation       reads the training data

Image i of a seed is the same as in sample.py with the same --classes: z and class depend on (seed, i).

Symbols: N samples, resolution R.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import BigGAN
import utils
from image_datasets.image_sets import ImageSet
from image_datasets.loading import DataOptions, open_dataset
from metrics.features import features_of
from metrics.images import GeneratedImages
from metrics.networks import FeatureNetwork, FeatureOptions
from reports import attention, directions, memorisation, modulation
from sampling import batch_norm
from sampling.batch_norm import BatchNormMode
from sampling.classes import class_ids, spread_classes
from sampling.generate import SamplingOptions, describe
from sampling.latents import balanced_labels, latents
from sampling.sheets import few, render
from torch_utils import checkpoints, distributed
from torch_utils.images import FORMATS, save_image, to_float
from torch_utils.mixed_precision import PrecisionOptions

MOST = 50  # rows and columns of a picture
CPU_BATCH = 16  # images a pass of the feature network, unless asked for: far less memory than 64
FARTHEST = 1000  # that a walk goes
MEMORISATION, SUSPICIOUS = "memorisation", 12  # the part that needs the data; rows of its sheet
OF_MEMORISATION = ("dataset", "data_root", "held_out", "num_compared", "num_train")  # flags of nothing else
OF_RUN = ("dataset", "data_root", "crop_size", "feature_network", "inception_weights", "resize")


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
        "--only",
        nargs="+",
        choices=(*PARTS, MEMORISATION),
        metavar="PART",
        help=f"of {', '.join(PARTS)} and {MEMORISATION}; None: all there is but the last, which needs the data",
    )
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="classes of the samples, by number or name")
    group.add_argument("--num_samples", type=utils.positive_int, default=4, help="samples, the rows of a picture")
    group.add_argument("--points", nargs="+", metavar="X,Y", help="attention: points of the image, in pixels from 0")
    group.add_argument("--num_points", type=utils.positive_int, default=5, help="without --points: so many, spread")
    group.add_argument("--channels", type=utils.positive_int, default=3, help="ssm: channels that vary most")
    group.add_argument("--directions", type=utils.positive_int, default=5, help="directions: how many")
    group.add_argument("--steps", type=utils.positive_int, default=7, help="directions: images of a walk")
    group.add_argument("--reach", type=float, default=4.0, help="directions: how far a walk goes to either side")
    group = parser.add_argument_group("memorisation (flags not given: those of the run's training)")
    group.add_argument("--dataset", help="the training data, by name or file")
    group.add_argument("--data_root", default="data", help="folder of the data sets")
    group.add_argument("--held_out", metavar="DATASET", help="images that were not trained on, for the same number")
    group.add_argument("--num_compared", type=utils.positive_int, default=1000, help="samples that are compared")
    group.add_argument(
        "--num_train", type=utils.positive_int, default=50_000, help="training images at most, evenly chosen"
    )
    FeatureOptions.add_to(group)
    PrecisionOptions.add_to(parser, only=("amp", "tf32"))
    BatchNormMode.add_to(parser, bn_mode=None)
    group = parser.add_argument_group("output")
    group.add_argument("--out", help="folder to write to; None: samples/explain in the checkpoint's run folder")
    group.add_argument("--format", choices=FORMATS, default="png", help="of the pictures; both hold exact pixels")
    defaults, given = parser.parse_layers(argv)
    return argparse.Namespace(**defaults | given, given=given)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = SamplingOptions.of(args)
    check_numbers(args)
    device = distributed.resolve_device(options.device)
    G, meta = BigGAN.load_generator(args.checkpoint, device, options.ema)
    PrecisionOptions.of(args).apply(G)
    D = discriminator_of(meta["path"], device) if "attention" in (args.only or PARTS) else None
    parts = chosen_parts(args, G, D)
    points = chosen_points(args, G.config.resolution)
    names = meta.get("class_names") or [str(c) for c in range(G.config.n_classes)]
    classes = class_ids(args.classes, names) if args.classes else spread_classes(G.config.n_classes)
    if "directions" in parts:
        directions.check_number(G, args.directions)
    memory = open_memory(args, meta, device) if MEMORISATION in (args.only or ()) else None
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
        if memory:
            images = GeneratedImages(G, args.num_compared, options.seed, mode, truncation)
            sheet, lines = memory.compare(images)
            path = out / f"{MEMORISATION}.{args.format}"
            save_image(sheet, path)
            print("\n".join([*lines, f"wrote {utils.printable(str(path))} (the most suspicious samples first)"]))


def check_numbers(args: argparse.Namespace) -> None:
    """Raises: utils.UserError for what no picture can show, or would be of no use."""
    if not 0 < args.reach <= FARTHEST:
        raise utils.UserError(f"--reach {args.reach:g}: must be above 0, and at most {FARTHEST}; z has a spread of 1")
    unused = [name for name in OF_MEMORISATION if name in args.given]
    if unused and MEMORISATION not in (args.only or ()):
        raise utils.UserError(f"--{unused[0]}: is of memorisation, which is drawn with --only {MEMORISATION}")
    for name in ("num_samples", "num_points", "channels", "directions", "steps"):
        if getattr(args, name) > MOST:
            text = f"at most {MOST}, each is a row or column of a picture"
            raise utils.UserError(f"--{name} {getattr(args, name)}: {text}")


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
    return [part for part in args.only or PARTS if part not in lacking and part in PARTS]


def chosen_points(args: argparse.Namespace, resolution: int) -> list[tuple[int, int]]:
    """Raises: utils.UserError for a point outside of the image."""
    if args.points:
        return attention.parse_points(args.points, resolution)
    return attention.spread_points(args.num_points, resolution)


# ---------------------------------------------------------------------------------------------------------------------
# Memorisation


class Memory(NamedTuple):
    """The training images, those held out or None, the feature network, and how many of each are compared."""

    train: ImageSet
    held_out: ImageSet | None
    network: FeatureNetwork
    num_train: int
    batch_size: int
    device: torch.device

    def features(self, images: ImageSet, most: int, at_a_time: int | None = None) -> tuple[np.ndarray, Tensor]:
        """Which images, evenly chosen, and their features (n,d), of `at_a_time` images or batch_size if None."""
        chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64))
        ranks = distributed.Ranks(0, 1, self.device)
        batch_size = at_a_time or self.batch_size
        return chosen, features_of(self.network, images, chosen, ranks, batch_size, "features")[0]

    def compare(self, samples: GeneratedImages) -> tuple[Image.Image, list[str]]:
        """The sheet of the most suspicious samples, and lines on all of them."""
        chosen, train = self.features(self.train, self.num_train)
        _, points = self.features(samples, len(samples), min(self.batch_size, few(samples.G)))
        found = memorisation.authenticity(points, train)
        worst = found.ratio.argsort(stable=True)[:SUSPICIOUS].cpu().numpy()
        near = np.stack([self.train.read(chosen[found.near.index[i].cpu().numpy()]).numpy() for i in worst])
        own = np.concatenate([samples.read(np.array([i])).numpy() for i in worst])
        sheet = memorisation.suspicion_sheet(torch.from_numpy(own), torch.from_numpy(near), found, worst.tolist())
        about = f"nearest of {len(train):,} training images by {self.network.name}"
        lines = [f"AuthPct {found.percent:.1f} of {len(points):,} samples ({about})"]
        if self.held_out:
            _, held_out = self.features(self.held_out, len(samples))
            percent = memorisation.authenticity(held_out, train).percent
            lines.append(f"AuthPct {percent:.1f} of {len(held_out):,} real images of {self.held_out.path}, held out")
        return sheet, lines


def open_memory(args: argparse.Namespace, meta: dict, device: torch.device) -> Memory:
    """Raises: utils.UserError where data or network are missing, or do not fit."""
    of_run = meta.get("args") or {}
    values = {**vars(args), **{name: value for name, value in of_run.items() if name in OF_RUN}, **args.given}
    if not values["dataset"]:
        raise utils.UserError(f"--only {MEMORISATION}: {args.checkpoint} names no data; name its --dataset")
    data = DataOptions.of(values)
    train = data.reference_part(data.open())
    held_out = open_dataset(args.held_out, values["data_root"]) if args.held_out else None
    for images in (train, held_out):
        if images and images.resolution != meta["model_config"]["resolution"]:
            size = f"{meta['model_config']['resolution']}x{meta['model_config']['resolution']}"
            raise utils.UserError(f"{images.path}: its images are not {size}, as those of {args.checkpoint}")
    if min(len(train), args.num_train) < 2:
        raise utils.UserError(f"--only {MEMORISATION}: needs at least 2 training images")
    options = FeatureOptions.of(values)
    network = options.load_network(values["data_root"], data.reference_name, device)
    usual = "metric_batch_size" not in args.given and device.type == "cpu"
    batch_size = min(CPU_BATCH, options.metric_batch_size) if usual else options.metric_batch_size
    return Memory(train, held_out, network, args.num_train, batch_size, device)


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
        size = f"{stage.side}x{stage.side}"
        sheet = modulation.channels_sheet(samples.images, stage, samples.names, args.channels)
        yield f"ssm_{size}", sheet, f"the channels of the {size} stage that vary most"


def draw_identity(G, samples, args, points, D):
    without = modulation.without_stages(G, samples.z, samples.y)
    sides = [G.config.stage_resolutions("G")[i] for i in G.ssm.modulating]
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
