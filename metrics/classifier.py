"""The `classifier` feature network: a small convolutional network fitted to the training set itself.

For data that ImageNet features do not describe, and for machines without Inception's weights. Its distances are
reported as FD, never as FID, and statistics are tied to the hash of its weights.

Symbols: N images of a batch, R resolution, K classes.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import utils
from image_datasets.image_sets import ImageSet
from torch_utils import checkpoints, schema
from torch_utils.images import to_float

FEATURES = 128
HELD_OUT = 0.1  # share of every class that is kept for the accuracy
BATCH_SIZE, LEARNING_RATE = 64, 2e-3  # of the fit


class HalvingBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv:1603.05027) that halves the resolution, rounding up."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return h + self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True))


class Classifier(nn.Module):
    """Images to class logits by way of 128 pooled features.

    Strided convolutions bring the image to at most 32 pixels a side, halving blocks to at most 4, then a global mean.
    Args: resolution: R of the images; num_classes: K.
    """

    def __init__(self, resolution: int, num_classes: int):
        super().__init__()
        self.resolution, self.num_classes, self.feature_dim = resolution, num_classes, FEATURES
        reductions = max(0, math.ceil(math.log2(resolution / 32)))
        blocks = max(1, math.ceil(math.log2(resolution / 2**reductions / 4)))
        widths = [max(16, FEATURES // 2 ** (blocks - i)) for i in range(blocks + 1)]  # doubles up to FEATURES
        stem = [nn.Conv2d(3, widths[0], 3, stride=2 if reductions else 1, padding=1)]
        for _ in range(reductions - 1):
            stem += [nn.ReLU(), nn.Conv2d(widths[0], widths[0], 3, stride=2, padding=1)]
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*(HalvingBlock(widths[i], widths[i + 1]) for i in range(blocks)))
        self.norm = nn.BatchNorm2d(FEATURES)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N,3,R,R) in [-1,1] to features (N,128) and logits (N,K)."""
        h = self.blocks(self.stem(x))  # (N,128,4,4) where R is a power of two
        features = F.relu(self.norm(h)).mean(dim=(2, 3))
        return features, self.linear(features)


def classifier_path(data_root: str | Path, dataset_name: str) -> Path:
    return Path(data_root) / f"{dataset_name}_classifier.pth"


def save_classifier(
    network: Classifier,
    path: str | Path,
    *,
    dataset_name: str,
    accuracy: float,
    seed: int,
    epochs: int,
    content: str | None = None,
    class_names: list[str] | None = None,
) -> None:
    """One file with the weights and what they were fitted to; content: of the data set (`doctor.content_hash`)."""
    config = {"resolution": network.resolution, "num_classes": network.num_classes}
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    fitted = {"dataset": dataset_name, "accuracy": accuracy, "seed": seed, "epochs": epochs}
    fitted |= {key: value for key, value in (("content", content), ("class_names", class_names)) if value is not None}
    checkpoints.save({"format": "classifier 1", "config": config, "fitted": fitted, "weights": weights}, path)


FILE = {
    "config": {"resolution": schema.POSITIVE, "num_classes": schema.POSITIVE},
    "fitted": {"dataset?": str, "accuracy?": float, "content?": (None, str), "class_names?": (None, [str])},
    "weights": schema.STATE,
}


def load_classifier(path: str | Path) -> tuple[Classifier, dict]:
    """The network in eval mode and the dict of what it was fitted to (`dataset`, `accuracy`, `seed`, `epochs`;
    in newer files `content` and `class_names`).

    Raises: UserError if the file is missing, damaged or something else.
    """
    stored = checkpoints.load(path)
    if not isinstance(stored, dict) or stored.get("format") != "classifier 1":
        raise utils.UserError(f"{path} is not a classifier written by calculate_inception_moments.py")
    wrong = schema.problem(stored, FILE)
    try:
        if wrong is None and stored["weights"]["linear.weight"].shape[0] == stored["config"]["num_classes"]:
            network = Classifier(**stored["config"])
            network.load_state_dict(stored["weights"])
            checkpoints.check_finite(stored["weights"], path, "the classifier")
            return network.eval(), stored["fitted"]
    except (RuntimeError, TypeError, KeyError, IndexError):  # other names or shapes
        pass
    wrong = wrong or "its weights are not those of its config"
    raise utils.UserError(f"{path} is not a classifier as calculate_inception_moments.py writes them: {wrong}")


def weights_hash(network: nn.Module) -> str:
    """sha256 of the names and values of a network's weights: the same for the same weights, whatever the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_fits(network: Classifier, dataset: ImageSet, path: str | Path) -> None:
    """Refuse a classifier (read from `path`) whose resolution or number of classes is not that of the data set."""
    fitted, needed = ((it.num_classes, it.resolution) for it in (network, dataset))
    if fitted != needed:
        raise utils.UserError(
            f"{path} was fitted to {fitted[0]} classes at {fitted[1]}x{fitted[1]}, but {dataset.path} has {needed[0]} "
            f"at {needed[1]}x{needed[1]}; fit it again with calculate_inception_moments.py --refit_classifier"
        )


def quality(accuracy: float, counts: list[int]) -> str:
    """A held-out accuracy in words, beside what taking every image for the largest class gives."""
    chance = max(counts) / sum(counts)
    return f"held-out accuracy {100 * accuracy:.2f} % (all taken for the largest class: {100 * chance:.2f} %)"


def warning(accuracy: float, counts: list[int]) -> str | None:
    """What is to be said of a classifier that hardly knows the classes, of so many images each; None of a better one.

    Near chance: not a tenth of the way from the share of the largest class to 1, or within two standard deviations of
    what that gives on so few held-out images.
    """
    chance = max(counts) / sum(counts)
    deviation = math.sqrt(chance * (1 - chance) / max(1, HELD_OUT * sum(counts)))
    if accuracy >= chance + max(0.1 * (1 - chance), 2 * deviation):
        return None
    return (
        f"{quality(accuracy, counts)}: its features hardly know the classes, distances and accuracies by them mean "
        "little. Are the labels right? Else more --classifier_epochs with --refit_classifier (of "
        "calculate_inception_moments.py), or --feature_network inception"
    )


def stratified_split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of training and held-out images: a tenth of every class, at least one where there are two, held out.

    labels: int64 (N,). Returns: two int64 arrays, ascending, a partition of range(N).
    """
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = utils.rng(seed, "classifier_split", int(label)).permutation(np.flatnonzero(labels == label))
        number = max(round(HELD_OUT * len(members)), 1) if len(members) > 1 else 0
        held_out[members[:number]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def random_shift(images: Tensor, generator: np.random.Generator, reach: int) -> Tensor:
    """Move each image (N,3,R,R) by up to `reach` whole pixels either way, its border repeated."""
    n, size = len(images), images.shape[-1]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    down, right = torch.from_numpy(generator.integers(0, 2 * reach + 1, (2, n))).to(images.device)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view (N,3,positions,positions,R,R)
    shifted = windows[torch.arange(n, device=images.device), :, down, right]
    return shifted.contiguous(memory_format=torch.channels_last)  # another layout rounds otherwise: other weights


def fit_classifier(
    dataset: ImageSet, *, seed: int = 0, epochs: int = 10, device: str | torch.device = "cpu"
) -> tuple[Classifier, float]:
    """Fit a classifier to a data set: AdamW, one cosine cycle, images shifted by up to a sixteenth of their side.

    No flips: a mirrored digit or letter is another one. On the CPU the weights are a function of the arguments.
    Args: epochs: passes over nine tenths of the images.
    Returns: the network on `device` in eval mode, its accuracy on the tenth that was held out.
    Raises: UserError where there are fewer than two classes, or too few images to hold any out.
    """
    if dataset.num_classes < 2:
        raise utils.UserError(f"{dataset.path} has one class: a classifier needs two; use --feature_network inception")
    train, held_out = stratified_split(dataset.labels, seed)
    if not len(held_out):
        raise utils.UserError(f"{dataset.path}: one image a class is too few to fit a classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(utils.rng(seed, "classifier_init").integers(2**63)))
        network = Classifier(dataset.resolution, dataset.num_classes).to(device).train()
    batches = math.ceil(len(train) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    with tqdm(total=epochs * batches, desc="fitting the classifier", unit="batch", disable=None) as bar:
        for epoch in range(epochs):
            generator = utils.rng(seed, "classifier_epoch", epoch)
            for indices in np.array_split(generator.permutation(train), batches):
                images = to_float(dataset.read(indices).to(device))
                images = random_shift(images, generator, max(1, dataset.resolution // 16))
                labels = dataset.labels_at(indices).to(device)
                loss = F.cross_entropy(network(images)[1], labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return network.eval(), _held_out_accuracy(network, dataset, held_out, device)


@torch.no_grad()
def _held_out_accuracy(network, dataset, indices, device):
    """Share of the images at `indices` that the network, in eval mode, assigns to their class."""
    right = 0
    for part in np.array_split(indices, math.ceil(len(indices) / BATCH_SIZE)):
        logits = network(to_float(dataset.read(part).to(device)))[1]
        right += (logits.argmax(1).cpu() == dataset.labels_at(part)).sum().item()
    return right / len(indices)
