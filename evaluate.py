"""Metrics of a checkpoint, of a folder of images, an npz or an HDF5 file: numbers with the protocol behind them.

    python evaluate.py runs/quickstart                                   as during training
    python evaluate.py runs/quickstart --truncation_sweep 0.2 1.0 0.1    a table and a plot against truncation
    python evaluate.py samples.npz --dataset I128                        images made elsewhere
    python evaluate.py folder_a folder_b                                 one against the other as reference
    python evaluate.py --compare first.json second.json                  results of --json side by side
    torchrun --nproc_per_node 8 evaluate.py ...

Needs the reference statistics of a data set, but not the data set itself, unless --intra_fid is asked for.
"""

import contextlib
import json
import sys
from pathlib import Path

import batch_norm_modes
import BigGAN
import calculate_inception_moments
import datasets
import evaluation_features
import evaluation_sources
import inception_utils
import metric_tables
import reference_statistics
import sample
import truncation_sweep
import utils
from feature_networks import load_feature_network
from latents import Truncation

# Flags here that mean something else in train.py, or belong to the machine: not taken over from the run.
NOT_FROM_RUN = ("ema", "device")


def evaluate_generator(
    G,
    network,
    reference,
    num_images,
    batch_size,
    seed,
    ranks,
    truncation=None,
    *,
    ema,
    mode=batch_norm_modes.RUNNING,
    real_images=None,
):
    """Metrics of images 0 to num_images - 1 of a seed, whose classes take turns.

    They depend neither on the number of ranks nor on the batch size. G, and torch's random state, stay as they are.

    Args: network: FeatureNetwork on `ranks.device`, as G is; reference: its Reference; batch_size: images at a time on
        a rank; truncation: a Truncation or None; ema: whether G is a moving average, for the protocol; mode:
        BatchNormMode; real_images: for intra-class distances too, labelled images of G's classes.
    Returns: dict of floats (see `inception_utils.compute_metrics`) and `protocol`, a dict; the same on all ranks. With
        `real_images` also what `evaluation_features.intra_class` gives.
    Raises: utils.UserError where the GPU's memory, or the number of images, is too small.
    """
    with batch_norm_modes.prepared(G, mode, seed, truncation) as prepared:
        if mode.name == "standing":
            utils.broadcast_buffers([prepared], ranks)  # every GPU rounds in its own way
        images = evaluation_sources.GeneratedImages(prepared, num_images, seed, mode, truncation, ranks.device)
        about = {"ema": ema, "seed": seed}
        about |= {"truncation": truncation and truncation.limit, "truncation_kind": truncation and truncation.kind}
        # A feature network of other classes than G's (an unconditional G, say) cannot tell whether they are right.
        labelled = network.num_classes == G.config.n_classes
        metrics = evaluation_features.measure(
            images, range(num_images), network, reference, batch_size, ranks, labelled, real_images, seed=seed
        )
    order = "classes in turns, shuffled" if mode.block_size else "classes in turns"
    return _with_protocol(metrics, network, reference, num_images, ranks, mode.protocol() | {"order": order}, **about)


def evaluate_images(images, network, reference, num_images, batch_size, seed, ranks, real_images=None):
    """Metrics of images that are there already (see evaluation_sources): as `evaluate_generator`.

    Files are often sorted by class: which images are taken, where num_images are fewer than all, and their order, which
    the splits of the Inception score follow, are drawn from the seed.
    """
    chosen = utils.rng(seed, "metric", 20).permutation(len(images))[:num_images]
    labelled = images.labels is not None and images.labels.max() < network.num_classes
    metrics = evaluation_features.measure(
        images, chosen, network, reference, batch_size, ranks, labelled, real_images, seed=seed
    )
    about = {"ema": None, "seed": seed, "truncation": None, "truncation_kind": None}
    return _with_protocol(
        metrics, network, reference, num_images, ranks, {"bn_mode": None, "order": "shuffled"}, **about
    )


def _with_protocol(metrics, network, reference, num_images, ranks, further, *, ema, seed, truncation, truncation_kind):
    """Metrics, known on rank 0, and their protocol, on all ranks."""
    if ranks.is_main:
        protocol = inception_utils.protocol(
            network,
            reference,
            num_fake=num_images,
            ema=ema,
            bn_mode=further["bn_mode"],
            truncation=truncation,
            truncation_kind=truncation_kind,
            seed=seed,
        )
        metrics = metrics | {"protocol": protocol | further}
    return evaluation_features.broadcast(metrics, ranks)


# ---------------------------------------------------------------------------------------------------------------------
# The script


def parse_args(argv=None, defaults=None):
    """Parsed flags. `defaults`: of flags by name, such as the training flags of a checkpoint."""
    parser = utils.ArgumentParser(
        "Metrics of a checkpoint or of images in files. Of a checkpoint, data set, data_root, seed and the flags of "
        "metrics and batch norm are by default those that it was trained with. --num_inception_images is by default "
        "50000 of a checkpoint, and all images of files.",
        "SOURCE [REFERENCE]",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a .pth file, a run folder (its best checkpoint), a folder of images, an npz with arr_0, or an HDF5 file; "
        "a second one, or an npz of statistics, is what to compare with instead of a data set's statistics",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    output.add_argument(
        "--compare",
        nargs="+",
        default=(),
        metavar="FILE",
        help="results of --json to show side by side (with SOURCE's own, if any), with a warning for each difference "
        "that makes numbers incomparable",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="name of the data set whose reference statistics to compare with")
    data.add_argument("--data_root", default="data", help="folder of the reference statistics")
    inception_utils.add_metric_args(parser).add_argument(
        "--intra_fid",
        action="store_true",
        help="also the mean Frechet distance within each class; reads the data set itself, or the second SOURCE",
    )
    truncation_sweep.add_sweep_args(parser)
    sample.add_sampling_args(parser)
    batch_norm_modes.add_bn_args(parser)
    parser.set_defaults(num_inception_images=None)
    flags = vars(parser.parse_intermixed_args(argv))
    parser.set_defaults(**{k: v for k, v in (defaults or {}).items() if k in flags and k not in NOT_FROM_RUN})
    args = parser.parse_intermixed_args(argv)
    if len(args.sources) > 2 or not (args.sources or args.compare):
        parser.error(f"one or two SOURCEs, not {len(args.sources)}")
    return args


def main(argv=None):
    given = parse_args(argv)  # also finds wrong flags before anything is loaded
    others = [metric_tables.read_results(file) for file in given.compare]
    result = None
    if given.sources:
        quiet = contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext()
        with quiet, utils.process_group(given.device) as ranks:
            result = _evaluate(argv, given, ranks)
        if not ranks.is_main:
            return
    print_results(result, others, given.json)


def print_results(result, others, as_json):
    """Print the result of this command, a dict or None, beside those of other files (metric_tables.read_results)."""
    named = metric_tables.named_results("this", result) if result else []
    groups = [named, *others] if named else others
    for line in metric_tables.differences([group[0] for group in groups]):
        print(f"warning: {line}", file=sys.stderr)
    rows = [row for group in groups for row in group]
    if as_json:
        print(json.dumps(result or dict(rows), indent=1))
    elif others:
        print(metric_tables.rows_table(rows))
    elif "truncation_sweep" in result:
        print(metric_tables.rows_table(named, "truncation"))
        print(f"wrote {result['plot']} and {Path(result['plot']).with_suffix('.json')}")
    else:
        print(metric_tables.table({key: value for key, value in result.items() if key not in ABOUT}))


ABOUT = ("checkpoint", "step", "images")


def _evaluate(argv, given, ranks):
    """The result of the command, a dict for --json."""
    source, *second = given.sources
    kind = evaluation_sources.kind_of(source)
    second_kind = evaluation_sources.kind_of(second[0]) if second else None
    if kind == "statistics":
        raise utils.UserError(f"{source} holds statistics, no images: only the second SOURCE can be such a file")
    if kind != "checkpoint":
        if given.truncation_sweep:
            raise utils.UserError(f"--truncation_sweep: {source} is no checkpoint, its images are made already")
        return _evaluate_files(argv, source, kind, second, second_kind, ranks)
    G, meta = BigGAN.load_generator(source, ranks.device, given.ema)
    args = parse_args(argv, {"num_inception_images": 50_000} | meta.get("args", {}))
    measure = _load_measure(args, G.config.resolution, source, second, second_kind, ranks)
    if ranks.is_main:
        print(sample.describe(G, meta, ranks.device))
    options = {"ema": meta["ema"], "mode": batch_norm_modes.chosen_mode(args), "real_images": measure[2]}
    numbers = (*measure[:2], args.num_inception_images, args.metric_batch_size, args.seed, ranks)
    about = {"checkpoint": meta["path"], "step": meta["step"]}
    truncation = sample.chosen_truncation(args, meta)
    if args.truncation_sweep:
        kind = args.truncation_kind or meta.get("convention", {}).get("truncation_kind", "truncated_normal")
        out = Path(args.out) if args.out else sample.default_out(Path(meta["path"]))
        path = out / f"truncation_sweep_{Path(meta['path']).stem}.png"
        points = (
            evaluate_generator(G, *numbers, Truncation(limit, kind), **options)
            for limit in truncation_sweep.limits(*args.truncation_sweep)
        )
        return truncation_sweep.run(points, about, path, ranks)
    metrics = evaluate_generator(G, *numbers, truncation, **options)
    trained = (meta.get("metrics") or {}).get("protocol")
    if trained and ranks.is_main:
        for line in metric_tables.incomparable(trained, metrics["protocol"]):
            print(f"warning: not comparable with the evaluations of training: {line}", file=sys.stderr)
    return about | metrics


def _evaluate_files(argv, source, kind, second, second_kind, ranks):
    images = evaluation_sources.open_images(source, kind)
    args = parse_args(argv, {"num_inception_images": len(images)})
    if args.num_inception_images > len(images):
        raise utils.UserError(f"--num_inception_images {args.num_inception_images}: {source} has {len(images)} images")
    network, reference, real_images = _load_measure(args, images.resolution, source, second, second_kind, ranks)
    if args.intra_fid and images.labels is None:
        raise utils.UserError(f"--intra_fid: {source} does not say which class an image is of")
    if ranks.is_main:
        print(f"{source}: {args.num_inception_images} of {len(images)} images, on {ranks.device}")
    numbers = (args.num_inception_images, args.metric_batch_size, args.seed, ranks)
    return {"images": str(source)} | evaluate_images(images, network, reference, *numbers, real_images)


def _load_measure(args, resolution, source, second, second_kind, ranks):
    """The feature network, the Reference and, for --intra_fid, labelled real images (else None)."""
    name = datasets.dataset_path(args.dataset, args.data_root).stem if args.dataset else None
    if name is None and (not second or args.feature_network == "classifier"):
        raise utils.UserError(f"{source} does not say which data set to compare with: name a --dataset")
    real_images = None
    if not second:
        network, reference = inception_utils.load_evaluation(args, name, ranks.device)
    else:
        weights = (args.inception_weights, args.resize)
        network = load_feature_network(args.feature_network, args.data_root, name, *weights, ranks.device)
    _check_resolution(network, resolution, source)
    if second_kind == "statistics":
        reference = reference_statistics.load_reference(second[0], network)
    elif second:
        reference, real_images = _reference_of(args, second[0], second_kind, network, ranks)
    if not args.intra_fid:
        return network, reference, None
    if real_images is None:
        if not args.dataset or second_kind == "checkpoint":
            raise utils.UserError("--intra_fid needs the real images of each class: name a --dataset")
        real_images = datasets.open_dataset(args.dataset, args.data_root)
    return network, reference, real_images


def _reference_of(args, source, kind, network, ranks):
    """Reference made of the images of the second SOURCE, and these images."""
    options = {"seed": args.seed, "k": 5, "splits": 10, "batch_size": args.metric_batch_size, "device": ranks.device}
    if kind != "checkpoint":
        images = evaluation_sources.open_images(source, kind)
        _check_resolution(network, images.resolution, source)
        return calculate_inception_moments.compute_reference(images, network, **options), images
    G, meta = BigGAN.load_generator(source, ranks.device, args.ema)
    _check_resolution(network, G.config.resolution, source)
    # Another seed than the first SOURCE's: images of the same z would be pairs.
    seed, mode, truncation = args.seed + 1, batch_norm_modes.chosen_mode(args), sample.chosen_truncation(args, meta)
    with batch_norm_modes.prepared(G, mode, seed, truncation) as G:
        images = evaluation_sources.GeneratedImages(
            G, args.num_inception_images, seed, mode, truncation, ranks.device, meta["path"]
        )
        return calculate_inception_moments.compute_reference(images, network, **options), None


def _check_resolution(network, resolution, source):
    if network.resolution not in (None, resolution):
        size = f"{network.resolution}x{network.resolution}"
        raise utils.UserError(f"{source}: the {network.name} takes images of {size}, these are not of that size")


if __name__ == "__main__":
    utils.run_main(main)
