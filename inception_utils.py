"""The metrics of generated images: their flags, their computation, and the protocol behind each number.

Symbols: N images, d features, K classes of the feature network.
"""

import warnings

import classifier
import metrics
import prdc
import reference_statistics
import utils
from feature_networks import add_feature_args, load_feature_network


def add_metric_args(parser):
    """Flags of the scripts that evaluate a generator. IS splits and PRDC's k are those of the reference statistics."""
    group = add_feature_args(parser)
    group.add_argument(
        "--num_inception_images", type=utils.positive_int, default=50_000, help="generated images per evaluation"
    )


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
    path = reference_statistics.reference_path(args.data_root, name, network.name, network.resize)
    reference = reference_statistics.load_reference(path, network)
    least = max(reference.protocol["splits"], reference.protocol["k"] + 1)
    if args.num_inception_images < least:
        raise utils.UserError(f"--num_inception_images {args.num_inception_images}: the metrics need at least {least}")
    return network, reference


def metric_keys(network, reference, n_classes):
    """The metrics that `compute_metrics` gives of a generator of n_classes classes."""
    keys = [network.distance, "is_mean", "is_std"]
    if reference.real_features is not None:
        keys += ["precision", "recall", "density", "coverage"]
    return keys + (["accuracy"] if network.name == "classifier" and network.num_classes == n_classes else [])


def compute_metrics(features, logits, labels, network, reference, splits=None, k=None):
    """All metrics of N generated images.

    Args: features (N,d) and logits (N,K): of `network`, in an order that does not follow the class; labels: int64 (N,),
        the classes that were asked for, or None; reference: Reference of the same network; splits, k: of IS and PRDC,
        None for the reference's.
    Returns: dict of floats: `fid` or `fd`, `is_mean`, `is_std`; `precision`, `recall`, `density`, `coverage` where
        there are real features, of as many real and generated images (the first of each); `accuracy` where there are
        labels and the network is the classifier of the data set.
    """
    splits, k = splits or reference.protocol["splits"], k or reference.protocol["k"]
    if len(features) <= network.feature_dim:
        text = f"{network.distance} of {len(features)} images with {network.feature_dim} features: too few, biased"
        warnings.warn(text, stacklevel=2)
    moments = metrics.RunningMoments()
    for part in features.split(4096):
        moments.update(part)
    values = {network.distance: metrics.frechet_distance(*moments.finalize(), reference.mu, reference.sigma)}
    values["is_mean"], values["is_std"] = metrics.inception_score(logits, splits)
    if reference.real_features is not None:
        n = min(len(reference.real_features), len(features))
        real = reference.real_features[:n].to(features.device)
        values |= prdc.prdc(real=real, fake=features[:n], k=k)
    if labels is not None and network.name == "classifier":
        values["accuracy"] = (logits.argmax(1) == labels.to(logits.device)).double().mean().item()
    return values


def protocol(network, reference, *, num_fake, ema, bn_mode, truncation, truncation_kind, seed, splits=None, k=None):
    """How the numbers of `compute_metrics` were made: a plain dict to store beside them.

    Args: num_fake: generated images; ema: whether G was the moving average; bn_mode: `running`, `batch` or `standing`;
        truncation: threshold or None, truncation_kind: its meaning; seed: of the latents.
    """
    real = reference.protocol
    num_real_features = 0 if reference.real_features is None else len(reference.real_features)
    return {
        "network": network.name,
        "weights_hash": network.weights_hash,
        "resize": network.resize,
        "precision": "float32 features, float64 statistics",
        "reference": real["dataset"],
        "reference_num": real["num_images"],
        "reference_assumed": real["assumed"],
        "fake_num": num_fake,
        "prdc_num": min(num_real_features, num_fake),
        "k": k or real["k"],
        "splits": splits or real["splits"],
        "ema": ema,
        "bn_mode": bn_mode,
        "truncation": truncation,
        "truncation_kind": truncation_kind if truncation is not None else None,
        "seed": seed,
    }


def summary(values):
    """One line of a dict of metrics for the terminal."""
    parts = [f"{key.upper()} {values[key]:.3f}" for key in ("fid", "fd") if key in values]
    parts.append(f"IS {values['is_mean']:.3f} ± {values['is_std']:.3f}")
    names = ("precision", "recall", "density", "coverage", "accuracy")
    return ", ".join(parts + [f"{key} {values[key]:.3f}" for key in names if key in values])
