"""Metrics of a checkpoint, of a folder of images, an npz or an HDF5 file: numbers with the protocol behind them.

    python evaluate.py runs/quickstart                                   as during training
    python evaluate.py runs/quickstart --truncation_sweep 0.2 1.0 0.1    a table and a plot against truncation
    python evaluate.py runs/x --ema_sweep 0.05 0.1 0.2                   the same against the moving average's length
    python evaluate.py samples.npz --dataset I128                        images made elsewhere
    python evaluate.py folder_a folder_b                                 one against the other as reference
    python evaluate.py --compare first.json second.json                  results of --json side by side
    torchrun --nproc_per_node 8 evaluate.py ...

Needs the reference statistics of a data set, but not the data set itself, unless --intra_fid is asked for.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import BigGAN
import utils
from image_datasets.loading import DataOptions
from inception_utils import (
    Measure,
    check_content,
    check_number,
    check_options,
    compute_reference,
    evaluate_generator,
    evaluate_images,
    load_evaluation,
    reference_protocol,
)
from metrics import ema_sweep, sweeps, tables, truncation_sweep
from metrics.images import GeneratedImages, Source, class_warning, know_classes
from metrics.protocol import MetricOptions
from metrics.reference import load_reference, with_moments_of_file
from sampling import batch_norm
from sampling.averages import StoredAverages
from sampling.batch_norm import BatchNormMode
from sampling.class_sampling import ClassSampling
from sampling.generate import SamplingOptions, describe
from sampling.latents import Truncation
from torch_utils import checkpoints, distributed, schema
from torch_utils.distributed import on_ranks
from torch_utils.memory import keep_freed_blocks
from torch_utils.mixed_precision import PrecisionOptions

# Flags here that mean something else in train.py, or belong to the machine: not taken over from the run.
NOT_FROM_RUN = ("ema", "device")
OF_THE_DATASET = ("crop_size", "reference_file", "reference_num")  # nor these, where another --dataset is named
OF_THE_NETWORK = ("inception_weights", "resize", "reference_file")  # nor these, where another --feature_network is
SPLITS, K, OUTPUTS = 10, 5, "all"  # of IS and PRDC where no reference statistics say otherwise
# Given on the command line, these make other numbers of the same checkpoint: they are in the name of a sweep's files.
IN_NAME_OF_SWEEP = (
    *("class_sampling", "crop_size", "dataset", "ema", "feature_network", "num_inception_images"),
    *("reference_file", "reference_num", "resize", "seed"),
)
OPTIONS = (DataOptions, MetricOptions, SamplingOptions, ClassSampling, PrecisionOptions, BatchNormMode)
FLAGS = {}  # of a run, with the types that they have here
for kind in OPTIONS:
    FLAGS |= {f"{name.removesuffix('?')}?": part for name, part in schema.of_dataclass(kind).items()}
ABOUT = ("checkpoint", "step", "images")  # what a result says besides its metrics


def make_parser() -> utils.ArgumentParser:
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
        help="a .pth file, a run folder (its best checkpoint), a folder, zip or tar of images, an npz or npy of them, "
        "uint8 (N,R,R,3) or (N,3,R,R), or an HDF5 file; a second one, or an npz of statistics, is what to compare with "
        "instead of a data set's statistics",
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
    DataOptions.add_to(data, only=("crop_size",))
    MetricOptions.add_to(parser, num_inception_images=None).add_argument(
        "--intra_fid",
        action="store_true",
        help="also the mean Frechet distance within each class; reads the data set itself, or the second SOURCE",
    )
    truncation_sweep.add_sweep_args(parser)
    ema_sweep.add_sweep_args(parser)
    SamplingOptions.add_to(parser)
    ClassSampling.add_to(parser)
    PrecisionOptions.add_to(parser, only=("amp", "tf32"))
    BatchNormMode.add_to(parser, bn_mode=None)
    return parser


def parse_args(argv: list[str] | None = None) -> tuple[dict, dict]:
    """Defaults of all flags, and those that are given: two dicts. What a checkpoint says comes between them."""
    parser = make_parser()
    defaults, given = parser.parse_layers(argv)
    if len(given["sources"]) > 2 or not (given["sources"] or given.get("compare")):
        parser.error(f"one or two SOURCEs, not {len(given['sources'])}")
    for options in (MetricOptions, SamplingOptions, BatchNormMode):
        options.of(defaults | given)  # finds wrong values before anything is loaded
    return defaults, given


def main(argv: list[str] | None = None) -> None:
    defaults, given = parse_args(argv)
    args = argparse.Namespace(**defaults | given)
    others = [tables.read_results(file) for file in args.compare]
    result = None
    if args.sources:
        keep_freed_blocks()
        quiet = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
        with quiet, distributed.process_group(args.device) as ranks:
            result = _evaluate(defaults, given, ranks)
        if not ranks.is_main:
            return
    print_results(result, others, args.json)


def print_results(result: dict | None, others: list, as_json: bool) -> None:
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
    elif sweep := tables.sweep_of(result):
        print(tables.rows_table(named, tables.SWEEPS[sweep]))
        if sweep == ema_sweep.KEY:
            print(ema_sweep.verdict(result[sweep]))
        print(f"wrote {result['plot']} and {Path(result['plot']).with_suffix('.json')}")
    else:
        print(tables.table({key: value for key, value in result.items() if key not in ABOUT}))


def _evaluate(defaults, given, ranks):
    """The result of the command, a dict for --json. Args: see `parse_args`."""
    source, *second = map(Source.at, given["sources"])
    second = second[0] if second else None
    if source.kind == "statistics":
        raise utils.UserError(f"{source.path} holds statistics, no images: only the second SOURCE can be such a file")
    for flag in ("reference_file", "reference_num"):
        if second and given.get(flag):
            raise utils.UserError(f"--{flag}: {second.path} is what to compare with; leave one of them out")
    if given.get("ema_out") and "ema_sweep" not in given:
        raise utils.UserError("--ema_out goes with --ema_sweep")
    if "ema_sweep" in given:
        return _sweep_averages(defaults, given, source, second, ranks)
    if source.kind == "checkpoint":
        return _evaluate_checkpoint(defaults, given, source, second, ranks)
    if given.get("truncation_sweep"):
        raise utils.UserError(f"--truncation_sweep: {source.path} is no checkpoint, its images are made already")
    for flag in ("truncation", "class_sampling"):
        if given.get(flag) and not (second and second.kind == "checkpoint"):
            raise utils.UserError(f"--{flag}: {source.path} is no checkpoint, its images are made already")
    return _evaluate_files(defaults, given, source, second, ranks)


def _evaluate_checkpoint(defaults, given, source, second, ranks):
    sweep = given.get("truncation_sweep")
    limits = truncation_sweep.limits(*sweep) if sweep else []
    G, meta = BigGAN.load_generator(source.path, ranks.device, given.get("ema", defaults["ema"]))
    args = _args_of_run(meta, defaults, given, source)
    options = SamplingOptions.of(args)
    PrecisionOptions.of(args).apply(G)
    out = Path(args.out) if args.out else checkpoints.samples_folder(Path(meta["path"]))
    if limits:
        on_ranks(ranks, lambda: utils.check_writable(out))
    measure = _measure_of_checkpoint(args, meta, source, second, ranks)
    if ranks.is_main:
        print(describe(G, meta, ranks.device))
    kind, own, truncation = options.chosen_kind(meta), options.own_truncation(meta), options.chosen_truncation(meta)
    points = [Truncation(limit, kind) for limit in limits]
    # All points of a sweep share a mode: it has to suit them all.
    mode = batch_norm.chosen_mode(vars(args), next((t for t in points if t != own), truncation), own)
    mode.check_fits(G.config, ranks.device)
    common = (G, measure, args.num_inception_images, options.seed)
    how = {"ema": meta["ema"], "mode": mode}
    about = {"checkpoint": meta["path"], "step": meta["step"]}
    if points:
        path = out / _sweep_name(truncation_sweep.KEY, Path(meta["path"]).stem, kind, mode, given)
        metrics = (evaluate_generator(*common, t, **how) for t in points)
        return sweeps.run(metrics, about, path, ranks, truncation_sweep.KEY, truncation_sweep.plot)
    metrics = evaluate_generator(*common, truncation, **how)
    trained = (meta.get("metrics") or {}).get("protocol")
    if trained and ranks.is_main:
        for line in tables.incomparable(trained, metrics["protocol"]):
            print(f"warning: not comparable with the evaluations of training: {line}", file=sys.stderr)
    return about | metrics


def _args_of_run(meta, defaults, given, source):
    """The namespace of all flags, of a checkpoint: those of its training stand for what is not given."""
    of_run = _flags_of_run(meta.get("args", {}), defaults, given)
    if wrong := schema.problem(of_run, FLAGS, "args"):
        raise utils.UserError(f"{source.path}: {wrong}")
    _refuse_unnamed_code(of_run | given, given, source)
    return argparse.Namespace(**defaults | {"num_inception_images": 50_000} | of_run | given)


def _measure_of_checkpoint(args, meta, source, second, ranks):
    """The Measure of a checkpoint's flags, with what its classes are drawn by."""
    config = meta["model_config"]
    measure = _load_measure(args, config["resolution"], source, second, ranks)
    holder = second.path if second else f"the reference statistics of {measure.reference.protocol.dataset}"
    counts = ClassSampling.of(args).counts(measure.reference.class_counts, config["n_classes"], holder)
    return dataclasses.replace(measure, class_counts=counts)


def _sweep_averages(defaults, given, source, second, ranks):
    """The result of --ema_sweep: metrics of averages that are made of a run's stored ones."""
    for flag in ("truncation_sweep", "ema"):
        if flag in given:
            raise utils.UserError(f"--{flag} does not go with --ema_sweep, which makes averages of its own")
    run = source.path.parent if source.path.name in ("weights", "averages") else source.path
    stored = StoredAverages.of_run(run)
    meta = stored.meta
    args = _args_of_run(meta, defaults, given, source)
    options = SamplingOptions.of(args)
    truncation = options.chosen_truncation(meta)
    mode = BatchNormMode.of({**vars(args), "bn_mode": args.bn_mode if "bn_mode" in given else "standing"})
    if mode.bn_mode == "running":
        raise utils.UserError("--bn_mode running: an average made afterwards has no such statistics; leave it out")
    out = Path(args.out) if args.out else run / "samples"
    if args.ema_out and Path(args.ema_out).is_dir():
        raise utils.UserError(f"--ema_out {args.ema_out}: is a folder; name a file")
    for folder in [out, *([Path(args.ema_out).parent] if args.ema_out else [])]:
        on_ranks(ranks, lambda folder=folder: utils.check_writable(folder))
    measure = _measure_of_checkpoint(args, meta, source, second, ranks)
    widths = ema_sweep.chosen_widths(args.ema_sweep)

    def points():
        for width, (G, missing) in zip(widths, stored.solved(widths, ranks.device), strict=True):
            PrecisionOptions.of(args).apply(G)
            how = {"ema": True, "mode": mode, "ema_power": width}
            metrics = evaluate_generator(G, measure, args.num_inception_images, options.seed, truncation, **how)
            yield {"fit_error": missing} | metrics

    if ranks.is_main:
        print(f"{utils.counted(len(stored.paths), 'file')} of averages, the last of step {meta['step']}")
    path = out / _sweep_name(ema_sweep.KEY, stored.paths[-1].stem, truncation and truncation.kind, mode, given)
    about = {"checkpoint": meta["path"], "step": meta["step"]}
    result = sweeps.run(points(), about, path, ranks, ema_sweep.KEY, ema_sweep.plot)
    if args.ema_out:
        best = result[ema_sweep.KEY][ema_sweep.best(result[ema_sweep.KEY])]
        [(G, _)] = stored.solved([best["protocol"]["ema_power"]], ranks.device)
        G = batch_norm.standing_copy(G, mode, options.seed, None, measure.class_counts)
        on_ranks(ranks, lambda: stored.save(G, best, args.ema_out))
    return result


def _sweep_name(sweep, stem, kind, mode, given):
    """The name of a sweep's picture, another for another kind of truncation, mode or flag that changes numbers."""
    parts = [stem, *([kind] if kind else []), *map(str, mode.protocol().values())]
    flags = {name: value for name, value in given.items() if name in IN_NAME_OF_SWEEP}
    parts += [f"{name}-{Path(str(value)).stem}" for name, value in sorted(flags.items())]
    return f"{sweep}_{'_'.join(parts)}.png"


def _flags_of_run(trained, defaults, given):
    """The flags of training, a dict, that stand for flags here which are not given.

    Not those of a data set or a feature network that another one is named for; `running`, the mode of training where
    z is never truncated, is not taken for a choice.
    """
    dropped = NOT_FROM_RUN + (("bn_mode",) if trained.get("bn_mode") == "running" else ())
    for flag, others in (("dataset", OF_THE_DATASET), ("feature_network", OF_THE_NETWORK)):
        if given.get(flag) not in (None, trained.get(flag)):
            dropped += others
    return {name: value for name, value in trained.items() if name in defaults and name not in dropped}


def _refuse_unnamed_code(values, given, source):
    """Raise utils.UserError where a file that is run as code is named by the checkpoint alone."""
    from metrics.inception_tf import is_script  # here, because importing torchvision takes a second

    path = values.get("inception_weights")
    if "inception_weights" not in given and path and Path(path).is_file() and is_script(path):
        raise utils.UserError(
            f"{source.path} takes the feature network from {path}, which brings code that is run: if you trust that "
            f"file, name it with --inception_weights {path}"
        )


def _evaluate_files(defaults, given, source, second, ranks):
    images = source.open()
    args = argparse.Namespace(**defaults | {"num_inception_images": len(images)} | given)
    number = args.num_inception_images
    if number > len(images):
        raise utils.UserError(
            f"--num_inception_images {number}: {source.path} has {utils.counted(len(images), 'image')}"
        )
    measure = _load_measure(args, images.resolution, source, second, ranks)
    know_classes(images, measure.reference.class_names, measure.network.num_classes)
    if ranks.is_main:
        print(f"{source.path}: {number:,} of {utils.counted(len(images), 'image')}, on {ranks.device}")
        if warning := class_warning(images, measure.reference.class_counts):
            print(f"warning: {source.path} {warning}", file=sys.stderr)
    return {"images": str(source.path)} | evaluate_images(images, measure, number, args.seed)


def _load_measure(args, resolution, source, second, ranks):
    """The Measure of the flags for images of a resolution, against a data set's statistics or the second Source."""
    options, data = MetricOptions.of(args), DataOptions.of(args)
    name = data.reference_name if data.dataset else None
    if name is None and (not second or options.feature_network == "classifier"):
        raise utils.UserError(f"{source.path} does not say which data set to compare with: name a --dataset")
    if args.intra_fid and not data.dataset and not (second and second.holds_images):
        raise utils.UserError("--intra_fid needs the real images of each class: name a --dataset")
    real_images = None
    if second and second.holds_images:
        real_images = second.open()
    elif args.intra_fid:
        real_images = data.reference_part(data.open())
    if not second:
        network, reference = load_evaluation(options, data.data_root, name, ranks.device)
    else:
        network = options.load_network(data.data_root, name, ranks.device)
        check_options(options, network)
        check_number(options.resolved(SPLITS, K, OUTPUTS), source.path)
    if data.dataset and data.path.exists():
        measured = (network, None if second else reference)
        check_content(options, data.data_root, data.reference_name, data.open(), measured, ranks)
    _check_resolution(network, resolution, source)
    if second and second.kind == "statistics":
        reference = load_reference(second.path, network)
    elif second and second.kind == "checkpoint":
        reference = _reference_of_checkpoint(args, options, second, network, ranks)
    elif second:
        _check_resolution(network, real_images.resolution, second)
        know_classes(real_images, network.fitted.get("class_names"), network.num_classes)
        reference = _reference_of(args, options, real_images, network, ranks)
        if second.kind == "npz":
            reference = with_moments_of_file(reference, second.path)
    return Measure(network, reference, options, ranks, real_images if args.intra_fid else None)


def _reference_of(args, options, images, network, ranks):
    """Reference statistics of some images, made on the spot."""
    options = dataclasses.replace(options.resolved(SPLITS, K, OUTPUTS), reference_num=None)  # a run's own
    protocol = reference_protocol(images, network, options, args.seed)
    return compute_reference(images, network, protocol, ranks, options.metric_batch_size, options.prdc_memory_mb)


def _reference_of_checkpoint(args, options, source, network, ranks):
    """Reference statistics of a checkpoint's images, of another seed: images of the same z would be pairs."""
    sampling = SamplingOptions.of(args)
    G, meta = BigGAN.load_generator(source.path, ranks.device, sampling.ema)
    PrecisionOptions.of(args).apply(G)
    _check_resolution(network, G.config.resolution, source)
    seed, truncation = sampling.seed + 1, sampling.chosen_truncation(meta)
    mode = batch_norm.chosen_mode(vars(args), truncation, sampling.own_truncation(meta))
    mode.check_fits(G.config, ranks.device)
    counts = ClassSampling.of(args).counts(meta.get("class_counts"), G.config.n_classes, None)
    with batch_norm.prepared(G, mode, seed, truncation, counts) as prepared:
        about = (seed, mode, truncation, meta["path"], meta["class_names"], counts)
        images = GeneratedImages(prepared, options.num_inception_images, *about)
        return _reference_of(args, options, images, network, ranks)


def _check_resolution(network, resolution, source):
    if network.resolution not in (None, resolution):
        size = f"{network.resolution}x{network.resolution}"
        raise utils.UserError(f"{source.path}: the {network.name} takes images of {size}, these are not of that size")


if __name__ == "__main__":
    utils.run_main(main)
