"""Adam for G and D, and the learning rate of each step."""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Adam

import utils
from utils import BELOW_1, SHARE, Check, Options, option

SMALL = Check(lambda x: 0 < x < 10, "be positive and below 10")


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """Both optimizers, and how their learning rates fall."""

    title = "optimizers"

    G_lr: float = option(5e-5, "Adam's learning rate of G", check=SMALL)
    G_B1: float = option(0.0, "Adam's beta1 of G", check=BELOW_1)
    G_B2: float = option(0.999, "Adam's beta2 of G", check=BELOW_1)
    D_lr: float = option(2e-4, "Adam's learning rate of D", check=SMALL)
    D_B1: float = option(0.0, "Adam's beta1 of D", check=BELOW_1)
    D_B2: float = option(0.999, "Adam's beta2 of D", check=BELOW_1)
    adam_eps: float = option(1e-8, "Adam's epsilon", check=SMALL)
    lr_decay_start: int = option(0, "step from which both learning rates fall")
    lr_decay_end: int = option(0, "step from which they stay again; 0: no decay")
    lr_decay_to: float = option(0.0, "fraction of themselves to which they fall", check=SHARE)
    lr_decay_shape: str = option("linear", "how they fall", choices=("linear", "cosine"))
    B2_to: float | None = option(None, "what both beta2 come to between the same steps; R3GAN: 0.99", check=BELOW_1)

    def __post_init__(self):
        super().__post_init__()
        start, end = self.lr_decay_start, self.lr_decay_end
        if (start or end) and not 0 <= start < end:
            raise utils.UserError(f"--lr_decay_end {end} must lie after --lr_decay_start {start}")
        if self.B2_to is not None and not end:
            raise utils.UserError(f"--B2_to {self.B2_to} goes with --lr_decay_end, the step from which it holds")

    def progress(self, step: int) -> float:
        """How far, from 0 to 1, what changes between --lr_decay_start and --lr_decay_end has come in step 1, 2, ..."""
        if not self.lr_decay_end:
            return 0.0
        share = min(max((step - 1 - self.lr_decay_start) / (self.lr_decay_end - self.lr_decay_start), 0), 1)
        return share if self.lr_decay_shape == "linear" else (1 - math.cos(math.pi * share)) / 2


def make_optimizers(G: nn.Module, D: nn.Module, options: OptimizerOptions) -> tuple[Adam, Adam]:
    """The Adam of G and that of D; fused: one kernel for all parameters."""
    common = {"eps": options.adam_eps, "fused": True}
    return (
        Adam(G.parameters(), lr=options.G_lr, betas=(options.G_B1, options.G_B2), **common),
        Adam(D.parameters(), lr=options.D_lr, betas=(options.D_B1, options.D_B2), **common),
    )


def learning_rates(options: OptimizerOptions, step: int) -> tuple[float, float]:
    """The learning rates (of G, of D) during step 1, 2, ...: a function of the step alone, so that resuming is exact.

    They are whole for --lr_decay_start steps, then fall, and are down to --lr_decay_to of themselves once
    --lr_decay_end steps are done.
    """
    if not options.lr_decay_end:
        return options.G_lr, options.D_lr
    factor = 1 - (1 - options.lr_decay_to) * options.progress(step)
    return options.G_lr * factor, options.D_lr * factor


def set_learning_rates(opt_G: Adam, opt_D: Adam, options: OptimizerOptions, step: int, factor: float = 1.0) -> None:
    """Give both optimizers their learning rate of a step, times `factor`, which is what rollbacks have left of it.

    And with --B2_to their beta2.
    """
    starts = options.G_B2, options.D_B2
    for optimizer, lr, B2 in zip((opt_G, opt_D), learning_rates(options, step), starts, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
            if options.B2_to is not None:
                group["betas"] = (group["betas"][0], B2 + (options.B2_to - B2) * options.progress(step))
