"""The auxiliary classifier of `--D_aux d2dce`: ReACGAN's data-to-data cross-entropy (Kang et al. 2021).

Symbols: N images of this rank, M of all ranks, E dimension of D's embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_utils.distributed import Ranks
from utils import NOT_NEGATIVE, POSITIVE, Check, Options, option


@dataclass(frozen=True)
class AuxiliaryOptions(Options):
    """What the auxiliary classifier of D is asked for."""

    title = "auxiliary classifier of D (--D_aux d2dce)"

    D_aux_weight: float = option(
        0.5, "of its loss, in D's steps and G's; published: CIFAR 0.5, ImageNet 1", check=NOT_NEGATIVE
    )
    D_aux_margin: float = option(
        0.98,
        "cosine from which an image is near enough to its class; from 1 less this, other classes' are too near",
        check=Check(lambda x: -1 <= x <= 1, "lie in [-1, 1]"),
    )
    D_aux_temperature: float = option(0.5, "its temperature", check=POSITIVE)


def d2d_cross_entropy(
    embeddings: Tensor, proxies: Tensor, y: Tensor, margin: float, temperature: float, ranks: Ranks
) -> Tensor:
    """Data-to-data cross-entropy (Kang et al. 2021), the mean over this rank's images.

    Each is drawn to its class's proxy, up to a cosine of `margin`, and away from images of other classes, of all ranks,
    down to a cosine of 1 - margin. Args: embeddings, proxies (N,E), of any length; y (N,).
    """
    f, v = F.normalize(embeddings, dim=1), F.normalize(proxies, dim=1)
    others, classes = _Gather.apply(f, ranks), _Gather.apply(y, ranks)  # (M,E), (M,)
    near = ((f * v).sum(1) - margin).clamp(max=0) / temperature  # (N,)
    far = (f @ others.t() - (1 - margin)).clamp(min=0) / temperature  # (N,M)
    far = far.masked_fill(y[:, None] == classes, -torch.inf)
    return (torch.logsumexp(torch.cat([near[:, None], far], 1), dim=1) - near).mean()


class _Gather(torch.autograd.Function):
    """What all ranks have, (N,...) to (M,...), in their order. A rank's gets the gradients of all ranks' losses, which
    DistributedDataParallel then averages: as where one process has the whole batch."""

    @staticmethod
    def forward(ctx, x, ranks):
        ctx.ranks = ranks
        if ranks.world_size == 1:
            return x.clone()
        parts = [torch.empty_like(x) for _ in range(ranks.world_size)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.ranks.world_size > 1:
            gradient = gradient.contiguous().clone()
            torch.distributed.all_reduce(gradient)
        return ctx.ranks.slice(gradient), None
