"""The plain composition of every layer that layers.py and sssm.py compute in a faster form: the same function.

`make_plain` turns networks into their twins: upsampling, then a 3x3 convolution; a convolution, then pooling; batch
norm, gain and bias one after the other; attention that holds all its weights; SSM by autograd. `PlainAdam` and
`PlainAverage` go from tensor to tensor. Tests hold the fast forms to these; bench_step.py measures what they save.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layers
import sssm
from training.ema import MovingAverage


class UpConv2d(layers.UpConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return layers.Conv2d.forward(self, F.interpolate(x, scale_factor=2, mode="nearest"))


class DownConv2d(layers.DownConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(layers.Conv2d.forward(self, x), 2)


class ConditionalBatchNorm2d(layers.ConditionalBatchNorm2d):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        normalised = self.bn(x)
        gain, bias = self.gain(condition)[:, :, None, None], self.bias(condition)[:, :, None, None]
        return normalised * (1 + gain) + bias


class SelfAttention(layers.SelfAttention):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        theta = self.theta(x).flatten(2)  # (N,C/8,HW)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)  # (N,C/8,HW/4)
        g = F.max_pool2d(self.g(x), 2).flatten(2)  # (N,C/2,HW/4)
        weights = torch.softmax(torch.bmm(theta.transpose(1, 2), phi), dim=-1)  # (N,HW,HW/4)
        attended = torch.bmm(g, weights.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return x + self.gamma * self.o(attended)


def standardized(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    """h less its mean over `dims`, over its unbiased standard deviation there."""
    centred = h - h.mean(dims, keepdim=True)
    return centred / torch.sqrt(h.var(dims, keepdim=True) + sssm.EPS)


class VoxelStage(sssm.VoxelStage):
    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return standardized(h, (1, 2, 3)) * (1 + self.scaled(self.gain(s))) + self.scaled(self.bias(s))


class GlobalVoxelStage(sssm.GlobalVoxelStage):
    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        pooled = s.mean(dim=(2, 3), keepdim=True)
        gain, bias = self.scaled(self.global_gain(pooled)), self.scaled(self.global_bias(pooled))
        return VoxelStage.modulate(self, s, standardized(h, (2, 3)) * (1 + gain) + bias)


class GainStage(sssm.GainStage):
    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return h * (1 + self.scaled(self.gain(s)))


class GroupGainStage(sssm.GroupGainStage):
    def modulate(self, s: Tensor, h: Tensor) -> Tensor:
        return h * (1 + self.scaled(self.gain(s)).repeat(1, self.group, 1, 1))


OF_LAYERS = (UpConv2d, DownConv2d, ConditionalBatchNorm2d, SelfAttention)
OF_SSM = (VoxelStage, GlobalVoxelStage, GainStage, GroupGainStage)
TWINS = {twin.__base__: twin for twin in (*OF_LAYERS, *OF_SSM)}  # a layer's class -> its twin


def make_plain(*networks: nn.Module) -> None:
    """Give every layer that has a twin the twin's forward, in place; weights, buffers and state dicts stay."""
    for network in networks:
        for module in network.modules():
            module.__class__ = TWINS.get(type(module), type(module))


class PlainAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015) that goes from tensor to tensor."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, foreach=False, fused=False, **options)


class PlainAverage(MovingAverage):
    """The moving average of G, from tensor to tensor."""

    @torch.no_grad()
    def update(self, step: int, images_seen: int = 0, images: int = 1) -> None:
        weight = 1 - self.decay if step > self.start else 1.0
        for average, value in zip(*self.averaged, strict=True):
            average.mul_(1 - weight).add_(value, alpha=weight)
        for average, value in zip(*self.copied, strict=True):
            average.copy_(value)
