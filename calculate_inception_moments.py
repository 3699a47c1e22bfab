"""Reference statistics of a data set: what generated images are compared with.

Goes once over the real images with a feature network and writes one npz under --data_root: mean and covariance for
FID or FD, features of up to 10,000 images for precision, recall, density and coverage, and the Inception score of the
real images. With --feature_network classifier the network itself is first fitted to the data, where it is missing.
"""

import argparse
import time

import torch
from tqdm import tqdm

import classifier
import datasets
import metrics
import prdc
import reference_statistics
import utils
from feature_networks import add_feature_args, load_feature_network


def parse_args(argv=None):
    parser = utils.ArgumentParser(description=__doc__)
    datasets.add_data_args(parser)
    measure = add_feature_args(parser)
    measure.add_argument("--is_splits", type=utils.positive_int, default=10, help="splits of the Inception score")
    measure.add_argument("--prdc_k", type=utils.positive_int, default=5, help="neighbours of PRDC's radii")
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


def compute_reference(dataset, network, *, seed, k, splits, batch_size, device):
    """Statistics of all images of a data set, streaming.

    Args: dataset: of `datasets.open_dataset`; network: FeatureNetwork on `device`; seed: of the random choice of real
        features and of the random splits of the Inception score (files are often sorted by class).
    Returns: reference_statistics.Reference.
    Raises: UserError where there are too few images for `splits` or for coverage between two halves with `k`.
    """
    n = len(dataset)
    chosen = utils.rng(seed, "metric", 0).permutation(n)[: reference_statistics.NUM_REAL_FEATURES]
    if len(chosen) < 2 * (k + 1):
        raise utils.UserError(f"{dataset.path}: {n} images are too few for PRDC with --prdc_k {k}")
    split = metrics.contiguous_splits(n, splits)[utils.rng(seed, "metric", 1).permutation(n)]
    row = torch.full((n,), -1)  # where an image's features go in real_features
    row[chosen] = torch.arange(len(chosen))
    real_features = torch.empty(len(chosen), network.feature_dim)
    moments, score = metrics.RunningMoments(), metrics.RunningInceptionScore(splits)
    with tqdm(total=n, desc="real images", unit="image", disable=None) as bar:
        for images, _ in datasets.iterate(dataset, batch_size):
            part = slice(moments.count, moments.count + len(images))
            features, logits = network(images.to(device))
            moments.update(features)
            score.update(logits, split[part].to(device))
            kept = row[part] >= 0
            real_features[row[part][kept]] = features.cpu()[kept]
            bar.update(len(images))
    half = len(chosen) // 2
    halves = prdc.prdc(real=real_features[:half].to(device), fake=real_features[half : 2 * half].to(device), k=k)
    about = {"dataset": dataset.name, "num_images": n, "seed": seed, "k": k, "splits": splits}
    return reference_statistics.Reference(
        *(moment.cpu() for moment in moments.finalize()),
        real_features,
        *score.finalize(),
        halves["coverage"],
        reference_statistics.make_protocol(network, **about),
    )


def matching_reference(path, protocol):
    """The reference statistics at `path` if they are what would be computed, else None."""
    if not path.exists():
        return None
    try:
        reference = reference_statistics.read_reference(path)
    except utils.UserError as error:
        print(f"computing again: {error}")
        return None
    if reference.protocol != protocol:
        changed = [key for key in protocol if reference.protocol.get(key) != protocol[key]]
        print(f"computing again: {path} was made with another {', '.join(changed)}")
        return None
    return reference


def report(reference, network, path):
    about = reference.protocol
    n, d = about["num_images"], network.feature_dim
    print(
        f"{about['dataset']}: {n:,} images, {d} {network.name} features ({network.resize}, "
        f"weights {network.weights_hash[:8]})\n"
        f"IS of the real images {reference.is_mean:.3f} ± {reference.is_std:.3f} ({about['splits']} splits)\n"
        f"coverage between two halves of {len(reference.real_features):,} real images "
        f"{reference.coverage_ceiling:.3f} (k = {about['k']}): about the most that a generator can reach"
    )
    if n <= d:
        print(f"{n} images do not determine the covariance of {d} features: {network.distance.upper()} will be biased")
    print(f"reference statistics: {path}")


def main(argv=None):
    args = parse_args(argv)
    device = utils.resolve_device(args.device)
    dataset = datasets.open_dataset(args.dataset, args.data_root, args.load_in_mem)
    if args.feature_network == "classifier":
        ensure_classifier(args, dataset, device)
    network = load_feature_network(
        args.feature_network, args.data_root, dataset.name, args.inception_weights, args.resize, device
    )
    path = reference_statistics.reference_path(args.data_root, dataset.name, network.name, network.resize)
    options = {"seed": args.seed, "k": args.prdc_k, "splits": args.is_splits}
    protocol = reference_statistics.make_protocol(network, dataset=dataset.name, num_images=len(dataset), **options)
    reference = None if args.overwrite else matching_reference(path, protocol)
    if reference:
        print(f"{path} is there already; --overwrite computes it again")
    else:
        reference = compute_reference(dataset, network, batch_size=args.metric_batch_size, device=device, **options)
        reference.save(path)
    report(reference, network, path)


if __name__ == "__main__":
    utils.run_main(main)
