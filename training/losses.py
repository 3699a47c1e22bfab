"""Adversarial losses and regularisers: tensors in, a dict of named terms out, which add up to the loss.

Logits are (N,), terms are means over the batch. To add a loss, write its two functions and name them in LOSSES.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def d_hinge(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Hinge loss of D (Lim & Ye 2017; Miyato et al. 2018, equation 16)."""
    return {"D_loss_real": F.relu(1 - real_logits).mean(), "D_loss_fake": F.relu(1 + fake_logits).mean()}


def g_hinge(fake_logits: Tensor) -> dict[str, Tensor]:
    """Hinge loss of G (Miyato et al. 2018, equation 17)."""
    return {"G_loss": -fake_logits.mean()}


def d_non_saturating(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of D, whose sigmoid is the probability of an image to be real (Goodfellow et al. 2014, eq. 1)."""
    return {"D_loss_real": F.softplus(-real_logits).mean(), "D_loss_fake": F.softplus(fake_logits).mean()}


def g_non_saturating(fake_logits: Tensor) -> dict[str, Tensor]:
    """-log of the probability that D gives to fakes (Goodfellow et al. 2014, section 3)."""
    return {"G_loss": F.softplus(-fake_logits).mean()}


def d_wasserstein(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Wasserstein loss of the critic (Arjovsky et al. 2017, equation 2), kept Lipschitz by spectral norm alone."""
    return {"D_loss_real": -real_logits.mean(), "D_loss_fake": fake_logits.mean()}


def d_relativistic(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Relativistic pairing loss of D (Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2): logits of pairs."""
    return {"D_loss": F.softplus(fake_logits - real_logits).mean()}


def g_relativistic(fake_logits: Tensor, real_logits: Tensor) -> dict[str, Tensor]:
    """The same of G, which sees the reals beside the fakes too."""
    return {"G_loss": F.softplus(real_logits - fake_logits).mean()}


# --loss -> the loss of D from (real logits, fake logits), and that of G from the fakes' logits, and for those of PAIRED
# from the reals' as well: real image i and fake i, of the same class, are a pair
LOSSES = {
    "hinge": (d_hinge, g_hinge),
    "non_saturating": (d_non_saturating, g_non_saturating),
    "wasserstein": (d_wasserstein, g_hinge),  # G's is the same as the hinge's
    "relativistic": (d_relativistic, g_relativistic),
}
PAIRED = ("relativistic",)
# Those that leave open where 0 is: what is added to all logits changes nothing.
RELATIVE = ("relativistic", "wasserstein")
# Whose D has a loss of 0 where it tells all real images from generated ones.
WITH_FLOOR = ("hinge", "non_saturating", "relativistic")


def orthogonal_penalty(parameters: Iterable[Tensor], strength: float) -> Tensor:
    """Off-diagonal orthogonal regularisation (Brock et al. 2019, equation 3) of all weights of two or more dimensions.

    strength * sum over weights of ||W W' * (1 - I)||^2 / 2, W flattened to (outputs, rest). The half makes its gradient
    that of BigGAN-PyTorch's `--G_ortho` and `--D_ortho`.
    """
    penalty = 0
    for weight in parameters:
        if weight.ndim >= 2:
            W = weight.flatten(1)
            gram = W @ W.t()
            penalty = penalty + (gram - torch.diag(gram.diagonal())).square().sum() / 2
    return strength * penalty
