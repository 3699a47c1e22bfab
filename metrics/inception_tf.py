"""The Inception network of 2015-12-05 that FID was defined with (Heusel et al. 2017, arXiv:1706.08500), in PyTorch.

It is torchvision's Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) but for three things: average pooling does not
count the zeros of its padding, the last block pools by maximum, and there are 1008 classes.
Symbols: N images.
"""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception_v3
from torchvision.models.inception import BasicConv2d, InceptionE

FEATURES, CLASSES = 2048, 1008


class PoolBranch(BasicConv2d):
    """The convolution behind an average pooling that counted the zeros of its padding, for the mean without them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W), 3x3 sums divided by 9 everywhere, to (N,C',H,W)."""
        inside = F.avg_pool2d(torch.ones_like(x[:1, :1]), kernel_size=3, stride=1, padding=1)  # share of the 9
        return super().forward(x / inside)


class LastBlock(InceptionE):
    """The 8x8 block whose pooling branch takes the maximum."""

    def _forward(self, x):
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [*super()._forward(x)[:-1], self.branch_pool(pooled)]


def build_trunk() -> nn.Module:
    """The network with torchvision's names of modules, hence of weights; `fc` is its last layer."""
    trunk = inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=CLASSES)
    for block in trunk.children():
        if hasattr(block, "branch_pool"):
            conv = block.branch_pool.conv
            block.branch_pool = PoolBranch(conv.in_channels, conv.out_channels, kernel_size=1)
    trunk.Mixed_7c = LastBlock(2048)
    return trunk


class InceptionTF(nn.Module):
    """(N,3,299,299) in [-1,1] to pooled features (N,2048) and logits (N,1008).

    The logits leave out the bias, as the Inception score of Salimans et al. 2016 (arXiv:1606.03498) did in its code.
    """

    def __init__(self, weights: dict | None = None):
        """weights: state dict of pytorch-fid's or torch-fidelity's file (they are the same), None for random ones."""
        super().__init__()
        self.trunk, self.feature_dim, self.num_classes = build_trunk(), FEATURES, CLASSES
        if weights is not None:
            self.trunk.load_state_dict(weights)
        self.linear, self.trunk.fc = self.trunk.fc, nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)  # dropout is the identity in eval mode
        return features, F.linear(features, self.linear.weight)


class ScriptedInceptionTF(nn.Module):
    """The same from StyleGAN's TorchScript file, whose own resizing, scaling, bias and softmax are passed by.

    Of the script only `layers`, from scaled pixels to pooled features, and the weight of `output` are used.
    """

    def __init__(self, script: torch.jit.ScriptModule):
        """script: what `load_script` gives. Raises: AttributeError or RuntimeError where it is another network."""
        super().__init__()
        self.layers, self.linear, self.feature_dim, self.num_classes = script.layers, script.output, FEATURES, CLASSES
        if self.linear.weight.shape != (CLASSES, FEATURES):
            raise RuntimeError(f"the output layer has shape {tuple(self.linear.weight.shape)}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x).flatten(1).float()
        return features, F.linear(features, self.linear.weight)


def is_script(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive. Loading one runs the code that it brings."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def load_script(path: str | Path) -> torch.jit.ScriptModule:
    """The module of a TorchScript archive, on the CPU. Raises: RuntimeError for a damaged one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # deprecated, but that is the file's format
        return torch.jit.load(str(path), map_location="cpu")
