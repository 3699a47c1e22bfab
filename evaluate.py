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

import BigGAN
import calculate_inception_moments
import inception_utils
import sample
import utils
from image_datasets import loading
from metrics import tables, truncation_sweep
from metrics.features import broadcast, compute, make_measure
from metrics.images import GeneratedImages, kind_of, open_images
from metrics.networks import load_feature_network
from metrics.reference import load_reference
from sampling import batch_norm
from sampling.latents import Truncation

# Flags here that mean something else in train.py, or belong to the machine: not taken over from the run.
NOT_FROM_RUN = ("ema", "device")
OF_THE_DATASET = ("crop_size", "reference_file", "reference_num")  # nor these, where another --dataset is named
OF_THE_NETWORK = ("inception_weights", "resize", "reference_file")  # nor these, where another --feature_network is
SPLITS, K = 10, 5  # of IS and PRDC where no reference statistics say otherwise
ABOUT = ("checkpoint", "step", "images")  # what a result says besides its metrics


def evaluate_generator(G, measure, num_images, seed, truncation=None, *, ema, mode=batch_norm.RUNNING):
    """Metrics of images 0 to num_images - 1 of a seed, whose classes take turns.

    They depend neither on the number of ranks nor on the batch size. G, and torch's random state, stay as they are.

    Args: G: on `measure.ranks.device`; measure: metrics.features.Measure; truncation: a Truncation or None; ema:
        whether G is a moving average, for the protocol; mode: BatchNormMode.
    Returns: dict of floats (see `inception_utils.compute_metrics`, `metrics.features.intra_class`) and `protocol`,
        a dict; the same on all ranks.
    Raises: utils.UserError where the GPU's memory, or the number of images, is too small.
    """
    with batch_norm.prepared(G, mode, seed, truncation) as prepared:
        if mode.name == "standing":
            utils.broadcast_buffers([prepared], measure.ranks)  # every GPU rounds in its own way
        images = GeneratedImages(prepared, num_images, seed, mode, truncation)
        # A feature network of other classes than G's (an unconditional G, say) cannot tell whether they are right.
        labelled = measure.network.num_classes == G.config.n_classes
        metrics = compute(measure, images, range(num_images), labelled, seed)
    order = "classes in turns, shuffled" if mode.block_size else "classes in turns"
    return _with_protocol(metrics, measure, num_images, seed, mode.protocol() | {"order": order}, ema, truncation)


def evaluate_images(images, measure, num_images, seed):
    """Metrics of images that are there already (see evaluation_sources): as `evaluate_generator`.

    Files are often sorted by class: which images are taken, where num_images are fewer than all, and their order, which
    the splits of the Inception score follow, are drawn from the seed.
    """
    chosen = utils.rng(seed, "metric", 20).permutation(len(images))[:num_images]
    labelled = images.labels is not None and images.labels.max() < measure.network.num_classes
    metrics = compute(measure, images, chosen, labelled, seed)
    return _with_protocol(metrics, measure, num_images, seed, {"bn_mode": None, "order": "shuffled"})


def _with_protocol(metrics, measure, num_images, seed, further, ema=None, truncation=None):
    """Metrics, known on rank 0, and their protocol, joined by `further`, on all ranks."""
    if measure.ranks.is_main:
        protocol = inception_utils.protocol(
            measure.network,
            measure.reference,
            num_fake=num_images,
            ema=ema,
            bn_mode=further["bn_mode"],
            truncation=truncation and truncation.limit,
            truncation_kind=truncation and truncation.kind,
            seed=seed,
            **measure.options,
        )
        metrics = metrics | {"protocol": protocol | further}
    return broadcast(metrics, measure.ranks)


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
    loading.add_crop_arg(data)
    inception_utils.add_metric_args(parser).add_argument(
        "--intra_fid",
        action="store_true",
        help="also the mean Frechet distance within each class; reads the data set itself, or the second SOURCE",
    )
    truncation_sweep.add_sweep_args(parser)
    sample.add_sampling_args(parser)
    batch_norm.add_bn_args(parser)
    parser.set_defaults(num_inception_images=None)
    flags = vars(parser.parse_intermixed_args(argv))
    parser.set_defaults(**{k: v for k, v in (defaults or {}).items() if k in flags and k not in NOT_FROM_RUN})
    args = parser.parse_intermixed_args(argv)
    if len(args.sources) > 2 or not (args.sources or args.compare):
        parser.error(f"one or two SOURCEs, not {len(args.sources)}")
    return args


def main(argv=None):
    given = parse_args(argv, {"feature_network": None})  # also finds wrong flags before anything is loaded
    others = [tables.read_results(file) for file in given.compare]
    result = None
    if given.sources:
        quiet = contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext()
        with quiet, utils.process_group(given.device) as ranks:
            result = _evaluate(argv, given, ranks)
        if not ranks.is_main:
            return
    print_results(result, others, given.json)


def print_results(result, others, as_json):
    """Print the result of this command, a dict or None, beside those of other files (tables.read_results)."""
    named = tables.named_results("this", result) if result else []
    groups = [named, *others] if named else others
    for line in tables.differences([group[0] for group in groups]):
        print(f"warning: {line}", file=sys.stderr)
    rows = [row for group in groups for row in group]
    if as_json:
        print(json.dumps(result or dict(rows), indent=1))
    elif others:
        print(tables.rows_table(rows))
    elif "truncation_sweep" in result:
        print(tables.rows_table(named, "truncation"))
        print(f"wrote {result['plot']} and {Path(result['plot']).with_suffix('.json')}")
    else:
        print(tables.table({key: value for key, value in result.items() if key not in ABOUT}))


def _evaluate(argv, given, ranks):
    """The result of the command, a dict for --json."""
    source, *second = given.sources
    kind = kind_of(source)
    second_kind = kind_of(second[0]) if second else None
    if kind == "statistics":
        raise utils.UserError(f"{source} holds statistics, no images: only the second SOURCE can be such a file")
    for flag in ("reference_file", "reference_num"):
        if second and getattr(given, flag):
            raise utils.UserError(f"--{flag}: {second[0]} is what to compare with; leave one of them out")
    if kind != "checkpoint":
        if given.truncation_sweep:
            raise utils.UserError(f"--truncation_sweep: {source} is no checkpoint, its images are made already")
        if second_kind != "checkpoint" and given.truncation:
            raise utils.UserError(f"--truncation: {source} is no checkpoint, its images are made already")
        return _evaluate_files(argv, source, kind, second, second_kind, ranks)
    limits = truncation_sweep.limits(*given.truncation_sweep) if given.truncation_sweep else []
    G, meta = BigGAN.load_generator(source, ranks.device, given.ema)
    args = parse_args(argv, {"num_inception_images": 50_000} | _flags_of_run(meta.get("args", {}), given))
    measure = _load_measure(args, G.config.resolution, source, second, second_kind, ranks)
    if ranks.is_main:
        print(sample.describe(G, meta, ranks.device))
    common = (G, measure, args.num_inception_images, args.seed)
    options = {"ema": meta["ema"], "mode": batch_norm.chosen_mode(args)}
    about = {"checkpoint": meta["path"], "step": meta["step"]}
    if limits:
        out = Path(args.out) if args.out else sample.default_out(Path(meta["path"]))
        path = out / f"truncation_sweep_{Path(meta['path']).stem}.png"
        kind = sample.chosen_truncation_kind(args, meta)
        points = (evaluate_generator(*common, Truncation(limit, kind), **options) for limit in limits)
        return truncation_sweep.run(points, about, path, ranks)
    metrics = evaluate_generator(*common, sample.chosen_truncation(args, meta), **options)
    trained = (meta.get("metrics") or {}).get("protocol")
    if trained and ranks.is_main:
        for line in tables.incomparable(trained, metrics["protocol"]):
            print(f"warning: not comparable with the evaluations of training: {line}", file=sys.stderr)
    return about | metrics


def _flags_of_run(trained, given):
    """The flags of training, a dict, but those of a data set or a feature network that another one is named for."""
    dropped = ()
    for flag, others in (("dataset", OF_THE_DATASET), ("feature_network", OF_THE_NETWORK)):
        if getattr(given, flag) not in (None, trained.get(flag)):
            dropped += others
    return {name: value for name, value in trained.items() if name not in dropped}


def _evaluate_files(argv, source, kind, second, second_kind, ranks):
    images = open_images(source, kind)
    args = parse_args(argv, {"num_inception_images": len(images)})
    if args.num_inception_images > len(images):
        raise utils.UserError(f"--num_inception_images {args.num_inception_images}: {source} has {len(images)} images")
    measure = _load_measure(args, images.resolution, source, second, second_kind, ranks)
    if ranks.is_main:
        print(f"{source}: {args.num_inception_images} of {len(images)} images, on {ranks.device}")
    return {"images": str(source)} | evaluate_images(images, measure, args.num_inception_images, args.seed)


def _load_measure(args, resolution, source, second, second_kind, ranks):
    """The Measure of the flags for images of a resolution, against a data set's statistics or the second SOURCE."""
    name = loading.reference_name(args.dataset, args.data_root, args.crop_size) if args.dataset else None
    if name is None and (not second or args.feature_network == "classifier"):
        raise utils.UserError(f"{source} does not say which data set to compare with: name a --dataset")
    if args.intra_fid and not args.dataset and second_kind in (None, "checkpoint", "statistics"):
        raise utils.UserError("--intra_fid needs the real images of each class: name a --dataset")
    real_images = None
    if second_kind in ("folder", "npz", "hdf5"):
        real_images = open_images(second[0], second_kind)
    elif args.intra_fid:
        real_images = loading.open_dataset(args.dataset, args.data_root)
        if args.crop_size:
            real_images = loading.CentreCrop(real_images, args.crop_size)
    if not second:
        network, reference = inception_utils.load_evaluation(args, name, ranks.device)
    else:
        files = (args.data_root, name, args.inception_weights, args.resize)
        network = load_feature_network(args.feature_network, *files, ranks.device)
        inception_utils.check_options(args, network)
        least = max(args.is_splits or SPLITS, (args.prdc_k or K) + 1)
        if args.num_inception_images < least:
            raise utils.UserError(f"{source}: {args.num_inception_images} images; the metrics need at least {least}")
    _check_resolution(network, resolution, source)
    if second_kind == "statistics":
        reference = load_reference(second[0], network)
    elif second_kind == "checkpoint":
        reference = _reference_of_checkpoint(args, second[0], network, ranks)
    elif second:
        _check_resolution(network, real_images.resolution, second[0])
        reference = _reference_of(args, real_images, network, ranks)
    return make_measure(args, network, reference, ranks, real_images if args.intra_fid else None)


def _reference_of(args, images, network, ranks):
    """Reference statistics of some images, made on the spot."""
    return calculate_inception_moments.compute_reference(
        images,
        network,
        seed=args.seed,
        k=args.prdc_k or K,
        splits=args.is_splits or SPLITS,
        batch_size=args.metric_batch_size,
        device=ranks.device,
        is_outputs=args.is_outputs or "all",
        prdc_memory_mb=args.prdc_memory_mb,
        ranks=ranks,
    )


def _reference_of_checkpoint(args, source, network, ranks):
    """Reference statistics of a checkpoint's images, of another seed: images of the same z would be pairs."""
    G, meta = BigGAN.load_generator(source, ranks.device, args.ema)
    _check_resolution(network, G.config.resolution, source)
    seed, mode, truncation = args.seed + 1, batch_norm.chosen_mode(args), sample.chosen_truncation(args, meta)
    with batch_norm.prepared(G, mode, seed, truncation) as prepared:
        about = (seed, mode, truncation, meta["path"], meta["class_names"])
        images = GeneratedImages(prepared, args.num_inception_images, *about)
        return _reference_of(args, images, network, ranks)


def _check_resolution(network, resolution, source):
    if network.resolution not in (None, resolution):
        size = f"{network.resolution}x{network.resolution}"
        raise utils.UserError(f"{source}: the {network.name} takes images of {size}, these are not of that size")


if __name__ == "__main__":
    utils.run_main(main)
