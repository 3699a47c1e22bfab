"""The metrics of a checkpoint: the same as during training, with the protocol behind them.

    python evaluate.py runs/quickstart
    python evaluate.py runs/quickstart --truncation 0.7 --json
    torchrun --nproc_per_node 8 evaluate.py ...

Needs the checkpoint and the reference statistics of its data set, but not the data set itself.
"""

import contextlib
import json
import math
import sys

import torch
from tqdm import tqdm

import BigGAN
import datasets
import inception_utils
import sample
import utils

# Flags here that mean something else in train.py, or belong to the machine: not taken over from the run.
NOT_FROM_RUN = ("ema", "device")


@contextlib.contextmanager
def evaluating(module):
    """Within the block the module and its parts are in eval mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def evaluate_generator(
    G, network, reference, num_images, batch_size, seed, device, truncation=None, rank=0, world_size=1, *, ema
):
    """Metrics of images 0 to num_images - 1 of a seed, whose classes take turns, with running BN statistics.

    Every rank makes a contiguous part of the images; rank 0 gets all features, in the images' order, so that the
    metrics do not depend on the number of ranks. Touches neither torch's random state nor G's mode.

    Args: network: FeatureNetwork on `device`, as G is; reference: its Reference; batch_size: images at a time on a
        rank; truncation: see `sample.latents`; ema: whether G is a moving average, for the protocol.
    Returns: dict of floats (see `inception_utils.compute_metrics`) and `protocol`, a dict; the same on all ranks.
    Raises: utils.UserError where the GPU's memory, or the number of images, is too small.
    """
    y = sample.balanced_labels(num_images, range(G.config.n_classes))
    with evaluating(G):
        rows = _features_of_part(G, network, y, batch_size, seed, device, truncation, rank, world_size)
    features, logits = (_gather(part, rank, world_size) for part in rows)
    metrics = None
    if rank == 0:
        # A feature network of other classes than G's (an unconditional G, say) cannot tell whether they are right.
        labels = y if network.num_classes == G.config.n_classes else None
        whole = features[:num_images], logits[:num_images]
        metrics = inception_utils.compute_metrics(*whole, labels, network, reference)
        metrics["protocol"] = inception_utils.protocol(
            network,
            reference,
            num_fake=num_images,
            ema=ema,
            bn_mode="running",
            truncation=truncation and truncation.limit,
            truncation_kind=truncation and truncation.kind,
            seed=seed,
        )
    return _broadcast(metrics, device, world_size)


def _features_of_part(G, network, y, batch_size, seed, device, truncation, rank, world_size):
    """Features (n,d) and logits (n,K) of this rank's images; n is the same on all ranks, rows past the end are 0."""
    n = math.ceil(len(y) / world_size)
    start = min(rank * n, len(y))
    y = y[start : start + n]
    features = torch.zeros(n, network.feature_dim, device=device)
    logits = torch.zeros(n, network.num_classes, device=device)
    done = 0
    disable = True if rank else None  # None: shown on terminals only
    with tqdm(total=len(y), desc="evaluating", unit="image", leave=False, disable=disable) as bar:
        for images in sample.generate(G, y, seed, batch_size, truncation, start, device):
            part = slice(done, done + len(images))
            features[part], logits[part] = network(images.to(device))
            done += len(images)
            bar.update(len(images))
    return features, logits


def _gather(rows, rank, world_size):
    """Rows (n,...) of all ranks in the ranks' order, (world_size * n,...), on rank 0; None on the others."""
    if world_size == 1:
        return rows
    whole = rows.new_empty(world_size * len(rows), *rows.shape[1:]) if rank == 0 else None
    torch.distributed.gather(rows, list(whole.chunk(world_size)) if rank == 0 else None)
    return whole


def _broadcast(value, device, world_size):
    """Rank 0's small picklable value, on all ranks."""
    if world_size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device(device))
    return box[0]


# ---------------------------------------------------------------------------------------------------------------------
# The script


def parse_args(argv=None, run_args=None):
    """Parsed flags. `run_args`: the training flags of the checkpoint, which are the defaults of those of that name."""
    parser = utils.ArgumentParser(
        "Print the metrics of a checkpoint. Data set, data_root, seed and the flags of the group 'metrics' "
        "are by default those that the checkpoint was trained with.",
        "CHECKPOINT",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file, or a run folder: its best checkpoint")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="name of the data set whose reference statistics to compare with")
    data.add_argument("--data_root", default="data", help="folder of the reference statistics")
    data.add_argument("--crop_size", type=utils.positive_int, default=None, help="that of the reference statistics")
    inception_utils.add_metric_args(parser)
    sample.add_sampling_args(parser)
    flags = vars(parser.parse_args(argv))
    known = {name: value for name, value in (run_args or {}).items() if name in flags and name not in NOT_FROM_RUN}
    parser.set_defaults(**known)
    return parser.parse_args(argv)


def main(argv=None):
    given = parse_args(argv)  # also finds wrong flags before anything is loaded
    quiet = contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext()
    with quiet, utils.process_group(given.device) as ranks:
        G, meta = BigGAN.load_generator(given.checkpoint, ranks.device, given.ema)
        args = parse_args(argv, meta.get("args"))
        if args.dataset is None:
            raise utils.UserError(f"{args.checkpoint} does not say what it was trained on: name a --dataset")
        name = datasets.reference_name(args.dataset, args.data_root, args.crop_size)
        network, reference = inception_utils.load_evaluation(args, name, ranks.device)
        if ranks.is_main:
            print(sample.describe(G, meta, ranks.device))
        metrics = evaluate_generator(
            G,
            network,
            reference,
            args.num_inception_images,
            args.metric_batch_size,
            args.seed,
            ranks.device,
            sample.chosen_truncation(args, meta),
            ranks.rank,
            ranks.world_size,
            ema=meta["ema"],
        )
    if ranks.is_main:
        about = {"checkpoint": meta["path"], "step": meta["step"]}
        print(json.dumps(about | metrics, indent=1) if args.json else table(metrics))


def table(metrics):
    """Metrics and protocol as aligned lines of text."""
    numbers = {name: f"{value:.4f}" for name, value in metrics.items() if name != "protocol"}
    protocol = {name: "-" if value is None else str(value) for name, value in metrics["protocol"].items()}
    width = max(map(len, [*numbers, *protocol]))
    number_width = max(map(len, numbers.values()))
    lines = [f"{name:<{width}}  {text:>{number_width}}" for name, text in numbers.items()]
    return "\n".join([*lines, "", *(f"{name:<{width}}  {text}" for name, text in protocol.items())])


if __name__ == "__main__":
    utils.run_main(main)
