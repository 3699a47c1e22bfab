"""The metrics of generated images: their flags, their computation, and the protocol behind each number.

Symbols: N images, d features, K classes of the feature network.
"""

import warnings
from pathlib import Path

import prdc
import utils
from metrics import classifier, functional
from metrics.networks import add_feature_args, load_feature_network
from metrics.reference import load_reference, reference_path

# What may differ between two results that are compared: it describes the generator and its latents, not the measure.
OF_THE_GENERATOR = ("ema", "truncation", "truncation_kind", "seed")


def add_metric_args(parser):
    """Flags of the scripts that evaluate a generator; None stands for the protocol of the reference statistics."""
    group = add_feature_args(parser)
    group.add_argument(
        "--num_inception_images", type=utils.positive_int, default=50_000, help="generated images per evaluation"
    )
    add_score_args(group, splits=None, k=None, is_outputs=None)
    group.add_argument("--kid_subsets", type=utils.positive_int, default=100, help="random subsets that KID averages")
    group.add_argument(
        "--kid_subset_size", type=utils.positive_int, default=1000, help="images in each, or all where there are fewer"
    )
    group.add_argument(
        "--reference_file", metavar="FILE", help="reference statistics: an npz of ours, of the family or of pytorch-fid"
    )
    group.add_argument(
        "--reference_num", type=utils.positive_int, help="compare with statistics of that many random real images"
    )
    return group


def add_score_args(group, splits, k, is_outputs):
    """Flags of the scores that real and generated images have, with their defaults."""
    group.add_argument("--is_splits", type=utils.positive_int, default=splits, help="splits of the Inception score")
    group.add_argument(
        "--is_outputs",
        choices=("all", "1000"),
        default=is_outputs,
        help="outputs the Inception score counts: all, 1008 of inception_tf (the older formula, of most papers), or "
        "only its 1000 classes",
    )
    group.add_argument("--prdc_k", type=utils.positive_int, default=k, help="neighbours of PRDC's radii")
    group.add_argument(
        "--prdc_memory_mb", type=utils.positive_int, default=prdc.MEMORY_MB, help="working memory of PRDC, in MiB"
    )


def metric_options(args):
    """The flags of `add_metric_args` that decide what is measured: keywords of `compute_metrics` and `protocol`."""
    return {
        "splits": args.is_splits,
        "k": args.prdc_k,
        "is_outputs": args.is_outputs,
        "kid_subsets": args.kid_subsets,
        "kid_subset_size": args.kid_subset_size,
    }


def evaluation_reference_path(args, name, network_name, resize):
    """The file of reference statistics that the flags of `add_metric_args` mean, for a data set's name."""
    if args.reference_file:
        return Path(args.reference_file)
    return reference_path(args.data_root, name, network_name, resize, args.reference_num)


def load_evaluation(args, name, device, dataset=None):
    """The feature network and the reference statistics that the flags of `add_metric_args` ask for.

    Args: args: parsed flags, `data_root` among them; name: of the data set (`HDF5Dataset.name`); dataset: the data set
        itself where it is at hand, which a classifier must have been fitted to.
    Raises: utils.UserError if one is missing or does not fit, or if too few images are to be generated.
    """
    network = load_feature_network(
        args.feature_network, args.data_root, name, args.inception_weights, args.resize, device
    )
    if dataset is not None and network.name == "classifier":
        classifier.check_fits(network, dataset, classifier.classifier_path(args.data_root, name))
    path = evaluation_reference_path(args, name, network.name, network.resize)
    if args.reference_file and not path.is_file():
        raise utils.UserError(f"--reference_file {path}: no such file")
    reference = load_reference(path, network)
    check_options(args, network)
    splits, k = args.is_splits or reference.protocol["splits"], args.prdc_k or reference.protocol["k"]
    least = max(splits, k + 1)
    if args.num_inception_images < least:
        raise utils.UserError(f"--num_inception_images {args.num_inception_images}: the metrics need at least {least}")
    if reference.real_features is not None and len(reference.real_features) <= k:
        raise utils.UserError(f"--prdc_k {k}: {path} holds {len(reference.real_features)} real features")
    return network, reference


def check_options(args, network):
    """Raise utils.UserError where flags of `add_metric_args` do not go with a feature network."""
    check_outputs(network, args.is_outputs)
    prdc.tiling(network.feature_dim, args.prdc_memory_mb)  # raises where that is too little
    if args.kid_subset_size < 2:
        raise utils.UserError("--kid_subset_size 1: pairs of images need two")


def check_outputs(network, is_outputs):
    """Raise utils.UserError where the network has no outputs for ImageNet's 1000 classes."""
    if is_outputs == "1000" and network.num_classes not in (1000, 1008):
        raise utils.UserError(f"--is_outputs 1000: the {network.name} has {network.num_classes} classes of its own")


def scored_logits(logits, is_outputs):
    """The outputs (N,K) that count for the Inception score, of the logits of a network."""
    return functional.imagenet_logits(logits) if is_outputs == "1000" and logits.shape[1] == 1008 else logits


def knows_classes(network, reference):
    """Whether the network's classes are those of the data set, in the same order."""
    return network.name == "classifier" or (network.num_classes == 1000 and reference.protocol["imagenet_classes"])


def metric_keys(network, reference, n_classes):
    """The metrics that `compute_metrics` gives of a generator of n_classes classes."""
    keys = [network.distance, "is_mean", "is_std"]
    if reference.real_features is not None:
        keys += ["kid_mean", "kid_std", "precision", "recall", "density", "coverage"]
    return keys + (["accuracy"] if knows_classes(network, reference) and network.num_classes == n_classes else [])


def compute_metrics(
    features,
    logits,
    labels,
    network,
    reference,
    *,
    splits=None,
    k=None,
    is_outputs=None,
    prdc_memory_mb=prdc.MEMORY_MB,
    kid_subsets=100,
    kid_subset_size=1000,
    seed=0,
):
    """All metrics of N generated images.

    Args: features (N,d) and logits (N,K): of `network`, in an order that does not follow the class; labels: int64 (N,),
        the classes that were asked for, or None; reference: Reference of the same network; splits, is_outputs: of IS,
        k: of PRDC, None for the reference's; prdc_memory_mb: for its distances; kid_subsets, kid_subset_size: of KID,
        a subset being cut to the images that there are; seed: of KID's draws.
    Returns: dict of floats: `fid` or `fd`, `is_mean`, `is_std`; where there are real features, `kid_mean` and `kid_std`
        of all of them, and `precision`, `recall`, `density`, `coverage` of as many real and generated images (the first
        of each); `accuracy` where there are labels and the network's classes are the data set's.
    """
    about = reference.protocol
    splits, k, is_outputs = splits or about["splits"], k or about["k"], is_outputs or about["is_outputs"]
    if len(features) <= network.feature_dim:
        text = f"{network.distance} of {len(features)} images with {network.feature_dim} features: too few, biased"
        warnings.warn(text, stacklevel=2)
    moments = functional.moments_of(features).finalize()
    values = {network.distance: functional.frechet_distance(*moments, reference.mu, reference.sigma)}
    values["is_mean"], values["is_std"] = functional.inception_score(scored_logits(logits, is_outputs), splits)
    if reference.real_features is not None:
        real = reference.real_features.to(features.device)
        size = min(kid_subset_size, len(real), len(features))
        values["kid_mean"], values["kid_std"] = functional.kernel_distance(real, features, kid_subsets, size, seed)
        n = min(len(real), len(features))
        values |= prdc.prdc(real=real[:n], fake=features[:n], k=k, memory_mb=prdc_memory_mb)
    if labels is not None and knows_classes(network, reference):
        values["accuracy"] = functional.accuracy(logits, labels)
    return values


def protocol(
    network,
    reference,
    *,
    num_fake,
    ema,
    bn_mode,
    truncation,
    truncation_kind,
    seed,
    splits=None,
    k=None,
    is_outputs=None,
    kid_subsets=100,
    kid_subset_size=1000,
):
    """How the numbers of `compute_metrics` were made: a plain dict to store beside them.

    Args: num_fake: generated images; ema: whether G was the moving average; bn_mode: `running`, `batch` or `standing`;
        truncation: threshold or None, truncation_kind: its meaning; seed: of the latents; splits, k, is_outputs,
        kid_subsets, kid_subset_size: as `compute_metrics` got them.
    """
    real = reference.protocol
    num_real_features = 0 if reference.real_features is None else len(reference.real_features)
    num_outputs = 1000 if (is_outputs or real["is_outputs"]) == "1000" else network.num_classes
    return {
        "network": network.name,
        "weights_hash": network.weights_hash,
        "resize": network.resize,
        "precision": "float32 features, float64 statistics",
        "reference": real["dataset"],
        "reference_split": "random subset" if real["reference_num"] else "whole",
        "reference_num": real["num_images"],
        "reference_seed": real["seed"] if real["reference_num"] else None,
        "reference_assumed": real["assumed"],
        "fake_num": num_fake,
        "prdc_num": min(num_real_features, num_fake),
        "k": k or real["k"],
        "kid_real_num": num_real_features,
        "kid_subsets": kid_subsets,
        "kid_subset_size": min(kid_subset_size, num_real_features, num_fake),
        "splits": splits or real["splits"],
        "is_outputs": num_outputs,
        "ema": ema,
        "bn_mode": bn_mode,
        "truncation": truncation,
        "truncation_kind": truncation_kind if truncation is not None else None,
        "seed": seed,
    }


def compare_protocols(one, other):
    """What makes the numbers of two protocols incomparable: a line each, none where they are measured alike.

    Everything counts that two protocols say, whoever wrote it into them, but what describes the generator rather than
    the measure: moving average, truncation and seed of the latents (a truncation sweep compares just those).
    """
    keys = [key for key in {**one, **other} if key not in OF_THE_GENERATOR]
    values = ((key, one.get(key, "not recorded"), other.get(key, "not recorded")) for key in keys)
    return [f"{key}: {a} against {b}" for key, a, b in values if a != b]


def summary(values):
    """One line of a dict of metrics for the terminal."""
    parts = [f"{key.upper()} {values[key]:.3f}" for key in ("fid", "fd") if key in values]
    parts.append(f"IS {values['is_mean']:.3f} ± {values['is_std']:.3f}")
    parts += [f"KID {values['kid_mean']:.5f} ± {values['kid_std']:.5f}"] if "kid_mean" in values else []
    names = ("precision", "recall", "density", "coverage", "accuracy")
    return ", ".join(parts + [f"{key} {values[key]:.3f}" for key in names if key in values])
