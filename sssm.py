"""Spatial self-modulation (SSM): a second stream in the generator that modulates every position and channel.

The stream starts from linear([e(y), z]) with a class embedding e of its own and grows beside the main stream, through
convolutions of the same widths. After each whole main stage, 1x1 convolutions ("heads") of the stream s give maps, with
which the main stream h is modulated:

    voxel (the published form)   h <- (h - mean(h)) / std(h),   h <- h * (1 + a) + b     a, b of h's shape; per sample
    gain                         h <- h * (1 + a)
    group_gain                   the same, with C'/4 maps that are repeated 4 times along the channels
    global_voxel                 h <- (h - mean(h)) / std(h) per channel, h <- h * (1 + A) + B with A and B per channel
                                 from the spatial mean of s; then voxel

Symbols in shape comments: N batch, C and C' channels of the stage before and of this one, H and W this stage's size.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import layers
from model_config import ModelConfig
from torch_utils.precision import widened

# Guards the division for a constant map, of which the published code makes NaN; below float32's rounding otherwise.
EPS = 1e-12


class StandardizeModulate(torch.autograd.Function):
    """(h - mean) / std * gain + bias: h (N,C,H,W), mean and unbiased standard deviation of each sample over `dims`.

    gain and bias have h's shape, or (N,C,1,1). Statistics are float32 at least, whatever the type of h. Plain autograd
    would keep the standardized map for its backward; it is as soon made again from h.
    """

    @staticmethod
    def forward(ctx, h, gain, bias, dims):
        x = widened(h)
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        n = h.numel() // mean.numel()
        square = torch.linalg.vector_norm(centred, 2, dims, keepdim=True).square()
        rstd = (square / (n - 1) + EPS).rsqrt()
        ctx.save_for_backward(h, gain, mean, rstd)
        ctx.dims, ctx.n = dims, n
        return torch.addcmul(bias, centred.mul_(rstd), gain).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        h, gain, mean, rstd = ctx.saved_tensors
        standardized = (widened(h) - mean).mul_(rstd)
        of_gain = (gradient * standardized).sum_to_size(gain.shape)
        of_bias = gradient.sum_to_size(gain.shape)
        g = widened(gradient) * gain  # of the standardized map
        along = (g * standardized).sum(ctx.dims, keepdim=True) / (ctx.n - 1)
        of_h = (g - g.mean(ctx.dims, keepdim=True)).sub_(standardized.mul_(along)).mul_(rstd)
        return of_h.to(h.dtype), of_gain.to(gain.dtype), of_bias.to(gain.dtype), None


class Stage(nn.Module):
    """One stage of the stream; what it does to the main stream is `modulate`, of the variants below.

    With `zero_init` all maps are multiplied by a learned scale that starts at 0. (Heads of zeros would not do: under
    spectral norm they are 0 / 0.) The normalisation of h stays.
    """

    def __init__(self, in_channels: int, out_channels: int, sn: dict, zero_init: bool):
        super().__init__()
        self.conv1 = layers.UpConv2d(in_channels, out_channels, **sn)
        self.conv2 = layers.Conv2d(out_channels, out_channels, **sn)
        self.scale = nn.Parameter(torch.zeros(())) if zero_init else None
        self.add_heads(out_channels, sn)

    def forward(self, s: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """s (N,C,H/2,W/2) of the stream, h (N,C',H,W) of the main stream; returns the new s (N,C',H,W) and h."""
        s = self.conv2(F.relu(self.conv1(F.relu(s))))
        return s, self.modulate(s, h)

    def scaled(self, maps: Tensor) -> Tensor:
        return maps if self.scale is None else maps * self.scale


class VoxelStage(Stage):
    def add_heads(self, channels: int, sn: dict) -> None:
        self.gain = layers.Conv2d(channels, channels, 1, **sn)
        self.bias = layers.Conv2d(channels, channels, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return StandardizeModulate.apply(h, 1 + self.scaled(self.gain(s)), self.scaled(self.bias(s)), (1, 2, 3))


class GainStage(Stage):
    repeats = 1

    def add_heads(self, channels: int, sn: dict) -> None:
        self.gain = layers.Conv2d(channels, channels // self.repeats, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        gain = self.scaled(self.gain(s))
        if self.repeats > 1:
            gain = gain.repeat(1, self.repeats, 1, 1)  # (N,C',H,W)
        return torch.addcmul(h, h, gain)


class GroupGainStage(GainStage):
    repeats = 4


class GlobalVoxelStage(VoxelStage):
    def add_heads(self, channels: int, sn: dict) -> None:
        super().add_heads(channels, sn)
        self.global_gain = layers.Conv2d(channels, channels, 1, **sn)
        self.global_bias = layers.Conv2d(channels, channels, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        pooled = s.mean(dim=(2, 3), keepdim=True)  # (N,C',1,1)
        gain, bias = self.scaled(self.global_gain(pooled)), self.scaled(self.global_bias(pooled))
        return super().modulate(s, StandardizeModulate.apply(h, 1 + gain, bias, (2, 3)))


STAGES = {"voxel": VoxelStage, "gain": GainStage, "group_gain": GroupGainStage, "global_voxel": GlobalVoxelStage}


class SpatialSelfModulation(nn.Module):
    """The whole second stream: `start` makes its first feature map, then each of `stages` goes with a stage of G."""

    def __init__(self, config: ModelConfig, sn: dict):
        super().__init__()
        self.bottom_width, widths = config.bottom_width, config.G_widths
        self.embedding = layers.Embedding(config.n_classes, config.shared_dim)
        self.linear = layers.Linear(config.shared_dim + config.dim_z, widths[0] * config.bottom_width**2, **sn)
        stage = STAGES[config.ssm]
        self.stages = nn.ModuleList(stage(i, o, sn, config.ssm_zero_init) for i, o in pairwise(widths))

    def start(self, z: Tensor, y: Tensor) -> Tensor:
        """z (N,dim_z), all of it also where the main stream splits it, and y (N,) to s (N,C,bottom,bottom)."""
        s = self.linear(torch.cat([self.embedding(y), z], dim=1))
        return s.view(len(z), -1, self.bottom_width, self.bottom_width)
