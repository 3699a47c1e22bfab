"""Spatial self-modulation (SSM): a second stream in the generator that modulates every position and channel.

The stream starts from linear([e(y), z]) with a class embedding e of its own and grows beside the main stream, through
convolutions of the same widths (`ssm_width` 1, the published form) or of a fraction of them. After each whole main
stage, or those of `ssm_stages`, 1x1 convolutions ("heads") of the stream s give maps, with which the main stream h is
modulated:

    voxel (the published form)   h <- (h - mean(h)) / std(h),   h <- h * (1 + a) + b     a, b of h's shape; per sample
    gain                         h <- h * (1 + a)
    group_gain                   the same, with C'/4 maps that are repeated 4 times along the channels (`ssm_group`)
    global_voxel                 h <- (h - mean(h)) / std(h) per channel, h <- h * (1 + A) + B with A and B per channel
                                 from the spatial mean of s; then voxel

`ssm_width` 0 is the control without space: a stream of the main stream's widths that has a single position, so that
each stage has one gain and one bias per channel, functions of [e(y), z] of the same depth.

Symbols in shape comments: N batch, C and C' channels of the stage before and of this one, S and S' those of the stream,
H and W this stage's size.
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

    gain and bias have h's shape, or both (N,C,1,1). Statistics are float32 at least, whatever the type of h. Plain
    autograd would keep the standardized map for its backward; it is as soon made again from h.
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

    Args: in_channels, out_channels: S and S'; channels: C' of the main stream, None: S'; group: how many channels share
        a map of `group_gain`; space: whether the stream has positions, which double; without, it has only one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sn: dict,
        zero_init: bool,
        channels: int | None = None,
        group: int = 4,
        space: bool = True,
    ):
        super().__init__()
        if space:
            self.conv1 = layers.UpConv2d(in_channels, out_channels, **sn)
            self.conv2 = layers.Conv2d(out_channels, out_channels, **sn)
        else:
            self.conv1 = layers.Conv2d(in_channels, out_channels, 1, **sn)
            self.conv2 = layers.Conv2d(out_channels, out_channels, 1, **sn)
        self.scale = nn.Parameter(torch.zeros(())) if zero_init else None
        self.group = group
        self.add_heads(out_channels, channels or out_channels, sn)

    def forward(self, s: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """s (N,S,H/2,W/2) of the stream, h (N,C',H,W) of the main stream; returns the new s (N,S',H,W) and h.

        Without space s is (N,S,1,1) and becomes (N,S',1,1).
        """
        s = self.conv2(F.relu(self.conv1(F.relu(s))))
        return s, self.modulate(s, h)

    def scaled(self, maps: Tensor) -> Tensor:
        return maps if self.scale is None else maps * self.scale


class PassingStage(Stage):
    """A stage that only later ones need: it leaves the main stream as it is."""

    def add_heads(self, stream: int, channels: int, sn: dict) -> None:
        self.scale = None

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return h


class VoxelStage(Stage):
    def add_heads(self, stream: int, channels: int, sn: dict) -> None:
        self.gain = layers.Conv2d(stream, channels, 1, **sn)
        self.bias = layers.Conv2d(stream, channels, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return StandardizeModulate.apply(h, 1 + self.scaled(self.gain(s)), self.scaled(self.bias(s)), (1, 2, 3))


class GainStage(Stage):
    def add_heads(self, stream: int, channels: int, sn: dict) -> None:
        self.gain = layers.Conv2d(stream, channels, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return torch.addcmul(h, h, self.scaled(self.gain(s)))


class GroupGainStage(Stage):
    def add_heads(self, stream: int, channels: int, sn: dict) -> None:
        self.gain = layers.Conv2d(stream, channels // self.group, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        gain = self.scaled(self.gain(s)).repeat(1, self.group, 1, 1)  # (N,C',H,W)
        return torch.addcmul(h, h, gain)


class GlobalVoxelStage(VoxelStage):
    def add_heads(self, stream: int, channels: int, sn: dict) -> None:
        super().add_heads(stream, channels, sn)
        self.global_gain = layers.Conv2d(stream, channels, 1, **sn)
        self.global_bias = layers.Conv2d(stream, channels, 1, **sn)

    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        pooled = s.mean(dim=(2, 3), keepdim=True)  # (N,S',1,1)
        gain, bias = self.scaled(self.global_gain(pooled)), self.scaled(self.global_bias(pooled))
        return super().modulate(s, StandardizeModulate.apply(h, 1 + gain, bias, (2, 3)))


STAGES = {"voxel": VoxelStage, "gain": GainStage, "group_gain": GroupGainStage, "global_voxel": GlobalVoxelStage}


class SpatialSelfModulation(nn.Module):
    """The whole second stream: `start` makes its first feature map, then each of `stages` goes with a stage of G.

    Stages behind the last that modulates are left out: `stages` may be fewer than G's.
    """

    def __init__(self, config: ModelConfig, sn: dict):
        super().__init__()
        space, widths = config.ssm_width > 0, config.ssm_widths
        self.side = config.bottom_width if space else 1
        self.embedding = layers.Embedding(config.n_classes, config.shared_dim)
        self.linear = layers.Linear(config.shared_dim + config.dim_z, widths[0] * self.side**2, **sn)
        self.stages = nn.ModuleList()
        for i, (in_channels, out_channels) in enumerate(pairwise(widths)):
            stage = STAGES[config.ssm] if i + 1 in config.ssm_modulated else PassingStage
            options = {"channels": config.G_widths[i + 1], "group": config.ssm_group, "space": space}
            self.stages.append(stage(in_channels, out_channels, sn, config.ssm_zero_init, **options))

    @property
    def modulating(self) -> dict[int, Stage]:
        """The stages that modulate, by the number of their stage of G, counted from 0."""
        return {i: stage for i, stage in enumerate(self.stages) if not isinstance(stage, PassingStage)}

    def start(self, z: Tensor, y: Tensor) -> Tensor:
        """z (N,dim_z), all of it also where the main stream splits it, and y (N,) to s (N,S,bottom,bottom), or to
        (N,S,1,1) without space."""
        s = self.linear(torch.cat([self.embedding(y), z], dim=1))
        return s.view(len(z), -1, self.side, self.side)
