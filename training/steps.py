"""One optimizer step of D and of G over accumulated passes.

`forward` is the network itself, or its DistributedDataParallel wrapper, which averages gradients.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import utils
from torch_utils.mixed_precision import LossScaler
from training import losses
from training.regularisation import Regularisation
from utils import NOT_NEGATIVE, Options, option


@dataclass(frozen=True)
class StepOptions(Options):
    """What a training step consists of."""

    title = "steps"

    loss: str = option("hinge", "adversarial loss", choices=tuple(losses.LOSSES))
    num_D_steps: int = option(2, "steps of D per step of G", kind=utils.positive_int)
    num_G_accumulations: int = option(1, "passes per step of G", kind=utils.positive_int)
    num_D_accumulations: int = option(1, "passes per step of D", kind=utils.positive_int)
    G_ortho: float = option(0.0, "orthogonal regularisation of G; BigGAN: 1e-4", check=NOT_NEGATIVE)
    D_ortho: float = option(0.0, "orthogonal regularisation of D; BigGAN: 1e-4", check=NOT_NEGATIVE)

    @property
    def of_D(self) -> tuple:
        """The last arguments of `d_step`: passes, orthogonal regularisation, loss."""
        return self.num_D_accumulations, self.D_ortho, losses.LOSSES[self.loss][0]

    @property
    def of_G(self) -> tuple:
        """The last arguments of `g_step`."""
        return self.num_G_accumulations, self.G_ortho, losses.LOSSES[self.loss][1]

    @property
    def paired(self) -> bool:
        """Whether the loss compares the logits of reals and fakes, in G's steps too."""
        return self.loss in losses.PAIRED

    @property
    def relative(self) -> bool:
        """Whether the loss leaves open which logit is 0."""
        return self.loss in losses.RELATIVE

    @property
    def D_passes(self) -> int:
        """Passes of D for each step of G."""
        return self.num_D_steps * self.num_D_accumulations


def d_step(
    G: Module,
    D: Module,
    forward_D: Module,
    optimizer: Optimizer,
    passes: Iterable,
    num_passes: int,
    ortho: float,
    loss=losses.d_hinge,
    scaler: LossScaler | None = None,
    regularisation: Regularisation | None = None,
) -> dict:
    """One optimizer step of D over accumulated passes; returns the mean of each loss term (0-dim tensors).

    passes: (x (N,3,R,R) in [-1,1], y (N,), z (N,dim_z), fake y (N,)). Real and fake images share a forward,
    so that DistributedDataParallel and spectral norm see one per pass. With a `regularisation` passes end in a Draw.
    """
    D.requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)
    means = {}
    terms_of = regularisation.d_terms if regularisation else _d_terms
    for i, one in enumerate(passes):
        with _reduction(forward_D, i == num_passes - 1):
            terms = terms_of(G, forward_D, loss, *one)
            with regularisation.backward_precision(one[-1]) if regularisation else nullcontext():
                _backward(terms, num_passes, means, scaler)
    _update(optimizer, D.parameters(), ortho, scaler)
    return regularisation.finish_update(means) if regularisation else means


def _d_terms(G, forward_D, loss, x, y, z, y_fake):
    with torch.no_grad():
        fakes = G(z, y_fake)
    logits = forward_D(torch.cat([x, fakes]), torch.cat([y, y_fake]))
    return loss(*logits.split([len(x), len(fakes)]))


def g_step(
    G: Module,
    D: Module,
    forward_G: Module,
    optimizer: Optimizer,
    passes: Iterable,
    num_passes: int,
    ortho: float,
    loss=losses.g_hinge,
    scaler: LossScaler | None = None,
    regularisation: Regularisation | None = None,
) -> dict:
    """One optimizer step of G over accumulated passes of (z (N,dim_z), y (N,)); returns as `d_step`.

    With a `regularisation` passes go on with x (N,3,R,R) of the classes y, which losses of pairs want, and a Draw.
    """
    D.requires_grad_(False)
    optimizer.zero_grad(set_to_none=True)
    means = {}
    terms_of = regularisation.g_terms if regularisation else _g_terms
    for i, one in enumerate(passes):
        with _reduction(forward_G, i == num_passes - 1):
            _backward(terms_of(forward_G, D, loss, *one), num_passes, means, scaler)
    # As in BigGAN-PyTorch, the shared class embedding is not regularised.
    _update(optimizer, (p for name, p in G.named_parameters() if not name.startswith("shared.")), ortho, scaler)
    return means


def _g_terms(forward_G, D, loss, z, y):
    return loss(D(forward_G(z, y), y))


def _reduction(forward, last):
    """While gradients accumulate, they are not averaged over ranks: the last pass does it for all."""
    return nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()


def _backward(terms, num_passes, means, scaler):
    total = sum(terms.values()) / num_passes
    (scaler.scale(total) if scaler else total).backward()
    for name, value in terms.items():
        means[name] = means.get(name, 0) + value.detach() / num_passes


def _update(optimizer, regularised, ortho, scaler):
    """The optimizer's step, with orthogonal regularisation of some of its parameters."""
    if scaler:
        scaler.unscale_(optimizer)
    _add_orthogonal_gradient(regularised, ortho)
    if scaler:
        scaler.finish_step(optimizer)
    else:
        optimizer.step()


def _add_orthogonal_gradient(parameters, strength):
    """Added after the passes: the penalty depends on the weights alone, so it is the same on all ranks."""
    weights = [p for p in parameters if p.ndim >= 2 and p.requires_grad] if strength else []
    if weights:
        gradients = torch.autograd.grad(losses.orthogonal_penalty(weights, strength), weights)
        torch._foreach_add_([p.grad for p in weights], gradients)
