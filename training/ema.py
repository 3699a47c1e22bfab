"""The moving averages of G's weights: the one that gets evaluated and sampled, and those to choose from afterwards."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

import utils
from torch_utils import power_law
from utils import BELOW_1, NOT_NEGATIVE, Options, option


@dataclass(frozen=True)
class EMAOptions(Options):
    """Whether G has moving averages, and which."""

    title = "moving average"

    ema: bool = option(False, "keep a moving average of G")
    ema_decay: float = option(0.9999, "decay of the moving average", check=BELOW_1)
    ema_start: int = option(0, "step until which the average is a plain copy", kind=utils.count)
    ema_ramp: float = option(
        0.0,
        "a shorter average at first: its half-life is at most so many times the images seen (StyleGAN2; without X: "
        "0.05); 0: --ema_decay from the start",
        check=NOT_NEGATIVE,
        bare=0.05,
    )
    ema_power: tuple[float, ...] = option(
        (),
        "power-law averages of these relative widths (EDM2: 0.05_0.10), stored as the run goes on, from which "
        "evaluate.py --ema_sweep makes those of any other",
        kind=power_law.widths,
        metavar="X_X",
    )
    ema_power_every: int = option(
        5000, "steps between stored power-law averages", kind=utils.positive_int, changeable=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.ema_ramp and not self.ema:
            raise utils.UserError("--ema_ramp goes with --ema")

    @property
    def number(self) -> int:
        """How many averages of G there are."""
        return self.ema + len(self.ema_power)

    def stores_at(self, step: int, last: bool) -> bool:
        """Whether power-law averages are stored after a step; last: whether the run is complete."""
        return bool(self.ema_power) and (last or step % self.ema_power_every == 0)

    def num_stored(self, step: int, end: int) -> int:
        """How often they are, after `step` and up to the run's `end`."""
        if not self.ema_power or end <= step:
            return 0
        return end // self.ema_power_every - step // self.ema_power_every + (end % self.ema_power_every > 0)


def ramped_decay(decay: float, ramp: float, images_seen: int, images: int) -> float:
    """The decay of a step: its half-life is the smaller one of that of `decay` and of ramp x images seen so far.

    half-life H in images means a decay of 0.5^(images / H) a step, so that of `decay` is images x ln 0.5 / ln decay
    (Karras et al. 2020, StyleGAN2's code; 2024, EDM2's). images_seen: before this step; images: of it. ramp 0: `decay`.
    """
    if not ramp:
        return decay
    return min(decay, 0.5 ** (images / max(ramp * images_seen, 1e-8)))


class MovingAverage:
    """Exponential moving average of G: parameters and batch-norm statistics are averaged, other buffers are copied."""

    def __init__(self, G: nn.Module, decay: float, start: int, ramp: float = 0.0):
        self.module = copy.deepcopy(G).eval().requires_grad_(False)
        self.decay, self.start, self.ramp = decay, start, ramp
        source, target = G.state_dict(keep_vars=True), self.module.state_dict(keep_vars=True)
        parameters = {name for name, _ in G.named_parameters()}
        averaged = [k for k in source if k in parameters or k.endswith(("running_mean", "running_var"))]
        copied = [k for k in source if k not in averaged]
        self.averaged = [target[k] for k in averaged], [source[k] for k in averaged]
        self.copied = [target[k] for k in copied], [source[k] for k in copied]

    @torch.no_grad()
    def update(self, step: int, images_seen: int = 0, images: int = 1) -> None:
        """After step `step` (1, 2, ...). Until `start` the average is a plain copy.

        images_seen: real images that D has seen before the step; images: those of the step.
        """
        decay = ramped_decay(self.decay, self.ramp, images_seen, images)
        torch._foreach_lerp_(*self.averaged, 1 - decay if step > self.start else 1.0)
        torch._foreach_copy_(*self.copied)


class PowerAverages:
    """Power-law averages of G's parameters (torch_utils/power_law.py), by their relative width.

    Batch-norm statistics cannot be had from them, as those of an average are not the average of the statistics: they
    are made afresh for whatever average is made of these.
    """

    def __init__(self, G: nn.Module, widths: tuple[float, ...]):
        self.source = {name: parameter.detach() for name, parameter in G.named_parameters()}
        self.exponents = {str(width): power_law.exponent(width) for width in widths}
        self.averages = {key: {k: p.clone() for k, p in self.source.items()} for key in self.exponents}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (1, 2, ...)."""
        weights = list(self.source.values())
        for key, gamma in self.exponents.items():
            torch._foreach_lerp_(list(self.averages[key].values()), weights, 1 - power_law.decay(gamma, step))

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        return self.averages

    def load_state_dict(self, state: dict) -> None:
        """Raises: KeyError, ValueError for other widths, parameters or shapes."""
        for key, average in self.averages.items():
            for name, tensor in average.items():
                if state[key][name].shape != tensor.shape:
                    raise ValueError(f"shape {tuple(state[key][name].shape)} of {name}")
                tensor.copy_(state[key][name])
