"""The metrics of images, real and generated, with the protocol behind each number.

A feature network looks at images (`metrics/features.py`); of its features follow the statistics of real images
(`compute_reference`) and the metrics of generated ones against these (`compute_metrics`).

Symbols: N images, d features, K classes of the feature network.
"""

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import prdc
import utils
from BigGAN import Generator
from image_datasets import content as contents
from image_datasets import doctor
from image_datasets.hdf5 import HDF5Dataset
from image_datasets.image_sets import ImageSet
from metrics import classifier, functional
from metrics.distances import MEMORY_MB
from metrics.features import check_classes, features_of, intra_class
from metrics.images import GeneratedImages
from metrics.networks import FeatureNetwork, statistics_command
from metrics.protocol import MetricOptions, Protocol
from metrics.reference import Reference, ReferenceProtocol, load_reference, random_features, real_halves, reference_path
from sampling import batch_norm
from sampling.batch_norm import BatchNormMode
from sampling.class_sampling import is_balanced
from sampling.latents import Truncation
from torch_utils import distributed, memory
from torch_utils.distributed import Ranks, on_ranks
from torch_utils.precision import amp_name

KID_SUBSETS_OF_REAL = 20  # few: their mean is all that is told

# ---------------------------------------------------------------------------------------------------------------------
# What images are measured with


@dataclass(frozen=True)
class Measure:
    """What images are measured with, and on which processes.

    network: on `ranks.device`; reference: of that network; real_images: for intra-class distances, or None;
    class_counts: what the classes of generated images are drawn by (`ClassSampling.counts`), None for evenly.
    """

    network: FeatureNetwork
    reference: Reference
    options: MetricOptions
    ranks: Ranks
    real_images: ImageSet | None = None
    class_counts: Sequence[int] | None = None


def evaluation_reference_path(
    options: MetricOptions, data_root: str | Path, name: str, network_name: str, resize: str
) -> Path:
    """The file of reference statistics that the options mean, for a data set's name."""
    if options.reference_file:
        return Path(options.reference_file)
    return reference_path(data_root, name, network_name, resize, options.reference_num)


def load_evaluation(
    options: MetricOptions,
    data_root: str | Path,
    name: str,
    device: torch.device | str,
    dataset: ImageSet | None = None,
) -> tuple[FeatureNetwork, Reference]:
    """The feature network and the reference statistics that the options ask for.

    Args: name: of the data set (`ImageSet.name`); dataset: the data set itself where it is at hand, which a classifier
        must have been fitted to.
    Raises: utils.UserError if one is missing or does not fit, or if too few images are to be generated.
    """
    network = options.load_network(data_root, name, device)
    if dataset is not None and network.name == "classifier":
        classifier.check_fits(network, dataset, classifier.classifier_path(data_root, name))
    path = evaluation_reference_path(options, data_root, name, network.name, network.resize)
    if options.reference_file and not path.is_file():
        raise utils.UserError(f"--reference_file {path}: no such file")
    reference = load_reference(path, network)
    if "accuracy" in network.fitted and utils.is_main_process():
        counts = reference.class_counts or [reference.protocol.num_images / network.num_classes] * network.num_classes
        if text := classifier.warning(network.fitted["accuracy"], counts):
            print(f"warning: {classifier.classifier_path(data_root, name)}: {text}", file=sys.stderr)
    check_options(options, network)
    number, values = options.num_inception_images, network.feature_dim + network.num_classes
    memory.check_fits(4 * number * values, torch.device(device), f"--num_inception_images {number}", "lower it")
    about = reference.protocol
    check_number(options.resolved(about.splits, about.k, about.is_outputs))
    k = options.prdc_k or about.k
    if reference.real_features is not None and len(reference.real_features) <= k:
        raise utils.UserError(f"--prdc_k {k}: {path} holds {len(reference.real_features)} real features")
    return network, reference


def check_content(
    options: MetricOptions, data_root: str | Path, name: str, images: HDF5Dataset, measured: tuple, ranks: Ranks
) -> None:
    """Raise utils.UserError where classifier or reference statistics were made of other images than a data set holds.

    A --reference_file may well be of other images. Args: name: `DataOptions.reference_name`; images: the data set;
        measured: FeatureNetwork and Reference, or None instead of the latter.
    """
    network, reference = measured
    stored = {classifier.classifier_path(data_root, name): network.fitted.get("content")}
    if reference is not None and not options.reference_file:
        path = evaluation_reference_path(options, data_root, name, network.name, network.resize)
        stored[path] = reference.protocol.content
    if any(stored.values()):  # else there is no need to know
        content = on_ranks(ranks, lambda: doctor.content_hash(images))
        for path, made in stored.items():
            contents.check_content(made, content, path, images.path, statistics_command(name, data_root, network.name))


def check_options(options: MetricOptions, network: FeatureNetwork) -> None:
    """Raise utils.UserError where the options do not go with a feature network."""
    if options.is_outputs == "1000" and network.num_classes not in (1000, 1008):
        raise utils.UserError(
            f"--is_outputs 1000: the {network.name} has {utils.counted(network.num_classes, 'class')} of its own"
        )
    prdc.tiling(network.feature_dim, options.prdc_memory_mb)  # raises where that is too little
    if options.kid_subset_size < 2:
        raise utils.UserError("--kid_subset_size 1: pairs of images need two")


def check_number(options: MetricOptions, source: str | None = None) -> None:
    """Raise utils.UserError where resolved options ask for fewer images than their metrics need; source: of these."""
    number, least = options.num_inception_images, max(options.is_splits, options.prdc_k + 1)
    if number < least:
        what = f"{source}: {utils.counted(number, 'image')}; the" if source else f"--num_inception_images {number}: the"
        raise utils.UserError(f"{what} metrics need at least {least}")


# ---------------------------------------------------------------------------------------------------------------------
# Metrics of features


def scored_logits(logits: Tensor, is_outputs: str) -> Tensor:
    """The outputs (N,K) that count for the Inception score, of the logits of a network."""
    return functional.imagenet_logits(logits) if is_outputs == "1000" and logits.shape[1] == 1008 else logits


def knows_classes(network: FeatureNetwork, reference: Reference) -> bool:
    """Whether the network's classes are those of the data set, in the same order."""
    return network.name == "classifier" or (network.num_classes == 1000 and reference.protocol.imagenet_classes)


def metric_keys(network: FeatureNetwork, reference: Reference, n_classes: int) -> list[str]:
    """The metrics that `compute_metrics` gives of a generator of n_classes classes."""
    keys = [network.distance, *(["is_mean", "is_std"] if network.num_classes else [])]
    if reference.real_features is not None:
        keys += ["kid_mean", "kid_std", "precision", "recall", "density", "coverage"]
    return keys + (["accuracy"] if knows_classes(network, reference) and network.num_classes == n_classes else [])


def compute_metrics(
    features: Tensor,
    logits: Tensor,
    labels: Tensor | None,
    network: FeatureNetwork,
    reference: Reference,
    options: MetricOptions,
    seed: int = 0,
) -> dict:
    """All metrics of N generated images.

    Args: features (N,d) and logits (N,K): of `network`, in an order that does not follow the class; labels: int64 (N,),
        the classes that were asked for, or None; reference: of the same network; options: KID's subsets as
        `functional.kid_subset_size` has them; seed: of KID's draws.
    Returns: dict of floats: `fid` or `fd`; where the network has classes, `is_mean` and `is_std`; where there are real
        features, `kid_mean` and `kid_std` of all of them, and `precision`, `recall`, `density`, `coverage` of as many
        real and generated images (the first of each); `accuracy` where there are labels and the network's classes are
        the data set's.
    """
    about = reference.protocol
    options = options.resolved(about.splits, about.k, about.is_outputs)
    if len(features) <= network.feature_dim:
        text = f"{network.distance} of {len(features):,} images with {network.feature_dim} features: too few, biased"
        warnings.warn(text, stacklevel=2)
    moments = functional.moments_of(features).finalize()
    values = {network.distance: functional.frechet_distance(*moments, reference.mu, reference.sigma)}
    if network.num_classes:
        scored = scored_logits(logits, options.is_outputs)
        values["is_mean"], values["is_std"] = functional.inception_score(scored, options.is_splits)
    if reference.real_features is not None:
        real = reference.real_features.to(features.device)
        size = functional.kid_subset_size(options.kid_subset_size, min(len(real), len(features)))
        kid = functional.kernel_distance(real, features, options.kid_subsets, size, seed)
        values["kid_mean"], values["kid_std"] = kid
        n = min(len(real), len(features))
        values |= prdc.prdc(real=real[:n], fake=features[:n], k=options.prdc_k, memory_mb=options.prdc_memory_mb)
    if labels is not None and knows_classes(network, reference):
        values["accuracy"] = functional.accuracy(logits, labels)
    return values


def summary(values: dict) -> str:
    """One line of a dict of metrics for the terminal."""
    parts = [f"{key.upper()} {values[key]:.3f}" for key in ("fid", "fd") if key in values]
    parts += [f"IS {values['is_mean']:.3f} ± {values['is_std']:.3f}"] if "is_mean" in values else []
    parts += [f"KID {values['kid_mean']:.5f} ± {values['kid_std']:.5f}"] if "kid_mean" in values else []
    names = ("precision", "recall", "density", "coverage", "accuracy")
    return ", ".join(parts + [f"{key} {values[key]:.3f}" for key in names if key in values])


# ---------------------------------------------------------------------------------------------------------------------
# Metrics of images


def evaluate_generator(
    G: Generator,
    measure: Measure,
    num_images: int,
    seed: int,
    truncation: Truncation | None = None,
    *,
    ema: bool,
    mode: BatchNormMode = batch_norm.RUNNING,
    ema_power: float | None = None,
) -> dict:
    """Metrics of images 0 to num_images - 1 of a seed, whose classes take turns, or follow `measure.class_counts`.

    They depend neither on the number of ranks nor on the batch size. G, and torch's random state, stay as they are.

    Args: G: on `measure.ranks.device`; truncation: a Truncation or None; ema: whether G is a moving average, for the
        protocol, as ema_power, the relative width of a power-law average; mode: BatchNormMode.
    Returns: dict of floats (see `compute_metrics`, `metrics.features.intra_class`) and `protocol`, a dict; the same on
        all ranks.
    Raises: utils.UserError where the GPU's memory, or the number of images, is too small.
    """
    counts = measure.class_counts
    with batch_norm.prepared(G, mode, seed, truncation, counts) as prepared:
        if mode.bn_mode == "standing":
            distributed.broadcast_buffers([prepared], measure.ranks)  # every GPU rounds in its own way
        images = GeneratedImages(prepared, num_images, seed, mode, truncation, class_counts=counts)
        # A feature network of other classes than G's (an unconditional G, say) cannot tell whether they are right.
        labelled = measure.network.num_classes == G.config.n_classes
        sampling, turns = ("uniform", "classes in turns") if counts is None else ("data", "classes in proportion")
        order = turns + (", shuffled" if mode.block_size else "")
        about_order = {"order": order, "class_sampling": sampling}
        about_G = {"ema": ema, "ema_power": ema_power, "amp": amp_name(G.amp), "truncation": truncation}
        further = {**about_G, **about_order, **mode.protocol()}
        return _measured(measure, images, range(num_images), labelled, seed, further)


def evaluate_images(images: ImageSet, measure: Measure, num_images: int, seed: int) -> dict:
    """Metrics of an ImageSet: as `evaluate_generator`.

    Files are often sorted by class: which images are taken, where num_images are fewer than all, and their order, which
    the splits of the Inception score follow, are drawn from the seed.
    """
    chosen = utils.rng(seed, "evaluated_images").permutation(len(images))[:num_images]
    labelled = images.labels is not None and images.labels.max() < measure.network.num_classes
    further = {"ema": None, "truncation": None, "bn_mode": None, "order": "shuffled"}
    return _measured(measure, images, chosen, labelled, seed, further)


def _measured(measure, images, indices, labelled, seed, further):
    """The metrics of some images and their protocol, on all ranks.

    Args: indices: int (N,), which images, in an order that does not follow the class; labelled: whether `images.labels`
        are classes of the network; seed: of the latents and of the metrics' own draws; further: fields of Protocol.
    """
    indices, network, ranks, real_images = np.asarray(indices), measure.network, measure.ranks, measure.real_images
    batch_size = measure.options.metric_batch_size
    if real_images is not None:
        check_classes(images, indices, real_images)
    # Read in increasing order, as files like it, then put back into the order asked for.
    order = np.argsort(indices)
    features, logits = features_of(network, images, indices[order], ranks, batch_size, "evaluating")
    labels = None if images.labels is None else torch.from_numpy(images.labels[indices])
    if ranks.is_main:
        back = torch.from_numpy(np.argsort(order)).to(features.device)
        features, logits = features[back], logits[back]
    intra = {}
    if real_images is not None:
        intra = intra_class(network, features, labels, real_images, ranks, batch_size)

    def result():
        about = (network, measure.reference, measure.options)
        values = compute_metrics(features, logits, labels if labelled else None, *about, seed)
        protocol = Protocol.of(*about, fake_num=len(indices), seed=seed, **further)
        return values | intra | {"protocol": protocol.to_dict()}

    return on_ranks(ranks, result)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of real images


def has_imagenet_classes(class_names: list[str]) -> bool:
    """Whether these are ImageNet's 1000 classes in the order of their WordNet ids, which is that of its networks."""
    ids = len(class_names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    ends = class_names[0], class_names[-1]
    return ids and list(class_names) == sorted(set(class_names)) and ends == ("n01440764", "n15075141")


def reference_protocol(
    images: ImageSet,
    network: FeatureNetwork,
    options: MetricOptions,
    seed: int,
    selection: str | None = None,
    content: str | None = None,
) -> ReferenceProtocol:
    """The ReferenceProtocol of statistics of an ImageSet, which `compute_reference` follows.

    Args: options: without None for splits, k and outputs; seed: of the random choice of real features, of
        --reference_num images, and of the random splits of the Inception score (files are often sorted by class);
        selection: which images `images` is a selection of; content: of the data set, as `doctor.examine` gives it.
    Raises: UserError where there are fewer images than reference_num.
    """
    if (options.reference_num or 0) > len(images):
        raise utils.UserError(
            f"--reference_num {options.reference_num}: {images.path} has {utils.counted(len(images), 'image')}"
        )
    return ReferenceProtocol.of(
        network,
        dataset=images.name,
        num_images=options.reference_num or len(images),
        seed=seed,
        k=options.prdc_k,
        splits=options.is_splits,
        is_outputs=options.is_outputs,
        reference_num=options.reference_num,
        imagenet_classes=has_imagenet_classes(images.class_names),
        selection=selection,
        content=content,
    )


def compute_reference(
    images: ImageSet,
    network: FeatureNetwork,
    protocol: ReferenceProtocol,
    ranks: Ranks,
    batch_size: int = 64,
    memory_mb: int = MEMORY_MB,
) -> Reference:
    """Statistics of an ImageSet, streaming.

    Batches take turns among the ranks, so that features, and up to rounding in float64 all results, do not depend on
    their number.

    Args: network: on `ranks.device`; protocol: of `reference_protocol`; memory_mb: for the distances of coverage.
    Returns: Reference, the same on all ranks.
    Raises: UserError where there are too few images for the splits or for coverage between two halves; on all ranks
        where an image of any rank cannot be read.
    """
    n, seed, k = protocol.num_images, protocol.seed, protocol.k
    measured = np.arange(n)
    if protocol.reference_num:  # a random subset, in the file's order
        measured = np.sort(utils.rng(seed, "reference_subset").permutation(len(images))[:n])
    chosen = random_features(n, seed)
    if len(chosen) < 2 * (k + 1):
        raise utils.UserError(f"{images.path}: {utils.counted(n, 'image')}: too few for PRDC with --prdc_k {k}")
    split = functional.contiguous_splits(n, protocol.splits)[utils.rng(seed, "is_split").permutation(n)]
    row = torch.full((n,), -1)  # where an image's features go in real_features
    row[chosen] = torch.arange(len(chosen))
    real_features = torch.zeros(len(chosen), network.feature_dim)
    moments, score = functional.RunningMoments(), functional.RunningInceptionScore(protocol.splits)

    def one_pass() -> None:
        disable = None if ranks.is_main else True  # None: shown on terminals only
        with tqdm(total=n, desc="real images", unit="image", disable=disable) as bar:
            for number, start in enumerate(range(0, n, batch_size)):
                part = slice(start, min(start + batch_size, n))
                if number % ranks.world_size == ranks.rank:
                    features, logits = network(images.read(measured[part]).to(ranks.device))
                    moments.update(features)
                    score.update(scored_logits(logits, protocol.is_outputs), split[part].to(ranks.device))
                    kept = row[part] >= 0
                    real_features[row[part][kept]] = features.cpu()[kept]
                bar.update(part.stop - start)

    on_ranks(ranks, one_pass, every=True)
    if ranks.world_size > 1:
        moments.flush()
        moments, score = _merged_over_ranks(moments, ranks), _merged_over_ranks(score, ranks)
        torch.distributed.all_reduce(real_features)  # each row is 0 on all ranks but one
    mu, sigma = (moment.cpu() for moment in moments.finalize())
    about = (real_features.to(ranks.device), (mu, sigma), k, memory_mb)
    scores = {"data": real_scores(*about)}
    counts, names = images.class_counts, None if images.labels is None else images.class_names
    if counts and not is_balanced(counts):
        scores["uniform"] = real_scores(*about, images.labels[measured][chosen])
    ceiling = scores["data"]["coverage"]
    real_score = score.finalize() if network.num_classes else (None, None)
    return Reference(mu, sigma, real_features, *real_score, ceiling, protocol, counts, names, scores)


def real_scores(
    features: Tensor, moments: tuple[Tensor, Tensor], k: int, memory_mb: int, labels: np.ndarray | None = None
) -> dict:
    """What half of the real features score as if they were generated: about the best that a generator can reach.

    Args: features (n,d): in random order, on the device to compute on; moments: mu (d,) and sigma (d,d) of all real
        images, which the Frechet distance is to; labels: see `real_halves`.
    Returns: `num`, the size of the half; `frechet`; `kid` and `coverage`, to the other half.
    """
    one, other = real_halves(features, labels)
    size = functional.kid_subset_size(1000, len(other))
    return {
        "num": len(other),
        "frechet": functional.frechet_distance(*functional.moments_of(other).finalize(), *moments),
        "kid": functional.kernel_distance(one, other, KID_SUBSETS_OF_REAL, size)[0],
        "coverage": prdc.prdc(real=one, fake=other, k=k, memory_mb=memory_mb)["coverage"],
    }


def _merged_over_ranks(running, ranks):
    """The RunningMoments or RunningInceptionScore of what all ranks have seen, on the CPU, the same on all ranks."""
    for name, value in vars(running).items():
        if torch.is_tensor(value):
            setattr(running, name, value.cpu())
    parts = [None] * ranks.world_size
    torch.distributed.all_gather_object(parts, running)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]
