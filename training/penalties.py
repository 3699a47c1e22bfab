"""Penalties on D (and one on G): tensors in, a 0-dim term out. Logits are (N,), images (N,3,R,R).

When and on which images each is taken: `training/regularisation.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import utils
from utils import BELOW_1, NOT_NEGATIVE, POSITIVE, Options, option

DIFFERENCE = 0.01  # how far the approximated gradient penalties go from an image, in standard deviations of each pixel
SHARE = 4  # and on which share of the images: each fourth one


@dataclass(frozen=True)
class PenaltyOptions(Options):
    """What D is penalised for, and how strongly; 0: not."""

    title = "penalties on D"

    r1_gamma: float = option(
        0.0, "gamma/2 x the squared norm of D's gradient at real images; R3GAN: 1", check=NOT_NEGATIVE
    )
    r1_gamma_to: float | None = option(
        None, "what it comes to between --lr_decay_start and --lr_decay_end; R3GAN: 0.1", check=NOT_NEGATIVE
    )
    r1_every: int = option(
        1, "updates of D from one to the next, each so many times as strong", kind=utils.positive_int
    )
    r1_approx: bool = option(
        False,
        "by finite differences on a quarter of the images: no second derivatives",
        switch=True,
    )
    r2_gamma: float = option(0.0, "the same at generated images", check=NOT_NEGATIVE)
    r2_gamma_to: float | None = option(None, "as --r1_gamma_to", check=NOT_NEGATIVE)
    r2_every: int = option(1, "as --r1_every", kind=utils.positive_int)
    r2_approx: bool = option(False, "as --r1_approx", switch=True)
    lecam: float = option(
        0.0, "LeCam: logits near the moving averages of those of the other kind; published: 0.3", check=NOT_NEGATIVE
    )
    lecam_start: int = option(1000, "step after which it begins", kind=utils.positive_int)
    lecam_decay: float = option(0.99, "decay of its moving averages, per update of D", check=BELOW_1)
    cr: float = option(0.0, "consistency of D on real images, flipped and shifted; published: 10", check=NOT_NEGATIVE)
    bcr: float = option(0.0, "the same on real and on generated ones; published: 10", check=NOT_NEGATIVE)
    zcr: float = option(0.0, "consistency of D on fakes of near z; published: 20", check=NOT_NEGATIVE)
    zcr_gen: float = option(0.5, "with --zcr: how strongly G is to tell near z apart", check=NOT_NEGATIVE)
    zcr_radius: float = option(0.05, "standard deviation of how far near z are apart", check=POSITIVE)

    def __post_init__(self):
        super().__post_init__()
        if self.cr and self.bcr:
            raise utils.UserError("--cr is part of --bcr: give one of them")
        for field in self.fields():
            name, _, flag = field.name.partition("_")
            if name in ("r1", "r2", "lecam", "zcr") and flag not in ("", "gamma"):
                strength = f"{name}_gamma" if name[0] == "r" else name
                if getattr(self, field.name) != field.default and not getattr(self, strength):
                    raise utils.UserError(f"--{field.name} goes with --{strength}")

    @property
    def on(self) -> bool:
        return any((self.r1_gamma, self.r2_gamma, self.lecam, self.cr, self.bcr, self.zcr))

    @property
    def exact(self) -> list[str]:
        """Which of r1 and r2 want second derivatives."""
        return [n for n in ("r1", "r2") if getattr(self, f"{n}_gamma") and not getattr(self, f"{n}_approx")]


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of D's gradient at each image (Mescheder et al. 2018, equations 9 and 10), to be penalised by
    gamma/2. `logits` come of `images`, which require gradients; it can be differentiated once more.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def squared_difference(logits: Tensor, moved: Tensor) -> Tensor:
    """What `squared_gradient` is for each image (N,), of logits at x and at x + DIFFERENCE n, n normal: its expectation
    over n, as DIFFERENCE goes to 0 (Lin et al. 2025, section 3, but for the division).
    """
    return ((moved - logits) / DIFFERENCE).square()


def lecam(real_logits: Tensor, fake_logits: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """Tseng et al. 2021, in the form of their code: only what is above (or below) the other kind's average counts."""
    above = torch.relu(real_logits - fake_average).square().mean()
    return above + torch.relu(real_average - fake_logits).square().mean()


def consistency(logits: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference (Zhang et al. 2020; Zhao et al. 2021)."""
    return (logits - others).square().mean()
