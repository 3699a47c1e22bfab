"""Inception score, Frechet distance, reference statistics, and the protocol behind each number.

Symbols: N images, d features, K classes of the feature network.
Everything computed from features (moments, scores, distances) is float64 and stays on the device of its input.
"""

import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import classifier
import prdc
import utils
from feature_networks import add_feature_args, load_feature_network, statistics_command

NUM_REAL_FEATURES = 10_000  # real images that precision, recall, density and coverage are measured against


def add_metric_args(parser):
    """Flags of the scripts that evaluate a generator. IS splits and PRDC's k are those of the reference statistics."""
    group = add_feature_args(parser)
    group.add_argument(
        "--num_inception_images", type=utils.positive_int, default=50_000, help="generated images per evaluation"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Moments and scores


class RunningMoments:
    """Mean and covariance of a stream of features, in float64; parts may be merged in any order.

    Sums of squares about the mean are kept, and joined by the pairwise update of Chan, Golub and LeVeque 1979: no
    cancellation, wherever the mean lies.
    """

    def __init__(self):
        self.count, self.mean, self.scatter = 0, None, None

    def update(self, features):
        """features: (n,d), any float type; n may be 0."""
        if not len(features):
            return
        part, x = RunningMoments(), features.double()
        part.count, part.mean = len(x), x.mean(0)
        part.scatter = (x - part.mean).T @ (x - part.mean)
        self.merge(part)

    def merge(self, other):
        """Add what another RunningMoments has seen."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        total, shift = self.count + other.count, other.mean - self.mean
        self.scatter += other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean += shift * (other.count / total)
        self.count = total

    def finalize(self):
        """Returns: mu (d,), sigma (d,d) unbiased as in numpy.cov, float64. Raises: UserError for under 2 images."""
        if self.count < 2:
            raise utils.UserError(f"{self.count} image(s) are too few for a covariance")
        return self.mean, self.scatter / (self.count - 1)


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500).

    Args: mu: (d,); sigma: (d,d) symmetric, positive semidefinite up to rounding; tensors or arrays. Of two covariances
        the one of lower rank is best passed first.
    Returns: float, never below 0 nor NaN. Raises: UserError where a moment is not finite.
    """
    moments = [torch.as_tensor(moment, dtype=torch.float64) for moment in (mu1, sigma1, mu2, sigma2)]
    if not all(moment.isfinite().all().item() for moment in moments):
        raise utils.UserError("the moments of the features are not finite: there is no Frechet distance")
    moments = [moment.to(moments[0].device) for moment in moments]
    return frechet_tensor(*moments, root=_cholesky(moments[1])).item()


def _cholesky(sigma):
    """The Cholesky factor of sigma (d,d), five times faster than eigenvectors, or None where its rank is in doubt."""
    root, failed = torch.linalg.cholesky_ex(sigma)
    if failed.item():
        return None
    rounding = len(sigma) * torch.finfo(sigma.dtype).eps * sigma.diagonal().max()
    return root if (root.diagonal().square().min() > rounding).item() else None


def frechet_tensor(mu1, sigma1, mu2, sigma2, root=None):
    """`frechet_distance` as a 0-dimensional tensor, from float64 tensors on one device.

    root: L (d,d) with sigma1 = L L'; None: made from the eigenvectors, which serves any rank.
    """
    # The trace of (sigma1^1/2 sigma2 sigma1^1/2)^1/2 is the sum of the roots of the eigenvalues of L' sigma2 L, a
    # symmetric matrix: they are real, and rounding alone makes any of them negative.
    if root is None:
        w, v = torch.linalg.eigh(sigma1)
        # The roots of eigenvalues that are nothing but rounding would be as large as 1e-8.
        w = torch.where(w > len(w) * torch.finfo(w.dtype).eps * w[-1], w, 0)
        root = v * w.sqrt()
    product = root.T @ sigma2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * cross
    return distance.clamp(min=0)


class RunningInceptionScore:
    """Inception score (Salimans et al. 2016, arXiv:1606.03498) of a stream of logits, a score for each split.

    KL(p || q) averaged over a split's images, q their mean, is the mean of sum p log p plus the entropy of q: sums over
    images suffice, and no logits need be kept.
    """

    def __init__(self, splits):
        self.splits, self.mass, self.negentropy, self.count = splits, 0, 0, 0

    def update(self, logits, split):
        """logits: (n,K); split: int64 (n,), which split each image belongs to, on the same device."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        member = (split[:, None] == torch.arange(self.splits, device=split.device)).double()  # (n,splits)
        self.mass = self.mass + member.T @ p  # (splits,K)
        self.negentropy = self.negentropy + member.T @ (p * log_p).sum(1)  # (splits,)
        self.count = self.count + member.sum(0)  # (splits,)

    def scores(self):
        """exp of the mean divergence: (splits,) float64."""
        q = self.mass / self.count[:, None]
        return (self.negentropy / self.count + torch.special.entr(q).sum(1)).exp()

    def finalize(self):
        """Returns: mean and (population) standard deviation over the splits, floats."""
        scores = self.scores()
        return scores.mean().item(), scores.std(correction=0).item()


def contiguous_splits(num_images, splits):
    """The split of each image, N images being cut at i N // splits: int64 (N,). Raises: UserError if N < splits."""
    if num_images < splits:
        raise utils.UserError(f"an Inception score over {splits} splits needs as many images, not {num_images}")
    return ((torch.arange(num_images) + 1) * splits - 1) // num_images


def inception_score(logits, splits=10):
    """Inception score over contiguous splits: logits (N,K), whose order must not follow the class, to (mean, std)."""
    score = RunningInceptionScore(splits)
    for part, split in zip(logits.split(4096), contiguous_splits(len(logits), splits).split(4096), strict=True):
        score.update(part, split.to(part.device))
    return score.finalize()


# ---------------------------------------------------------------------------------------------------------------------
# Reference statistics


@dataclass(frozen=True)
class Reference:
    """What generated images of one data set are compared with, measured by one feature network on the real images.

    mu (d,) and sigma (d,d): float64, of the whole set; real_features: float32 (n,d), a seeded random choice in random
    order, or None; is_mean, is_std: Inception score of the real images, or None; coverage_ceiling: coverage between the
    halves of real_features, or None; protocol: plain dict (`network`, `weights_hash`, `resize`, `dataset`,
    `num_images`, `seed`, `k`, `splits`, `assumed`). Tensors on the CPU.
    """

    mu: torch.Tensor
    sigma: torch.Tensor
    real_features: torch.Tensor | None
    is_mean: float | None
    is_std: float | None
    coverage_ceiling: float | None
    protocol: dict

    def save(self, path):
        """One npz with `mu`, `sigma`, `real_features`, and the rest as JSON text in `reference`. Atomic."""
        arrays = {key: getattr(self, key).numpy() for key in ("mu", "sigma", "real_features")}
        keys = ("is_mean", "is_std", "coverage_ceiling", "protocol")
        with utils.atomic_path(path) as temporary:
            np.savez(temporary, **arrays, reference=json.dumps({key: getattr(self, key) for key in keys}))


def reference_path(data_root, dataset_name, network_name, resize):
    return Path(data_root) / f"{dataset_name}_{network_name}_{resize}_reference.npz"


def make_protocol(network, *, dataset, num_images, seed, k, splits, assumed=False):
    """The protocol of reference statistics, as it is stored with them."""
    about = {"network": network.name, "weights_hash": network.weights_hash, "resize": network.resize}
    about |= {"dataset": dataset, "num_images": num_images, "seed": seed, "k": k, "splits": splits}
    return about | {"assumed": assumed}


def load_reference(path, network):
    """Reference statistics for a feature network.

    Where `path` is missing, the reference family's `*_inception_moments.npz` beside it (`*_inception_activations.npz`
    adds the real features) is taken instead; it may also be named directly. Such files do not say how they were made:
    the protocol is assumed, which is printed.
    Raises: UserError if there are none, or if they belong to other weights, another network or resize rule.
    """
    path = Path(path)
    if not path.exists():
        path = _family_moments(path, network)
    arrays = _load_npz(path)
    if "reference" not in arrays:
        return _family_reference(arrays, path, network)
    reference = _own_reference(arrays, path)
    _check_reference(reference, network, path)
    return reference


def read_reference(path):
    """Reference statistics that calculate_inception_moments.py wrote, of whatever network. Raises: UserError."""
    return _own_reference(_load_npz(path), path)


def _load_npz(path):
    """All arrays of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise utils.UserError(f"{path} is not a readable npz file (damaged or another format)") from error


def _own_reference(arrays, path):
    try:
        tensors = {key: torch.from_numpy(arrays[key]) for key in ("mu", "sigma", "real_features")}
        return Reference(**tensors, **json.loads(arrays["reference"].item()))
    except (KeyError, ValueError, TypeError) as error:
        raise utils.UserError(f"{path} is not a file of calculate_inception_moments.py; make it again") from error


def _check_reference(reference, network, path):
    made, protocol = f"{path} was made", reference.protocol
    if protocol["network"] != network.name:
        raise utils.UserError(f"{made} with --feature_network {protocol['network']}, not {network.name}")
    if protocol["resize"] != network.resize:
        raise utils.UserError(f"{made} with --resize {protocol['resize']}, not {network.resize}")
    if protocol["weights_hash"] != network.weights_hash:
        command = statistics_command(protocol["dataset"], path.parent, network.name)
        hashes = f"{protocol['weights_hash'][:8]}, not {network.weights_hash[:8]}"
        raise utils.UserError(f"{made} with other {network.name} weights ({hashes}); make it again: {command}")


def _family_moments(path, network):
    """The family's moments that stand for the missing `path`: same data set, same folder; ILSVRC64 is its I64."""
    stem = path.name.removesuffix(f"_{network.name}_{network.resize}_reference.npz")
    for name in (stem, stem.replace("ILSVRC", "I", 1)):
        file = path.with_name(f"{name}_inception_moments.npz")
        if network.name == "inception" and file.exists():
            return file
    command = statistics_command(stem, path.parent, network.name)
    raise utils.UserError(f"no reference statistics {path}; make them with: {command}")


def _family_reference(arrays, path, network):
    stem = path.name.removesuffix(".npz").removesuffix("_inception_moments")
    beside = path.with_name(f"{stem}_inception_activations.npz")
    if beside.exists():
        arrays |= {key: value for key, value in _load_npz(beside).items() if key == "real_features"}
    d = network.feature_dim
    shapes = [arrays[key].shape if key in arrays else None for key in ("mu", "sigma")]
    features = torch.from_numpy(arrays["real_features"]).float() if "real_features" in arrays else None
    if network.name != "inception" or shapes != [(d,), (d, d)] or (features is not None and features.shape[1:] != (d,)):
        raise utils.UserError(f"{path} does not hold `mu` ({d},) and `sigma` ({d},{d}) of the network {network.name}")
    protocol = make_protocol(network, dataset=stem, num_images=None, seed=None, k=5, splits=10, assumed=True)
    if utils.is_main_process():
        print(
            f"{path}: protocol assumed: whole training set, {network.name} {network.weights_hash[:8]}, {network.resize}"
            + ("" if features is not None else f"; no {beside.name}: no precision, recall, density, coverage")
        )
    mu, sigma = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    return Reference(mu, sigma, features, None, None, None, protocol)


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
    path = reference_path(args.data_root, name, network.name, network.resize)
    reference = load_reference(path, network)
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


# ---------------------------------------------------------------------------------------------------------------------
# The metrics of generated images


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
    moments = RunningMoments()
    for part in features.split(4096):
        moments.update(part)
    metrics = {network.distance: frechet_distance(*moments.finalize(), reference.mu, reference.sigma)}
    metrics["is_mean"], metrics["is_std"] = inception_score(logits, splits)
    if reference.real_features is not None:
        n = min(len(reference.real_features), len(features))
        real = reference.real_features[:n].to(features.device)
        metrics |= prdc.prdc(real=real, fake=features[:n], k=k)
    if labels is not None and network.name == "classifier":
        metrics["accuracy"] = (logits.argmax(1) == labels.to(logits.device)).double().mean().item()
    return metrics


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


def summary(metrics):
    """One line of a metrics dict for the terminal."""
    parts = [f"{key.upper()} {metrics[key]:.3f}" for key in ("fid", "fd") if key in metrics]
    parts.append(f"IS {metrics['is_mean']:.3f} ± {metrics['is_std']:.3f}")
    names = ("precision", "recall", "density", "coverage", "accuracy")
    return ", ".join(parts + [f"{key} {metrics[key]:.3f}" for key in names if key in metrics])
