"""Reference statistics: what generated images of a data set are compared with, in memory and as npz files.

Symbols: n images, d features of the feature network.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import utils
from feature_networks import statistics_command

NUM_REAL_FEATURES = 10_000  # real images that precision, recall, density and coverage are measured against


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
