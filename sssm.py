"""Spatial self-modulation (SSM): a second stream in the generator that modulates every position and channel.

The stream starts from linear([e(y), z]) with a class embedding e of its own and grows beside the main stream, through
convolutions of the same widths. After each whole main stage, 1x1 convolutions of the stream give a gain map a and a
bias map b of the main stream's shape, and the main stream is normalised per sample and modulated:

    h <- (h - mean(h)) / std(h),    h <- h * (1 + a) + b        (variant `voxel`, the published form)

Symbols in shape comments: N batch, C and C' channels of the stage before and of this one, H and W this stage's size.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

import layers

# Guards the division for a constant map, of which the published code makes NaN; below float32's rounding otherwise.
EPS = 1e-12


def normalize_sample(h):
    """h (N,C,H,W) minus its mean, over its unbiased standard deviation, both over (C,H,W) of each sample."""
    n = h[0].numel()
    return F.group_norm(h, 1, eps=EPS) * math.sqrt((n - 1) / n)  # group_norm divides by the biased one


class VoxelStage(nn.Module):
    """One stage of the stream and the modulation that it gives to the main stream."""

    def __init__(self, in_channels, out_channels, sn):
        super().__init__()
        self.conv1 = layers.UpConv2d(in_channels, out_channels, **sn)
        self.conv2 = layers.Conv2d(out_channels, out_channels, **sn)
        self.gain = layers.Conv2d(out_channels, out_channels, 1, **sn)
        self.bias = layers.Conv2d(out_channels, out_channels, 1, **sn)

    def forward(self, s, h):
        """s (N,C,H/2,W/2) of the stream, h (N,C',H,W) of the main stream; returns the new s (N,C',H,W) and h."""
        s = self.conv2(F.relu(self.conv1(F.relu(s))))
        h = torch.addcmul(self.bias(s), normalize_sample(h), 1 + self.gain(s))
        return s, h


STAGES = {"voxel": VoxelStage}


class SpatialSelfModulation(nn.Module):
    """The whole second stream: `start` makes its first feature map, then each of `stages` goes with a stage of G."""

    def __init__(self, config, sn):
        super().__init__()
        self.bottom_width = config.bottom_width
        widths = config.G_widths
        self.embedding = layers.Embedding(config.n_classes, config.shared_dim)
        self.linear = layers.Linear(config.shared_dim + config.dim_z, widths[0] * config.bottom_width**2, **sn)
        stage = STAGES[config.ssm]
        self.stages = nn.ModuleList(stage(i, o, sn) for i, o in pairwise(widths))

    def start(self, z, y):
        """z (N,dim_z), all of it also where the main stream splits it, and y (N,) to s (N,C,bottom,bottom)."""
        s = self.linear(torch.cat([self.embedding(y), z], dim=1))
        return s.view(len(z), -1, self.bottom_width, self.bottom_width)
