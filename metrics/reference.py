"""Reference statistics: what generated images of a data set are compared with, in memory and as npz files.

Symbols: n images, d features of the feature network.
"""

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import utils
from metrics.functional import RunningMoments, rows_at
from metrics.networks import FeatureNetwork, statistics_command
from torch_utils import schema

ABOUT = ("is_mean", "is_std", "coverage_ceiling", "class_counts", "class_names", "real_scores")  # of a file, in JSON
NUM_REAL_FEATURES = 10_000  # real images that KID, precision, recall, density and coverage are measured against


@dataclass(frozen=True)
class ReferenceProtocol:
    """How reference statistics were made, as it is stored with them.

    network, weights_hash, resize: of the FeatureNetwork; dataset: name; num_images: measured ones, None where unknown;
    seed: of all random choices; k, splits, is_outputs: of PRDC and the Inception score; reference_num: size of the
    random subset that was measured, None for the whole data set; imagenet_classes: whether its classes are ImageNet's
    1000, in WordNet's order; selection: which images instance selection has left, None for all; assumed: whether all
    this is a guess about a file of another codebase; moments: where mu and sigma come from, None: the measured images;
    content: sha256 of the data set's pixels and labels (`doctor.full_pass`), None where it was not recorded.
    Fields with defaults were added after the first files.
    """

    network: str
    weights_hash: str
    resize: str
    dataset: str
    num_images: int | None
    seed: int | None
    k: int
    splits: int
    is_outputs: str = "all"
    reference_num: int | None = None
    imagenet_classes: bool = False
    selection: str | None = None
    assumed: bool = False
    moments: str | None = None
    content: str | None = None

    @classmethod
    def of(cls, network: FeatureNetwork, **others) -> "ReferenceProtocol":
        """That of statistics of a network; others: the other fields."""
        return cls(network.name, network.weights_hash, network.resize, **others)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Reference:
    """What generated images of one data set are compared with, measured by one feature network on the real images.

    mu (d,) and sigma (d,d): float64, of all images that were measured; real_features: float32 (n,d), a seeded random
    choice of theirs in random order, or None; is_mean, is_std: Inception score of the real images, or None;
    coverage_ceiling: coverage between the halves of real_features, or None; class_counts, class_names: images of each
    class in the data set, and its classes; real_scores: what real images score (`inception_utils.real_scores`), `data`:
    drawn as they come, and where classes are unbalanced `uniform`: evenly over these. The last three are None in files
    of before and of others, the first two of them also where classes are not known. Tensors on the CPU.
    """

    mu: torch.Tensor
    sigma: torch.Tensor
    real_features: torch.Tensor | None
    is_mean: float | None
    is_std: float | None
    coverage_ceiling: float | None
    protocol: ReferenceProtocol
    class_counts: list[int] | None = None
    class_names: list[str] | None = None
    real_scores: dict | None = None

    def save(self, path: Path) -> None:
        """One npz with `mu`, `sigma`, `real_features`, and the rest as JSON text in `reference`. Atomic."""
        about = {key: getattr(self, key) for key in ABOUT}
        text = json.dumps(about | {"protocol": self.protocol.to_dict()})
        _save_npz(path, _arrays(self, "mu", "sigma", "real_features") | {"reference": np.array(text)})


# What the text `reference` of a file holds.
FILE = {
    **dict.fromkeys(("is_mean", "is_std", "coverage_ceiling"), (None, float)),
    "class_counts?": (None, [schema.COUNT]),
    "class_names?": (None, [str]),
    "real_scores?": (None, {str: object}),
    "protocol": schema.of_dataclass(ReferenceProtocol) | {"k": schema.POSITIVE, "splits": schema.POSITIVE},
}


def reference_path(
    data_root, dataset_name: str, network_name: str, resize: str, reference_num: int | None = None
) -> Path:
    """The file of a data set's statistics: of all its images, or of a random subset of reference_num."""
    subset = f"_num{reference_num}" if reference_num else ""
    return Path(data_root) / f"{dataset_name}_{network_name}_{resize}{subset}_reference.npz"


def random_features(num_images: int, seed: int) -> np.ndarray:
    """Which of so many images are kept as real features, in a random order: int64 array."""
    return utils.rng(seed, "real_features").permutation(num_images)[:NUM_REAL_FEATURES]


def real_halves(features: torch.Tensor, labels: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two halves of real features (n,d), which are in random order.

    labels: int (n,): the second half is then drawn from itself evenly over its classes, images of a small class more
    than once.
    """
    half = len(features) // 2
    one, other = features[:half], features[half : 2 * half]
    if labels is None:
        return one, other
    labels = labels[half : 2 * half]
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    turns = (divmod(i, len(members)) for i in range(half))
    return one, rows_at(other, np.array([members[c][turn % len(members[c])] for turn, c in turns]))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_reference(path: str | Path, network: FeatureNetwork) -> Reference:
    """Reference statistics for a feature network, from our file, the reference family's or pytorch-fid's.

    Where `path` is missing, the family's `*_inception_moments.npz` beside it is taken instead; `*_inception_activations
    .npz` adds the real features. Files of others hold `mu` and `sigma` but not how they were made: the protocol is
    assumed, which is printed.
    Raises: UserError if there are none, or if they belong to other weights, another network or resize rule.
    """
    path = Path(path)
    if not path.exists():
        path = _family_moments(path, network)
    arrays = utils.load_npz(path)
    if "reference" not in arrays:
        return _foreign_reference(arrays, path, network)
    reference = _own_reference(arrays, path)
    _check_reference(reference, network, path)
    return reference


def read_reference(path: str | Path) -> Reference:
    """Reference statistics that calculate_inception_moments.py wrote, of whatever network. Raises: UserError."""
    return _own_reference(utils.load_npz(path), path)


def _own_reference(arrays, path):
    try:
        about = json.loads(arrays["reference"].item())
        wrong = schema.problem(about, FILE) or _problem_of_arrays(arrays)
        if wrong is None:
            protocol = ReferenceProtocol(**about.pop("protocol"))
            mu, sigma = (torch.from_numpy(arrays[key]) for key in ("mu", "sigma"))
            features = torch.from_numpy(arrays["real_features"]) if "real_features" in arrays else None
            return Reference(mu, sigma, features, **about, protocol=protocol)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        wrong = utils.first_line(error)
    raise utils.UserError(f"{path} is not a file of calculate_inception_moments.py ({wrong}); make it again")


def _problem_of_arrays(arrays):
    """What is wrong with mu, sigma and real_features, or None."""
    d = arrays["mu"].size if "mu" in arrays else 0
    wanted = {"mu": (d,), "sigma": (d, d)}
    if "real_features" in arrays:
        wanted["real_features"] = (len(arrays["real_features"]) if arrays["real_features"].ndim else 0, d)
    for name, shape in wanted.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype not in (np.float32, np.float64) or 0 in shape:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            return f"{name} is {found}, not numbers {shape if d else '(d,)'}"
        if not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
    return None


def _check_reference(reference, network, path):
    made, protocol = f"{path} was made", reference.protocol
    if protocol.network != network.name:
        raise utils.UserError(f"{made} with --feature_network {protocol.network}, not {network.name}")
    if protocol.resize != network.resize:
        raise utils.UserError(f"{made} with --resize {protocol.resize}, not {network.resize}")
    if protocol.weights_hash != network.weights_hash:
        command = statistics_command(protocol.dataset, path.parent, network.name)
        hashes = f"{protocol.weights_hash[:8]}, not {network.weights_hash[:8]}"
        raise utils.UserError(f"{made} with other {network.name} weights ({hashes}); make it again: {command}")
    if len(reference.mu) != network.feature_dim:
        raise utils.UserError(f"{path} is of {len(reference.mu)} features, {network.name} has {network.feature_dim}")


def _family_moments(path, network):
    """The family's moments that stand for the missing `path`: same data set, same folder; ILSVRC64 is its I64."""
    named = re.fullmatch(rf"(.+)_{network.name}_{network.resize}(_num(\d+))?_reference\.npz", path.name)
    stem, subset = (named[1], named[3]) if named else (path.stem, None)
    for name in (stem, stem.replace("ILSVRC", "I", 1)):
        file = path.with_name(f"{name}_inception_moments.npz")
        if network.name == "inception" and not subset and file.exists():
            return file
    command = statistics_command(stem, path.parent, network.name) + (f" --reference_num {subset}" if subset else "")
    raise utils.UserError(f"no reference statistics {path}; make them with: {command}")


def _foreign_reference(arrays, path, network):
    """Statistics of the reference family or of pytorch-fid, taken for those of `network`."""
    stem = path.name.removesuffix(".npz").removesuffix("_inception_moments")
    beside = path.with_name(f"{stem}_inception_activations.npz")
    if path.name.endswith("_inception_moments.npz") and beside.exists():
        arrays |= {key: value for key, value in utils.load_npz(beside).items() if key == "real_features"}
    arrays = {key: array for key, array in arrays.items() if array.dtype.kind == "f"}
    d = network.feature_dim
    shapes = [arrays[key].shape if key in arrays else None for key in ("mu", "sigma")]
    features = torch.from_numpy(arrays["real_features"]).float() if "real_features" in arrays else None
    if shapes != [(d,), (d, d)] or (features is not None and features.shape[1:] != (d,)):
        raise utils.UserError(f"{path} does not hold `mu` ({d},) and `sigma` ({d},{d}) of the network {network.name}")
    if network.name == "classifier":
        raise utils.UserError(f"{path} does not say which classifier its statistics are of; make them again")
    protocol = ReferenceProtocol.of(network, dataset=stem, num_images=None, seed=None, k=5, splits=10, assumed=True)
    if utils.is_main_process():
        print(
            f"{path}: protocol assumed: whole training set, {network.name} {network.weights_hash[:8]}, {network.resize}"
            + ("" if features is not None else f"; no {beside.name}: no KID, precision, recall, density, coverage")
        )
    mu, sigma = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    return Reference(mu, sigma, features, None, None, None, protocol)


def with_moments_of_file(reference: Reference, path: Path) -> Reference:
    """Statistics of the images in an npz, with the `mu` and `sigma` beside them: those of the whole set, of which the
    images are a sample, as guided-diffusion (ADM) publishes its references. Says so; without them `reference` itself.
    """
    arrays = utils.load_npz(path, only=("mu", "sigma"))
    if not arrays:
        return reference
    d, number = len(reference.mu), reference.protocol.num_images
    found = [(key, array.shape, array.dtype.kind) for key, array in arrays.items()]
    fits = found == [("mu", (d,), "f"), ("sigma", (d, d), "f")]
    if utils.is_main_process():
        use = f"are not of {d} features: its {number} images count for all"
        if fits:
            network = reference.protocol.network
            use = f"count for the Frechet distance, its {number} images for the rest; {network} is assumed"
        print(f"{path}: its mu and sigma {use}")
    if not fits:
        return reference
    mu, sigma = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    protocol = dataclasses.replace(reference.protocol, moments="mu and sigma of the file, network assumed")
    return dataclasses.replace(reference, mu=mu, sigma=sigma, protocol=protocol)


# ---------------------------------------------------------------------------------------------------------------------
# Merging and exporting


def merge(references: list[Reference], dataset: str, seed: int = 0) -> Reference:
    """The statistics of a data set from those of its parts: the moments exactly, real features chosen anew.

    Args: references: of each part, which share no image; dataset: name of the whole; seed: of the choice.
    Returns: Reference, whose real features are a random choice among all, as if drawn from the whole. It has no
        Inception score, no coverage ceiling, and no real features where a part has none.
    Raises: UserError where the parts were not measured alike, do not tell how many images they are of, or are seen to
        share images.
    """
    protocols = [reference.protocol for reference in references]
    for key in ("network", "weights_hash", "resize", "k", "splits", "is_outputs", "imagenet_classes"):
        if len({getattr(protocol, key) for protocol in protocols}) > 1:
            each = ", ".join(f"{protocol.dataset} {getattr(protocol, key)}" for protocol in protocols)
            raise utils.UserError(f"statistics with another {key} cannot be merged: {each}")
    counts = [protocol.num_images for protocol in protocols]
    if None in counts:
        raise utils.UserError(f"{protocols[counts.index(None)].dataset}: the number of its images is not known")
    for one, other in itertools.combinations(references, 2):
        _check_apart(one, other)
    moments = RunningMoments()
    for reference, count in zip(references, counts, strict=True):
        moments.merge(RunningMoments.of(count, reference.mu, reference.sigma))
    features = _merged_features([reference.real_features for reference in references], counts, seed)
    subset = sum(counts) if any(protocol.reference_num for protocol in protocols) else None
    about = {"dataset": dataset, "num_images": sum(counts), "seed": seed, "reference_num": subset, "content": None}
    protocol = dataclasses.replace(protocols[0], **about)
    return Reference(*moments.finalize(), features, None, None, None, protocol, *_merged_classes(references))


def _merged_classes(references):
    """Counts and names of the classes of all parts, where all have the same; else None, None."""
    names = references[0].class_names
    if names is None or any(part.class_names != names or part.class_counts is None for part in references):
        return None, None
    return np.sum([part.class_counts for part in references], axis=0).tolist(), names


def _check_apart(one, other):
    """Raise UserError where two parts are one and the same, or one is a random subset of the other's data set."""
    names = [part.protocol.dataset for part in (one, other)]
    subset = one.protocol.reference_num or other.protocol.reference_num
    if torch.equal(one.mu, other.mu) or (names[0] == names[1] and subset):
        raise utils.UserError(f"{names[0]} and {names[1]} share images; merge statistics of parts that do not overlap")


def _merged_features(parts, counts, seed):
    """A random choice of the features of all parts (each (n,d), itself random), parts weighted by their images."""
    if any(part is None for part in parts):
        return None
    # Where the images of the whole would be drawn from; within a part any row is as good as another.
    origin = np.repeat(np.arange(len(parts)), counts)[random_features(sum(counts), seed)]
    merged = torch.empty(len(origin), parts[0].shape[1])
    for i, part in enumerate(parts):
        rows = torch.from_numpy(np.flatnonzero(origin == i))
        if len(rows) > len(part):
            raise utils.UserError(f"part {i + 1} holds {len(part)} real features, {len(rows)} are needed")
        merged[rows] = part[: len(rows)]
    return merged


def export(reference: Reference, path: str | Path) -> list[Path]:
    """Write `mu` and `sigma` as an npz that pytorch-fid and the reference family read. Atomic.

    A path that ends in _inception_moments.npz is the family's name: its _inception_activations.npz, with
    `real_features`, is written beside it. Returns: list of the files.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise utils.UserError(f"{path}: statistics are exported as .npz files")
    _save_npz(path, _arrays(reference, "mu", "sigma"))
    if not path.name.endswith("_inception_moments.npz") or reference.real_features is None:
        return [path]
    beside = path.with_name(path.name.replace("_inception_moments.npz", "_inception_activations.npz"))
    _save_npz(beside, _arrays(reference, "real_features"))
    return [path, beside]


def _arrays(reference, *keys):
    return {key: getattr(reference, key).numpy() for key in keys if getattr(reference, key) is not None}


def _save_npz(path, arrays):
    with utils.atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
