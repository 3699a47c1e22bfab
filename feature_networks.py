"""Feature networks: uint8 images to features and class logits, with their weights and the rule that resizes images.

Symbols: N images, R resolution, d features, K classes of the feature network.
"""

import contextlib
import re
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import classifier
import utils

INCEPTION_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
INCEPTION_HASH = "0cc3c7bd"  # the sha256 of torchvision's file begins so
NETWORK_RESIZE = {"inception": ("bilinear_corners",), "classifier": ("native",)}  # the first is the default
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALIASES = {"inceptionv3": "inception"}  # the reference family's names


def network_name(text):
    """argparse type: a feature network's name, aliases resolved."""
    return ALIASES.get(text, text)


def add_feature_args(parser):
    """Flags that choose the feature network. Returns their argparse group."""
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--feature_network",
        type=network_name,
        choices=tuple(NETWORK_RESIZE),
        default="inception",
        help="inception (alias inceptionv3): torchvision's, reported as FID; classifier: fitted to the data, as FD",
    )
    group.add_argument(
        "--inception_weights", metavar="FILE", help="torchvision's Inception-v3 weights; else torch.hub's cache"
    )
    rules = tuple(dict.fromkeys(rule for rules in NETWORK_RESIZE.values() for rule in rules))
    group.add_argument("--resize", choices=rules, help="how images reach the network; None: the network's own rule")
    group.add_argument("--metric_batch_size", type=utils.positive_int, default=64, help="images a pass, for metrics")
    return group


# ---------------------------------------------------------------------------------------------------------------------
# Feature networks


def bilinear_corners(images, size=299):
    """uint8 (N,3,R,R) to (N,3,299,299): [0,1], ImageNet's mean and deviation, bilinear with aligned corners."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = (images.float() / 255 - mean) / std
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)


RESIZE_RULES = {"bilinear_corners": bilinear_corners, "native": utils.to_float}


class FeatureNetwork(nn.Module):
    """uint8 images to features and class logits, always in eval mode, without gradients, in full float32.

    Attributes: name; resize: name of the rule that brings images to the network; weights_hash: sha256 hex;
        feature_dim: d; num_classes: K; resolution: the only R it takes, or None for any; distance: the metric key of
        its Frechet distance, `fid` for Inception, else `fd`.
    """

    def __init__(self, net, *, name, resize, weights_hash, resolution=None):
        super().__init__()
        self.net = net
        self.name, self.resize, self.weights_hash, self.resolution = name, resize, weights_hash, resolution
        self.feature_dim, self.num_classes = net.feature_dim, net.num_classes
        self.distance = "fid" if name.startswith("inception") else "fd"
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        """Stays in eval mode: running statistics are part of the measure."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images):
        """images: uint8 (N,3,R,R). Returns: features (N,d), logits (N,K), float32. Raises: UserError for another R."""
        if self.resolution not in (None, images.shape[-1]):
            size, own = images.shape[-1], self.resolution
            raise utils.UserError(f"the {self.name} was fitted to {own}x{own} images, these are {size}x{size}")
        with full_precision(images.device.type):
            return self.net(RESIZE_RULES[self.resize](images))


@contextlib.contextmanager
def full_precision(device_type):
    """Neither autocast nor TF32, whatever training uses: both move features by 1e-3, hence distances."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class InceptionV3(nn.Module):
    """torchvision's Inception-v3 without its auxiliary head: (N,3,299,299) to pooled (N,2048) and logits (N,1000)."""

    def __init__(self, weights=None):
        """weights: torchvision's state dict, or None for random ones."""
        super().__init__()
        from torchvision.models import inception_v3  # here, because importing torchvision takes a second

        trunk = inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False)
        if weights is not None:
            trunk.load_state_dict({k: v for k, v in weights.items() if not k.startswith("AuxLogits.")})
        self.linear, trunk.fc = trunk.fc, nn.Identity()
        self.trunk, self.feature_dim, self.num_classes = trunk, 2048, 1000

    def forward(self, x):
        features = self.trunk(x)  # dropout is the identity in eval mode
        return features, self.linear(features)


def statistics_command(dataset_name, data_root, name):
    """The command that makes reference statistics; dataset_name may be that of centre crops, as X_crop64 is of X."""
    cropped = re.fullmatch(r"(.+)_crop(\d+)", dataset_name)
    if cropped and not (Path(data_root) / f"{dataset_name}.hdf5").exists():
        dataset_name = f"{cropped[1]} --crop_size {cropped[2]}"
    return (
        f"python calculate_inception_moments.py --dataset {dataset_name} --data_root {data_root} "
        f"--feature_network {name}"
    )


def load_feature_network(name, data_root, dataset_name, weights=None, resize=None, device="cpu"):
    """The feature network of a data set, on `device`.

    Args: name: inception (alias inceptionv3) or classifier; data_root, dataset_name (`HDF5Dataset.name`): where the
        classifier lies; weights: file of Inception's weights, or None for torch.hub's cache or a download;
        resize: a rule of the network, None for its default.
    Raises: UserError for an unknown name or rule, and for missing or foreign weights.
    """
    name = network_name(name)
    if name not in NETWORK_RESIZE:
        raise utils.UserError(f"--feature_network {name}: not one of {', '.join(NETWORK_RESIZE)}")
    rules = NETWORK_RESIZE[name]
    if resize not in (None, *rules):
        raise utils.UserError(f"--resize {resize}: the feature network {name} takes {' or '.join(rules)}")
    if name == "classifier":
        network = _load_classifier(data_root, dataset_name, resize or rules[0])
    else:
        network = _load_inception(weights, resize or rules[0])
    return network.to(device)


def _load_classifier(data_root, dataset_name, resize):
    path = classifier.classifier_path(data_root, dataset_name)
    if not path.exists():
        command = statistics_command(dataset_name, data_root, "classifier")
        raise utils.UserError(f"no classifier {path}; fit it with: {command}")
    net, _ = classifier.load_classifier(path)
    digest = classifier.weights_hash(net)
    return FeatureNetwork(net, name="classifier", resize=resize, weights_hash=digest, resolution=net.resolution)


def _load_inception(weights, resize):
    path = Path(weights) if weights else _cached_inception()
    state = utils.load_torch(path)
    try:
        net = InceptionV3(state)
    except (RuntimeError, AttributeError) as error:  # other keys or shapes; not a state dict
        raise utils.UserError(f"{path} does not hold the weights of torchvision's Inception-v3") from error
    return FeatureNetwork(net, name="inception", resize=resize, weights_hash=utils.sha256(path))


def _cached_inception():
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_HASH)
        except (OSError, RuntimeError) as error:  # no network; a file that is not the one we asked for
            raise utils.UserError(
                f"no Inception-v3 weights: downloading {INCEPTION_URL} failed ({error}); fetch it elsewhere and put it "
                f"at {path}, name it with --inception_weights, or use --feature_network classifier"
            ) from error
    if not utils.sha256(path).startswith(INCEPTION_HASH):
        raise utils.UserError(f"{path} is damaged (its sha256 does not begin with {INCEPTION_HASH}); delete it")
    return path
