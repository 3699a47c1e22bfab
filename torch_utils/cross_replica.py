"""Batch norm whose statistics are those of a fixed number of images, however many processes these are spread over.

Symbols: N images of this rank, C channels, M groups of images that share their statistics.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm

from torch_utils.precision import widened


class Groups:
    """Which images share their statistics: `size` consecutive ones of the whole pass, 0: all of it.

    rank, world_size: of this process; neighbours: makes the process group of so many consecutive ranks with this one.
    """

    def __init__(self, size: int, rank: int, world_size: int, neighbours: Callable):
        self.size, self.rank, self.world_size, self.neighbours = size, rank, world_size, neighbours
        self.process_groups = {}  # by number of ranks, as communicators are dear

    def __deepcopy__(self, memo):
        return self  # the processes of a copied network are the same

    def block(self, num_images: int) -> "Block":
        """The smallest one of whole groups that this rank, with so many images of the pass, is part of."""
        size = self.size or num_images * self.world_size
        num_ranks = math.lcm(size, num_images) // num_images
        if num_ranks not in self.process_groups:
            self.process_groups[num_ranks] = self.neighbours(num_ranks)
        first = self.rank % num_ranks * num_images
        return Block(size, num_ranks, range(first, first + num_images), self.process_groups[num_ranks])


@dataclass(frozen=True)
class Block:
    """Whole groups of `size` images on neighbouring ranks, of which `images` (numbers within the block) are here."""

    size: int
    num_ranks: int
    images: range
    process_group: torch.distributed.ProcessGroup | None

    def index(self, device: torch.device) -> Tensor:
        """The group (N,) of each image of this rank."""
        return torch.tensor([i // self.size for i in self.images], device=device)

    def means(self, index: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """The mean over the images of each group, float64 (M,C), of each of `values` (N,C); index: see `index`."""
        images = torch.cat(values, dim=1).double()
        num_groups = len(self.images) * self.num_ranks // self.size
        table = images.new_zeros(num_groups, images.shape[1]).index_add_(0, index, images)
        if self.process_group is not None:
            torch.distributed.all_reduce(table, group=self.process_group)
        return (table / self.size).chunk(len(values), dim=1)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) by group, and the groups' mean and variance (M,C), which get no gradient.

    The sums of a group are of all its ranks, forward and backward, and in float64: mean squares can then be taken apart
    into variance and squared mean without a loss, so one message does for both.
    """

    @staticmethod
    def forward(ctx, x, block, eps):  # x (N,C,H,W)
        index = block.index(x.device)
        var, mean = (moment.double() for moment in torch.var_mean(widened(x), dim=(2, 3), correction=0))  # (N,C)
        mean, square = block.means(index, mean, var + mean.square())  # (M,C)
        var = (square - mean.square()).clamp(min=0)
        shift, scale = (_maps(moment, index, widened(x)) for moment in (mean, torch.rsqrt(var + eps)))
        ctx.save_for_backward(x, shift, scale, index)
        ctx.block = block
        ctx.mark_non_differentiable(mean, var)
        return ((widened(x) - shift) * scale).to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, shift, scale, index = ctx.saved_tensors
        gradient, normal = widened(gradient), (widened(x) - shift) * scale
        means = ctx.block.means(index, gradient.mean((2, 3)), (gradient * normal).mean((2, 3)))
        mean, slope = (_maps(moment, index, normal) for moment in means)
        return (scale * (gradient - mean - normal * slope)).to(x.dtype), None, None


def _maps(values, index, like):
    """Values of groups (M,C) as those of their images (N,C,1,1), in the type of `like`."""
    return values[index, :, None, None].to(like.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm; with `groups`, training takes the statistics of each group of images over all its processes.

    The running statistics follow the mean over all groups of the pass: equal on all ranks, whatever their number.
    """

    groups: Groups | None = None

    @property
    def alone(self) -> bool:
        """Whether a forward takes the statistics of the images that it is given, and moves the running ones so far."""
        return self.training and self.track_running_stats and self.groups is None and self.momentum is not None

    def tracked(self) -> tuple[Tensor, Tensor, float, float]:
        """For a forward computed elsewhere, where `alone`: running mean and variance, momentum, eps."""
        self.num_batches_tracked.add_(1)
        return self.running_mean, self.running_var, self.momentum, self.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.groups is None or not self.training:
            return super().forward(x)
        block = self.groups.block(len(x))
        in_one_group = block.size == len(x) * block.num_ranks
        y, mean, var = (_synced if x.is_cuda and block.num_ranks > 1 and in_one_group else _grouped)(x, block, self.eps)
        self._follow(mean, var, block)
        if self.weight is None:
            return y
        weight, bias = (parameter.to(y.dtype)[:, None, None] for parameter in (self.weight, self.bias))
        return torch.addcmul(bias, y, weight)

    @torch.no_grad()
    def _follow(self, mean, var, block):
        """Move the running statistics towards mean and unbiased variance (C,), the means over this block's groups."""
        batch, world_size = torch.stack([mean, var]), self.groups.world_size
        if block.num_ranks < world_size:  # other ranks have other groups
            torch.distributed.all_reduce(batch)
            batch /= world_size
        for running, value in zip((self.running_mean, self.running_var), batch, strict=True):
            running.lerp_(value.to(running.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def _grouped(x, block, eps):
    """x (N,C,H,W) normalised by group; mean and unbiased variance (C,), over this block's groups."""
    y, mean, var = _Normalize.apply(x, block, eps)
    count = block.size * x[0, 0].numel()
    return y, mean.mean(0), var.mean(0) * (count / max(count - 1, 1))


def _synced(x, block, eps):
    """The same of a block that is one group, by torch's own kernels, which are for GPUs alone."""
    mean, var = widened(x).new_zeros(2, x.shape[1])  # as running statistics of momentum 1
    y = SyncBatchNorm.apply(x, None, None, mean, var, eps, 1.0, block.process_group, block.num_ranks)
    return y, mean, var
