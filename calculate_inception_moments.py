"""Reference statistics of a data set: what generated images are compared with.

    python calculate_inception_moments.py --dataset I128_hdf5
    torchrun --nproc_per_node 8 calculate_inception_moments.py ...
    python calculate_inception_moments.py --dataset whole --merge part1_..._reference.npz part2_..._reference.npz

Goes once over the real images with a feature network and writes one npz under --data_root: mean and covariance for
FID or FD, features of up to 10,000 images for KID, precision, recall, density and coverage, and the Inception score of
the real images. With --feature_network classifier the network itself is first fitted to the data, where it is missing.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dataset_doctor
import inception_utils
import instance_selection
import prdc
import utils
from image_datasets import loading
from metrics import classifier, functional
from metrics.features import raised_on_all
from metrics.networks import add_feature_args, check_choice, load_feature_network
from metrics.reference import (
    Reference,
    coverage_ceiling,
    export,
    make_protocol,
    merge,
    random_features,
    read_reference,
    reference_path,
)
from selection.scores import add_selection_args


def parse_args(argv=None):
    parser = utils.ArgumentParser(
        "Write the reference statistics of a data set, which generated images are compared with, to one npz under "
        "--data_root. A classifier is first fitted to the data, where it is missing."
    )
    loading.add_crop_arg(loading.add_data_args(parser, loader=False))
    add_selection_args(parser)
    measure = add_feature_args(parser)
    inception_utils.add_score_args(measure, splits=10, k=5, is_outputs="all")
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
    utils.add_device_args(run)
    args = parser.parse_args(argv)
    if args.dataset is None:
        parser.error("--dataset is required: the name of a data set made by make_hdf5.py")
    if args.feature_network != "classifier" and args.refit_classifier:
        parser.error("--refit_classifier goes with --feature_network classifier")
    if args.export and Path(args.export).suffix != ".npz":
        parser.error(f"--export {args.export}: the name of an .npz file")
    if args.merge and args.reference_num:
        parser.error("--merge joins all images of its files; it does not go with --reference_num")
    return args


def ensure_classifier(args, dataset, device):
    """Fit the data set's classifier where it is missing or --refit_classifier is given, and print how good it is."""
    path = classifier.classifier_path(args.data_root, dataset.name)
    if not path.exists() or args.refit_classifier:
        start = time.perf_counter()
        net, accuracy = classifier.fit_classifier(dataset, seed=args.seed, epochs=args.classifier_epochs, device=device)
        about = {"dataset_name": dataset.name, "seed": args.seed, "epochs": args.classifier_epochs}
        classifier.save_classifier(net, path, accuracy=accuracy, **about)
        print(f"{path}: classifier fitted in {time.perf_counter() - start:.0f} s")
    net, fitted = classifier.load_classifier(path)
    classifier.check_fits(net, dataset, path)
    print(f"{path}: held-out accuracy {100 * fitted['accuracy']:.2f} %")


def has_imagenet_classes(class_names):
    """Whether these are ImageNet's 1000 classes in the order of their WordNet ids, which is that of its networks."""
    ids = len(class_names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    ends = class_names[0], class_names[-1]
    return ids and list(class_names) == sorted(set(class_names)) and ends == ("n01440764", "n15075141")


def measured_images(dataset, reference_num, seed):
    """The images of a data set that statistics are of: all, or a random subset, in the file's order: int64 array.

    Raises: UserError where there are fewer than reference_num.
    """
    n = len(dataset)
    if reference_num is None:
        return np.arange(n)
    if reference_num > n:
        raise utils.UserError(f"--reference_num {reference_num}: {dataset.path} has {n} images")
    return np.sort(utils.rng(seed, "metric", 3).permutation(n)[:reference_num])


def compute_reference(
    dataset,
    network,
    *,
    seed,
    k,
    splits,
    batch_size,
    device,
    is_outputs="all",
    reference_num=None,
    selection=None,
    prdc_memory_mb=prdc.MEMORY_MB,
    ranks=None,
):
    """Statistics of a data set, streaming.

    Batches take turns among the ranks, so that features, and up to rounding in float64 all results, do not depend on
    their number.

    Args: dataset: of `loading.open_dataset`; network: FeatureNetwork on `device`; seed: of the random choice of real
        features, of --reference_num images, and of the random splits of the Inception score (files are often sorted by
        class); selection: which images `dataset` is a selection of, for the protocol; ranks: of `utils.process_group`,
        or None for one process.
    Returns: metrics.reference.Reference, the same on all ranks.
    Raises: UserError where there are too few images for `splits` or for coverage between two halves with `k`; on all
        ranks where an image of any rank cannot be read.
    """
    ranks = ranks or utils.Ranks(0, 1, torch.device(device))
    images_of = measured_images(dataset, reference_num, seed)
    n = len(images_of)
    chosen = random_features(n, seed)
    if len(chosen) < 2 * (k + 1):
        raise utils.UserError(f"{dataset.path}: {n} images are too few for PRDC with --prdc_k {k}")
    split = functional.contiguous_splits(n, splits)[utils.rng(seed, "metric", 1).permutation(n)]
    row = torch.full((n,), -1)  # where an image's features go in real_features
    row[chosen] = torch.arange(len(chosen))
    real_features = torch.zeros(len(chosen), network.feature_dim)
    moments, score = functional.RunningMoments(), functional.RunningInceptionScore(splits)
    disable = None if ranks.is_main else True  # None: shown on terminals only
    with (
        raised_on_all(ranks),
        tqdm(total=n, desc="real images", unit="image", disable=disable) as bar,
    ):
        for number, start in enumerate(range(0, n, batch_size)):
            part = slice(start, min(start + batch_size, n))
            if number % ranks.world_size == ranks.rank:
                features, logits = network(dataset.read(images_of[part]).to(device))
                moments.update(features)
                score.update(inception_utils.scored_logits(logits, is_outputs), split[part].to(device))
                kept = row[part] >= 0
                real_features[row[part][kept]] = features.cpu()[kept]
            bar.update(part.stop - start)
    if ranks.world_size > 1:
        moments.flush()
        moments, score = merged_over_ranks(moments, ranks), merged_over_ranks(score, ranks)
        torch.distributed.all_reduce(real_features)  # each row is 0 on all ranks but one
    about = {"dataset": dataset.name, "num_images": n, "seed": seed, "k": k, "splits": splits}
    about |= {"is_outputs": is_outputs, "reference_num": reference_num, "selection": selection}
    return Reference(
        *(moment.cpu() for moment in moments.finalize()),
        real_features,
        *score.finalize(),
        coverage_ceiling(real_features, k, prdc_memory_mb, device),
        make_protocol(network, **about, imagenet_classes=has_imagenet_classes(dataset.class_names)),
    )


def merged_over_ranks(running, ranks):
    """The RunningMoments or RunningInceptionScore of what all ranks have seen, on the CPU, the same on all ranks."""
    for name, value in vars(running).items():
        if torch.is_tensor(value):
            setattr(running, name, value.cpu())
    parts = [None] * ranks.world_size
    torch.distributed.all_gather_object(parts, running)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]


def matching_reference(path, protocol):
    """The reference statistics at `path` if they are what would be computed, else None."""
    if not path.exists():
        return None
    try:
        reference = read_reference(path)
    except utils.UserError as error:
        say(f"computing again: {error}")
        return None
    if reference.protocol != protocol:
        changed = [key for key in protocol if reference.protocol.get(key) != protocol[key]]
        say(f"computing again: {path} was made with another {', '.join(changed)}")
        return None
    return reference


def say(text):
    if utils.is_main_process():
        print(text)


def report(reference, path):
    about, d = reference.protocol, len(reference.mu)
    n, name = about["num_images"], about["network"]
    subset = f" (a random subset, seed {about['seed']})" if about["reference_num"] else ""
    print(
        f"{about['dataset']}: {n:,} images{subset}, {d} {name} features ({about['resize']}, "
        f"weights {about['weights_hash'][:8]})"
    )
    if reference.is_mean is not None:
        measured = f"{about['splits']} splits" + (", 1000 outputs" if about["is_outputs"] == "1000" else "")
        print(f"IS of the real images {reference.is_mean:.3f} ± {reference.is_std:.3f} ({measured})")
    if reference.coverage_ceiling is not None:
        print(
            f"coverage between two halves of {len(reference.real_features):,} real images "
            f"{reference.coverage_ceiling:.3f} (k = {about['k']}): about the most that a generator can reach"
        )
    if n <= d:
        print(f"{n} images do not determine the covariance of {d} features: Frechet distances will be biased")
    print(f"reference statistics: {path}")


def measure(args, ranks):
    """Compute the statistics that the flags ask for, or find them computed. Returns: Reference and its path."""
    file = loading.open_dataset(args.dataset, args.data_root, args.load_in_mem)
    check_choice(args.feature_network, args.inception_weights, args.resize)  # before a classifier is fitted
    findings = utils.on_main(ranks, lambda: dataset_doctor.introduce(file))
    dataset = loading.CentreCrop(file, args.crop_size) if args.crop_size else file
    if args.feature_network == "classifier":
        utils.on_main(ranks, lambda: ensure_classifier(args, dataset, ranks.device))
    network = load_feature_network(
        args.feature_network, args.data_root, dataset.name, args.inception_weights, args.resize, ranks.device
    )
    selection = instance_selection.select(args, file, findings["content"], ranks)
    if selection:  # its statistics have a name, hence a file, of their own
        dataset = loading.Subset(dataset, selection.subset.indices)
        dataset.name = f"{dataset.name}_{selection.suffix}"
    inception_utils.check_outputs(network, args.is_outputs)
    prdc.tiling(network.feature_dim, args.prdc_memory_mb)  # raises where that is too little
    path = reference_path(args.data_root, dataset.name, network.name, network.resize, args.reference_num)
    options = {"seed": args.seed, "k": args.prdc_k, "splits": args.is_splits, "is_outputs": args.is_outputs}
    options |= {"reference_num": args.reference_num, "selection": selection and selection.record()}
    protocol = make_protocol(
        network,
        dataset=dataset.name,
        num_images=args.reference_num or len(dataset),
        imagenet_classes=has_imagenet_classes(dataset.class_names),
        **options,
    )
    reference = None if args.overwrite else matching_reference(path, protocol)
    if reference:
        say(f"{path} is there already; --overwrite computes it again")
        return reference, path
    machine = {"batch_size": args.metric_batch_size, "device": ranks.device, "prdc_memory_mb": args.prdc_memory_mb}
    reference = compute_reference(dataset, network, ranks=ranks, **machine, **options)
    utils.on_main(ranks, lambda: reference.save(path))
    return reference, path


def merge_parts(args):
    """Write the statistics of --dataset from those of its parts. Returns: Reference and its path."""
    name = loading.dataset_path(args.dataset, args.data_root).stem
    parts = [read_reference(path) for path in args.merge]
    reference = merge(parts, name, args.seed, args.prdc_memory_mb)
    about = reference.protocol
    path = reference_path(args.data_root, name, about["network"], about["resize"], about["reference_num"])
    if path.exists() and not args.overwrite:
        raise utils.UserError(f"{path} is there already; --overwrite replaces it")
    reference.save(path)
    return reference, path


def main(argv=None):
    args = parse_args(argv)
    if args.merge:
        reference, path = merge_parts(args)
        report(reference, path)
    else:
        with utils.process_group(args.device) as ranks:
            reference, path = measure(args, ranks)
            if ranks.is_main:
                report(reference, path)
    if args.export and utils.is_main_process():
        print(f"exported: {', '.join(map(str, export(reference, args.export)))}")


if __name__ == "__main__":
    utils.run_main(main)
