"""The bottleneck blocks of BigGAN-deep (Brock et al. 2019, appendix B, figure 16); BigGAN.py makes G and D of them.

A stage is `depth` blocks, one of which changes size and channels: G's last, D's first. Shortcuts have no weights of
their own where a map is passed on: G drops the channels that it no longer needs, D adds new ones beside those it has.
`style` 'studiogan' is PyTorch-StudioGAN's own variant: shortcuts are 1x1 convolutions, and D's blocks pool before their
last ReLU instead of after it.

Symbols in shape comments: N batch, C input and C' output channels, H and W the input's height and width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layers
from model_config import ModelConfig

REDUCTION = 4  # of the channels within a block: of G's input and D's output


class GBlock(nn.Module):
    """BN-ReLU-conv1-BN-ReLU-(up)-conv3-BN-ReLU-conv3-BN-ReLU-conv1 and shortcut.

    (N,C,H,W) to (N,C',H,W), or to (N,C',2H,2W) with `up`. `norm` makes a normalisation layer for a number of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Callable, sn: dict, up: bool, style: str):
        super().__init__()
        hidden = max(in_channels // REDUCTION, 1)
        self.out_channels, self.up = out_channels, up
        self.bn1 = norm(in_channels)
        self.bn2, self.bn3, self.bn4 = norm(hidden), norm(hidden), norm(hidden)
        conv = layers.UpConv2d if up else layers.Conv2d
        self.conv1 = layers.Conv2d(in_channels, hidden, 1, **sn)
        self.conv2 = conv(hidden, hidden, **sn)
        self.conv3 = layers.Conv2d(hidden, hidden, **sn)
        self.conv4 = layers.Conv2d(hidden, out_channels, 1, **sn)
        self.conv_sc = conv(in_channels, out_channels, 1, **sn) if style == "studiogan" else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, condition)))  # (N,C/4,H,W)
        h = self.conv2(F.relu(self.bn2(h, condition)))  # (N,C/4,H,W) or (N,C/4,2H,2W), as all that follow
        h = self.conv3(F.relu(self.bn3(h, condition)))
        return self.conv4(F.relu(self.bn4(h, condition))) + self._shortcut(x)

    def _shortcut(self, x):
        if self.conv_sc:
            return self.conv_sc(x)
        x = x[:, : self.out_channels]
        return layers.upsample(x) if self.up else x


class DBlock(nn.Module):
    """ReLU-conv1-ReLU-conv3-ReLU-conv3-ReLU-(pool)-conv1 and shortcut.

    (N,C,H,W) to (N,C',H,W), or to (N,C',H/2,W/2) with `down`. With `relu_shortcut` the shortcut sees relu(x).
    """

    def __init__(self, in_channels: int, out_channels: int, sn: dict, down: bool, style: str, relu_shortcut: bool):
        super().__init__()
        hidden = max(out_channels // REDUCTION, 1)
        self.down, self.relu_shortcut, self.full_shortcut = down, relu_shortcut, style == "studiogan"
        self.pool_first = down and self.full_shortcut
        self.conv1 = layers.Conv2d(in_channels, hidden, 1, **sn)
        self.conv2 = layers.Conv2d(hidden, hidden, **sn)
        self.conv3 = (layers.DownConv2d if self.pool_first else layers.Conv2d)(hidden, hidden, **sn)
        self.conv4 = layers.Conv2d(hidden, out_channels, 1, **sn)
        self.conv_sc = None
        if self.full_shortcut and (down or in_channels != out_channels):
            self.conv_sc = (layers.DownConv2d if down else layers.Conv2d)(in_channels, out_channels, 1, **sn)
        elif not self.full_shortcut and in_channels != out_channels:
            self.conv_sc = layers.Conv2d(in_channels, out_channels - in_channels, 1, **sn)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(x)
        h = self.conv2(F.relu(self.conv1(activated)))  # (N,C'/4,H,W)
        h = F.relu(self.conv3(F.relu(h)))
        if self.down and not self.pool_first:
            h = F.avg_pool2d(h, 2)
        return self.conv4(h) + self._shortcut(activated if self.relu_shortcut else x)

    def _shortcut(self, x):
        if self.full_shortcut:
            return self.conv_sc(x) if self.conv_sc else x
        x = F.avg_pool2d(x, 2) if self.down else x
        return torch.cat([x, self.conv_sc(x)], dim=1) if self.conv_sc else x


def generator_blocks(in_channels: int, out_channels: int, norm: Callable, sn: dict, config: ModelConfig) -> list:
    """The blocks of one stage of G: all but the last keep size and channels."""
    last = GBlock(in_channels, out_channels, norm, sn, True, config.deep_style)
    same = (GBlock(in_channels, in_channels, norm, sn, False, config.deep_style) for _ in range(config.G_depth - 1))
    return [*same, last]


def discriminator_blocks(in_channels: int, out_channels: int, down: bool, sn: dict, config: ModelConfig) -> list:
    """The blocks of one stage of D: all but the first keep size and channels."""
    options = config.deep_style, config.D_relu_shortcut
    first = DBlock(in_channels, out_channels, sn, down, *options)
    return [first, *(DBlock(out_channels, out_channels, sn, False, *options) for _ in range(config.D_depth - 1))]
