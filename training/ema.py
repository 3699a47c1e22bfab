"""The moving average of G's weights, which is what gets evaluated and sampled."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

import utils
from utils import BELOW_1, Options, option


@dataclass(frozen=True)
class EMAOptions(Options):
    """Whether G has a moving average, and which."""

    title = "moving average"

    ema: bool = option(False, "keep a moving average of G")
    ema_decay: float = option(0.9999, "decay of the moving average", check=BELOW_1)
    ema_start: int = option(0, "step until which the average is a plain copy", kind=utils.count)


class MovingAverage:
    """Exponential moving average of G: parameters and batch-norm statistics are averaged, other buffers are copied."""

    def __init__(self, G: nn.Module, decay: float, start: int):
        self.module = copy.deepcopy(G).eval().requires_grad_(False)
        self.decay, self.start = decay, start
        source, target = G.state_dict(keep_vars=True), self.module.state_dict(keep_vars=True)
        parameters = {name for name, _ in G.named_parameters()}
        averaged = [k for k in source if k in parameters or k.endswith(("running_mean", "running_var"))]
        copied = [k for k in source if k not in averaged]
        self.averaged = [target[k] for k in averaged], [source[k] for k in averaged]
        self.copied = [target[k] for k in copied], [source[k] for k in copied]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (1, 2, ...). Until `start` the average is a plain copy."""
        torch._foreach_lerp_(*self.averaged, 1 - self.decay if step > self.start else 1.0)
        torch._foreach_copy_(*self.copied)
