"""Feature networks: uint8 images to features and class logits, with their weights and the rule that resizes images.

Symbols: N images, R resolution, d features, K classes of the feature network.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import utils
from metrics import classifier
from metrics.dinov2 import DINOv2
from metrics.resizing import RESIZE_RULES
from torch_utils import checkpoints
from torch_utils.precision import full_precision
from utils import Options, option

NETWORK_RESIZE = {  # the rules that a network takes; the first is its default
    "inception": ("bilinear_corners", "tf1", "bilinear", "pil_bicubic", "bilinear_corners_transform_input"),
    "inception_tf": ("tf1", "bilinear", "pil_bicubic", "bilinear_corners"),
    "resnet50": ("bilinear_corners_224",),
    "dinov2": ("pil_bicubic_224",),
    "classifier": ("native",),
}
ALIASES = {  # names of BigGAN-PyTorch and Instance Selection, of StudioGAN, of torch-fidelity
    "inceptionv3": "inception",
    "InceptionV3_torch": "inception",
    "InceptionV3_tf": "inception_tf",
    "inception-v3-compat": "inception_tf",
    "ResNet50_torch": "resnet50",
    "DINOv2_torch": "dinov2",
    "dinov2-vit-l-14": "dinov2",
}
WEIGHTS_FLAG = "--inception_weights"  # the flag that error messages name, unless the caller has another


@dataclass(frozen=True)
class Release:
    """A published file of weights: where it lies, how its sha256 begins, names it has in torch.hub's cache."""

    url: str
    sha256: str
    title: str
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.url.rsplit("/", 1)[1], *self.other_names)


PYTORCH = "https://download.pytorch.org/models"
RELEASES = {
    "inception": Release(f"{PYTORCH}/inception_v3_google-0cc3c7bd.pth", "0cc3c7bd", "torchvision's Inception-v3"),
    "inception_tf": Release(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
        "the Inception network of 2015-12-05",
        ("weights-inception-2015-12-05-6726825d.pth",),  # torch-fidelity's name of the same file
    ),
    # Version 1 of torchvision's weights: the one that Instance Selection was published with
    "resnet50": Release(f"{PYTORCH}/resnet50-0676ba61.pth", "0676ba61", "torchvision's ResNet-50"),
    "dinov2": Release(
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b24",
        "DINOv2's ViT-L/14",
    ),
}


def network_name(text: str) -> str:
    """argparse type: a feature network's name, aliases resolved."""
    return ALIASES.get(text, text)


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Which feature network looks at images, and how."""

    title = "metrics"

    feature_network: str = option(
        "inception",
        "inception (alias inceptionv3): torchvision's, the reference family's FID; inception_tf: TensorFlow's of "
        "2015-12-05, the FID of papers; resnet50: torchvision's; dinov2: ViT-L/14, of FD-DINOv2; classifier: fitted to "
        "the data; the last three are reported as FD",
        choices=tuple(NETWORK_RESIZE),
        kind=network_name,
    )
    inception_weights: str | None = option(
        None,
        "weights of the feature network (for inception_tf also StyleGAN's inception-2015-12-05.pt, whose code is "
        "run: name only a file that you trust); else from torch.hub's cache, else downloaded",
        metavar="FILE",
        changeable=True,
    )
    resize: str | None = option(
        None,
        "how images reach the network: bilinear_corners is the reference family's (default of inception), tf1 "
        "torch-fidelity's and StyleGAN's (of inception_tf), bilinear pytorch-fid's, pil_bicubic clean-fid's; "
        "bilinear_corners_transform_input and _224 are Instance Selection's, pil_bicubic_224 is dinov2's, native the "
        "classifier's",
        choices=tuple(dict.fromkeys(rule for rules in NETWORK_RESIZE.values() for rule in rules)),
    )
    metric_batch_size: int = option(64, "images a pass, for metrics", kind=utils.positive_int, changeable=True)

    def check_network(self) -> None:
        """Raise utils.UserError where weights or rule do not go with the network, before anything is loaded."""
        check_choice(self.feature_network, self.inception_weights, self.resize)

    def load_network(
        self, data_root: str | Path, dataset_name: str, device: str | torch.device = "cpu"
    ) -> "FeatureNetwork":
        """The network, on `device`. Raises: as `load_feature_network`."""
        files = (data_root, dataset_name, self.inception_weights, self.resize)
        return load_feature_network(self.feature_network, *files, device)


class FeatureNetwork(nn.Module):
    """uint8 images to features and class logits, always in eval mode, without gradients, in full float32.

    Attributes: name; resize: name of the rule that brings images to the network; weights_hash: sha256 hex;
        feature_dim: d; num_classes: K, 0 where it knows none; resolution: the only R it takes, or None for any;
        distance: the metric key of its Frechet distance, `fid` for Inception, else `fd`; fitted: what a classifier was
        fitted to (`classifier.load_classifier`), {} for other networks.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        resize: str,
        weights_hash: str,
        resolution: int | None = None,
        fitted: dict | None = None,
    ):
        super().__init__()
        self.fitted = fitted or {}
        self.net = net
        self.name, self.resize, self.weights_hash, self.resolution = name, resize, weights_hash, resolution
        self.feature_dim, self.num_classes = net.feature_dim, net.num_classes
        self.distance = "fid" if name.startswith("inception") else "fd"
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in eval mode: running statistics are part of the measure."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N,3,R,R) to features (N,d) and logits (N,K), float32. Raises: UserError for another R."""
        if images.dtype != torch.uint8:
            raise TypeError(f"a feature network takes uint8 images, not {images.dtype}")
        if self.resolution not in (None, images.shape[-1]):
            size, own = images.shape[-1], self.resolution
            raise utils.UserError(f"the {self.name} was fitted to {own}x{own} images, these are {size}x{size}")
        with full_precision(images.device.type):
            return self.net(RESIZE_RULES[self.resize](images))


class TorchvisionNetwork(nn.Module):
    """A network that torchvision's `build` makes, for images (N,3,S,S): to pooled (N,2048) and logits (N,1000)."""

    def __init__(self, weights: dict | None = None):
        """weights: torchvision's state dict, or None for random ones."""
        super().__init__()
        self.trunk, self.feature_dim, self.num_classes = self.build(), 2048, 1000
        if weights is not None:
            self.trunk.load_state_dict({k: v for k, v in weights.items() if not k.startswith("AuxLogits.")})
        self.linear, self.trunk.fc = self.trunk.fc, nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)  # dropout is the identity in eval mode
        return features, self.linear(features)


class InceptionV3(TorchvisionNetwork):
    """Inception-v3 without its auxiliary head; S is 299."""

    def build(self) -> nn.Module:
        from torchvision.models import inception_v3  # here, because importing torchvision takes a second

        return inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False)


class ResNet50(TorchvisionNetwork):
    """ResNet-50; S is 224."""

    def build(self) -> nn.Module:
        from torchvision.models import resnet50

        return resnet50(weights=None)


def statistics_command(dataset_name: str, data_root: str | Path, name: str) -> str:
    """The command that makes reference statistics; dataset_name may be that of centre crops, as X_crop64 is of X."""
    cropped = re.fullmatch(r"(.+)_crop(\d+)", dataset_name)
    if cropped and not (Path(data_root) / f"{dataset_name}.hdf5").exists():
        dataset_name = f"{cropped[1]} --crop_size {cropped[2]}"
    flags = f"--dataset {dataset_name} --data_root {data_root} --feature_network {name}"
    return f"python calculate_inception_moments.py {flags}"


def load_feature_network(
    name: str,
    data_root: str | Path,
    dataset_name: str,
    weights: str | Path | None = None,
    resize: str | None = None,
    device: str | torch.device = "cpu",
    weights_flag: str = WEIGHTS_FLAG,
) -> FeatureNetwork:
    """The feature network of a data set, on `device`.

    Args: name: a key of NETWORK_RESIZE or of ALIASES; data_root, dataset_name (`HDF5Dataset.name`): where the
        classifier lies; weights: file of another network's weights, or None for torch.hub's cache or a download;
        resize: a rule of the network, None for its default; weights_flag: the flag of `weights`, for error messages.
    Raises: UserError for an unknown name or rule, and for missing or foreign weights.
    """
    name, resize = check_choice(name, weights, resize, weights_flag)
    if name == "classifier":
        return _load_classifier(data_root, dataset_name, resize).to(device)
    return _load_published(name, weights, resize, weights_flag).to(device)


def check_choice(
    name: str, weights: str | Path | None, resize: str | None, weights_flag: str = WEIGHTS_FLAG
) -> tuple[str, str]:
    """The network's own name and its resize rule, as `load_feature_network` takes them. Raises: UserError."""
    name = network_name(name)
    if name not in NETWORK_RESIZE:
        raise utils.UserError(f"--feature_network {name}: not one of {', '.join(NETWORK_RESIZE)}")
    rules = NETWORK_RESIZE[name]
    if resize not in (None, *rules):
        raise utils.UserError(f"--resize {resize}: the feature network {name} takes {' or '.join(rules)}")
    if name == "classifier" and weights is not None:
        raise utils.UserError(f"{weights_flag}: the classifier has weights of its own, beside the data set")
    return name, resize or rules[0]


def _load_classifier(data_root, dataset_name, resize):
    path = classifier.classifier_path(data_root, dataset_name)
    if not path.exists():
        command = statistics_command(dataset_name, data_root, "classifier")
        raise utils.UserError(f"no classifier {path}; fit it with: {command}")
    net, fitted = classifier.load_classifier(path)
    about = {"weights_hash": classifier.weights_hash(net), "resolution": net.resolution, "fitted": fitted}
    return FeatureNetwork(net, name="classifier", resize=resize, **about)


def _load_published(name, weights, resize, weights_flag):
    from metrics.inception_tf import is_script  # here, because importing torchvision takes a second

    release = RELEASES[name]
    if weights is None:
        path, digest = _released_file(release, weights_flag)
    else:
        path, digest = _named_file(Path(weights), weights_flag)
    # TorchScript brings code that is run: no file that the user has not named may be one.
    scripted = is_script(path)
    if scripted and (name != "inception_tf" or weights is None):
        raise utils.UserError(f"{path} is TorchScript; it goes with the network inception_tf and {weights_flag}")
    try:
        net = _build(name, path, scripted)
    except (RuntimeError, AttributeError, TypeError) as error:  # other keys or shapes; not a state dict
        raise utils.UserError(f"{path} does not hold the weights of {release.title}") from error
    return FeatureNetwork(net, name=name, resize=resize, weights_hash=digest)


def _build(name, path, scripted):
    from metrics.inception_tf import InceptionTF, ScriptedInceptionTF, load_script

    if scripted:
        return ScriptedInceptionTF(load_script(path))
    classes = {"inception": InceptionV3, "inception_tf": InceptionTF, "resnet50": ResNet50, "dinov2": DINOv2}
    return classes[name](checkpoints.load(path))


def _named_file(path, weights_flag):
    """A file that the user has named, and its sha256: recorded, whatever it is."""
    if not path.is_file():
        raise utils.UserError(f"{weights_flag} {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        return path, utils.sha256(path)
    except OSError as error:
        raise utils.UserError(f"{weights_flag}: cannot read {path}: {error.strerror}") from error


def _released_file(release, weights_flag):
    """The path and sha256 of published weights in torch.hub's cache, downloaded where they are missing."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = next((folder / name for name in release.names if (folder / name).exists()), folder / release.names[0])
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(release.url, str(path), hash_prefix=release.sha256)
        except (OSError, RuntimeError) as error:  # no network; a file that is not the one we asked for
            network_flag = "--feature_network" if weights_flag == WEIGHTS_FLAG else "--embedding"
            raise utils.UserError(
                f"no weights of {release.title}: downloading {release.url} failed ({error}); fetch it elsewhere and "
                f"put it at {path}, name it with {weights_flag}, or use {network_flag} classifier instead"
            ) from error
    digest = utils.sha256(path)
    if not digest.startswith(release.sha256):
        raise utils.UserError(f"{path} is damaged (its sha256 does not begin with {release.sha256}); delete it")
    return path, digest
