"""Directions of z that change an image most: those of G's first linear layer, in closed form.

Shen and Zhou 2021 (arXiv:2007.06600, equation 5): a step along z changes what the layer gives most along the leading
right singular vectors of its weight.
"""

import torch
from PIL import Image
from torch import Tensor, nn

import utils
from reports.pictures import enlarged
from sampling.sheets import render
from torch_utils.images import image_grid


def check_number(G: nn.Module, number: int) -> None:
    """Raise utils.UserError where G's first layer has fewer directions."""
    most = min(G.config.dim_z // G.slots, G.linear.out_features)
    if number > most:
        raise utils.UserError(f"--directions {number}: this generator's first layer sees {most} dimensions of z")


@torch.no_grad()
def singular_directions(G: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """The leading singular values (n,) and directions in z, unit vectors (n,dim_z), of G's first linear layer.

    With hier the layer sees the first slot of z alone, and the directions are 0 in the others; what it sees of the
    class (BigGAN-deep) is left out. The largest entry of a direction is positive.
    """
    weight = G.linear.normalized_weight().float()
    slot = G.config.dim_z // G.slots
    _, values, vectors = torch.linalg.svd(weight[:, -slot:], full_matrices=False)
    values, vectors = values[:number].cpu(), vectors[:number].cpu()
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    directions = torch.zeros(number, G.config.dim_z)
    directions[:, :slot] = vectors * largest.sign()
    return values, directions


def walks_sheet(G: nn.Module, z: Tensor, y: Tensor, number: int, reach: float, steps: int) -> Image.Image:
    """A row per direction: from -reach to +reach along it, from one sample: z (dim_z,), y int64 ()."""
    values, directions = singular_directions(G, number)
    at = torch.linspace(-1, 1, steps, dtype=torch.float64).round(decimals=9).mul(reach).float()  # 0 in the middle
    points = z + at[:, None] * directions[:, None]  # (number,steps,dim_z)
    images = render(G, points.flatten(0, 1), y.expand(number * steps))
    rows = [f"{i + 1}: singular value {value:.3g}" for i, value in enumerate(values.tolist())]
    return image_grid(
        enlarged(images), steps, [f"{step:+.3g}" if step else "0" for step in at.tolist()], scale=1, left=rows
    )
