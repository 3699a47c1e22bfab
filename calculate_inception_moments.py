"""Reference statistics of a data set: what generated images are compared with.

    python calculate_inception_moments.py --dataset I128_hdf5
    torchrun --nproc_per_node 8 calculate_inception_moments.py ...
    python calculate_inception_moments.py --dataset whole --merge part1_..._reference.npz part2_..._reference.npz

Goes once over the real images with a feature network and writes one npz under --data_root: mean and covariance for
FID or FD, features of up to 10,000 images for KID, precision, recall, density and coverage, and the Inception score of
the real images. With --feature_network classifier the network itself is first fitted to the data, where it is missing.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch

import utils
from image_datasets import doctor
from image_datasets.image_sets import ImageSet, Subset
from image_datasets.loading import DataOptions
from inception_utils import check_options, compute_reference, real_scores, reference_protocol
from metrics import classifier
from metrics.networks import NETWORK_RESIZE, FeatureOptions
from metrics.protocol import MetricOptions
from metrics.reference import Reference, ReferenceProtocol, export, merge, read_reference, reference_path
from selection.scores import SelectionOptions
from selection.selection import select
from torch_utils import distributed
from torch_utils.distributed import Ranks, on_ranks

SCORES = ("is_splits", "is_outputs", "prdc_k", "prdc_memory_mb")  # options of what real images have


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser(
        "Write the reference statistics of a data set, which generated images are compared with, to one npz under "
        "--data_root. A classifier is first fitted to the data, where it is missing."
    )
    DataOptions.add_to(parser, only=("dataset", "data_root", "load_in_mem", "crop_size"))
    SelectionOptions.add_to(parser)
    features = tuple(field.name for field in FeatureOptions.fields())
    MetricOptions.add_to(parser, only=features + SCORES, is_splits=10, is_outputs="all", prdc_k=5)
    statistics = parser.add_argument_group("statistics")
    statistics.add_argument(
        "--reference_num", type=utils.positive_int, help="measure that many random images, in a file of their own"
    )
    statistics.add_argument(
        "--merge", nargs="+", metavar="FILE", help="join statistics of the parts of --dataset instead of measuring it"
    )
    statistics.add_argument(
        "--export", metavar="FILE.npz", help="also write mu and sigma as pytorch-fid and the reference family read them"
    )
    fitting = parser.add_argument_group("classifier")
    fitting.add_argument("--classifier_epochs", type=utils.positive_int, default=10, help="passes over the images")
    fitting.add_argument(
        "--refit_classifier",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fit it again where there is one; statistics and scores of the old one then cannot be used any more",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=utils.count, default=0, help="of the classifier and of the choice of images")
    run.add_argument(
        "--overwrite", action=argparse.BooleanOptionalAction, default=False, help="compute again what is there already"
    )
    distributed.add_device_arg(run)
    args = parser.parse_args(argv)
    if args.feature_network != "classifier" and args.refit_classifier:
        parser.error("--refit_classifier goes with --feature_network classifier")
    if args.export and Path(args.export).suffix != ".npz":
        parser.error(f"--export {args.export}: the name of an .npz file")
    if args.merge and args.reference_num:
        parser.error("--merge joins all images of its files; it does not go with --reference_num")
    return args


def ensure_classifier(args: argparse.Namespace, dataset: ImageSet, content: str, device: torch.device) -> None:
    """Fit the data set's classifier where it is missing, of other images or to be refitted; print how good it is."""
    path = classifier.classifier_path(args.data_root, dataset.name)
    if not path.exists() or args.refit_classifier or _of_other_images(path, content):
        utils.check_writable(path.parent)
        start = time.perf_counter()
        net, accuracy = classifier.fit_classifier(dataset, seed=args.seed, epochs=args.classifier_epochs, device=device)
        about = {"dataset_name": dataset.name, "seed": args.seed, "epochs": args.classifier_epochs}
        about |= {"content": content, "class_names": dataset.class_names}
        classifier.save_classifier(net, path, accuracy=accuracy, **about)
        print(f"{path}: classifier fitted in {time.perf_counter() - start:.0f} s")
    net, fitted = classifier.load_classifier(path)
    classifier.check_fits(net, dataset, path)
    print(f"{path}: {classifier.quality(fitted['accuracy'], dataset.class_counts)}")
    if warning := classifier.warning(fitted["accuracy"], dataset.class_counts):
        print(f"warning: {path}: {warning}", file=sys.stderr)


def _of_other_images(path, content):
    """Whether the classifier at `path` says that it was fitted to images of another content, which is told."""
    made = classifier.load_classifier(path)[1].get("content")
    if made in (None, content):
        return False
    print(f"fitting again: {path} was fitted to other images (content {made[:8]}, now {content[:8]})")
    return True


def matching_reference(path: Path, protocol: ReferenceProtocol) -> Reference | None:
    """The reference statistics at `path` if they are what would be computed, else None."""
    if not path.exists():
        return None
    try:
        reference = read_reference(path)
    except utils.UserError as error:
        say(f"computing again: {error}")
        return None
    if reference.protocol.content is None:  # a file of before content was recorded
        protocol = dataclasses.replace(protocol, content=None)
    if reference.protocol != protocol:
        made, wanted = reference.protocol.to_dict(), protocol.to_dict()
        changed = [key for key in wanted if made[key] != wanted[key]]
        say(f"computing again: {path} was made with another {', '.join(changed)}")
        return None
    return reference


def say(text: str) -> None:
    if utils.is_main_process():
        print(text)


def report(reference: Reference, path: Path) -> None:
    about, d = reference.protocol, len(reference.mu)
    subset = f" (a random subset, seed {about.seed})" if about.reference_num else ""
    measured = f"{utils.counted(about.num_images, 'image')}{subset}, {d} {about.network} features"
    print(f"{about.dataset}: {measured} ({about.resize}, weights {about.weights_hash[:8]})")
    if reference.is_mean is not None:
        measured = f"{about.splits} splits" + (", 1000 outputs" if about.is_outputs == "1000" else "")
        print(f"IS of the real images {reference.is_mean:.3f} ± {reference.is_std:.3f} ({measured})")
    if reference.coverage_ceiling is not None:
        print(
            f"coverage between two halves of {len(reference.real_features):,} real images "
            f"{reference.coverage_ceiling:.3f} (k = {about.k}): about the most that a generator can reach"
        )
    for way, scores in (reference.real_scores or {}).items():
        print(real_line(way, scores, "FID" if about.network.startswith("inception") else "FD"))
    if about.num_images <= d:
        print(
            f"{about.num_images} images do not determine the covariance of {d} features: "
            "Frechet distances will be biased"
        )
    print(f"reference statistics: {path}")


def real_line(way: str, scores: dict, distance: str) -> str:
    """What real images score when they are drawn in a way of --class_sampling, in words."""
    values = f"{distance} {scores['frechet']:.3f}, KID {scores['kid']:.5f}"
    if way == "data":
        return f"{scores['num']:,} of the real images score {values}: about the least that a generator can reach"
    return (
        f"unbalanced classes: drawn evenly over these they score {values}, coverage {scores['coverage']:.3f}; fakes "
        "are drawn as in the data, unless --class_sampling uniform is given"
    )


def measure(
    args: argparse.Namespace, data: DataOptions, options: MetricOptions, ranks: Ranks
) -> tuple[Reference, Path]:
    """Compute the statistics that the flags ask for, or find them computed. Returns: Reference and its path."""
    file = data.open()
    options.check_network()  # before a classifier is fitted
    rule = options.resize or NETWORK_RESIZE[options.feature_network][0]
    about = (data.reference_name, options.feature_network, rule, options.reference_num)
    if args.overwrite or not reference_path(data.data_root, *about).exists():
        on_ranks(ranks, lambda: utils.check_writable(data.data_root))  # before the pixels are read
    content = on_ranks(ranks, lambda: doctor.introduce(file))["content"]
    dataset = data.reference_part(file)
    if options.feature_network == "classifier":
        on_ranks(ranks, lambda: ensure_classifier(args, dataset, content, ranks.device))
    network = options.load_network(data.data_root, dataset.name, ranks.device)
    selection = select(SelectionOptions.of(args), options, data.data_root, file, content, ranks)
    if selection:  # its statistics have a name, hence a file, of their own
        dataset = Subset(dataset, selection.subset.indices, f"{dataset.name}_{selection.suffix}")
    check_options(options, network)
    protocol = reference_protocol(dataset, network, options, args.seed, selection and selection.record(), content)
    about = (dataset.name, network.name, network.resize, options.reference_num)
    path = reference_path(data.data_root, *about)
    reference = None if args.overwrite else matching_reference(path, protocol)
    if reference is not None:
        old = "" if reference.class_counts else ", without the counts of its classes"
        say(f"{path} is there already{old}; --overwrite computes it again")
        return reference, path
    on_ranks(ranks, lambda: utils.check_writable(path.parent))
    machine = (ranks, options.metric_batch_size, options.prdc_memory_mb)
    reference = compute_reference(dataset, network, protocol, *machine)
    on_ranks(ranks, lambda: reference.save(path))
    return reference, path


def merge_parts(args: argparse.Namespace, data: DataOptions, options: MetricOptions) -> tuple[Reference, Path]:
    """Write the statistics of --dataset from those of its parts. Returns: Reference and its path."""
    data.check_named()
    reference = merge([read_reference(path) for path in args.merge], data.path.stem, args.seed)
    about, features = reference.protocol, reference.real_features
    if features is not None:
        scores = real_scores(features, (reference.mu, reference.sigma), about.k, options.prdc_memory_mb)
        ceiling = scores["coverage"]
        reference = dataclasses.replace(reference, coverage_ceiling=ceiling, real_scores={"data": scores})
    path = reference_path(data.data_root, about.dataset, about.network, about.resize, about.reference_num)
    if path.exists() and not args.overwrite:
        raise utils.UserError(f"{path} is there already; --overwrite replaces it")
    reference.save(path)
    return reference, path


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    data, options = DataOptions.of(args), MetricOptions.of(args)
    if args.export:
        utils.check_writable(Path(args.export).parent)
    if args.merge:
        reference, path = merge_parts(args, data, options)
        report(reference, path)
    else:
        with distributed.process_group(args.device) as ranks:
            reference, path = measure(args, data, options, ranks)
            if ranks.is_main:
                report(reference, path)
    if args.export and utils.is_main_process():
        print(f"exported: {', '.join(map(str, export(reference, args.export)))}")


if __name__ == "__main__":
    utils.run_main(main)
