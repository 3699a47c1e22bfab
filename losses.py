"""Adversarial losses and regularisers: tensors in, a dict of named terms out, which add up to the loss."""

import torch
import torch.nn.functional as F


def d_hinge(real_logits, fake_logits):
    """Hinge loss of D (Lim & Ye 2017; Miyato et al. 2018, equation 16). Logits (N,); terms are means over the batch."""
    return {"D_loss_real": F.relu(1 - real_logits).mean(), "D_loss_fake": F.relu(1 + fake_logits).mean()}


def g_hinge(fake_logits):
    """Hinge loss of G (Miyato et al. 2018, equation 17). Logits (N,)."""
    return {"G_loss": -fake_logits.mean()}


def orthogonal_penalty(parameters, strength):
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
