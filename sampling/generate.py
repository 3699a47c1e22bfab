"""Images made by a generator: any number of them, each a function of the seed and of its number.

Symbols: N images, resolution R, K classes of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import utils
from model_config import ModelConfig
from sampling.latents import TRUNCATION_KINDS, Truncation, latents
from torch_utils import memory
from torch_utils.distributed import device_option
from torch_utils.images import to_uint8
from utils import POSITIVE, Options, option


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How a checkpoint's generator is used."""

    title = "sampling"

    truncation: float | None = option(
        None,
        "truncate z to T; None: what a converted checkpoint was made for, else not at all",
        metavar="T",
        check=POSITIVE,
    )
    truncation_kind: str | None = option(
        None,
        "how: redrawn beyond T, redrawn beyond 2 and times T, times T, or clamped to T; "
        "None: as where a converted checkpoint comes from, else truncated_normal",
        choices=tuple(TRUNCATION_KINDS),
    )
    ema: bool = option(True, "G's moving average, if any")
    seed: int = option(0, "image i depends on the seed and i alone", kind=utils.count)
    device: str = device_option()

    def chosen_kind(self, meta: dict) -> str:
        """What truncating means by the flags, or by the convention of a converted checkpoint; its meta tells."""
        return self.truncation_kind or meta.get("convention", {}).get("truncation_kind", "truncated_normal")

    def chosen_truncation(self, meta: dict) -> Truncation | None:
        """The Truncation of the flags, or of the convention of a converted checkpoint; None for none."""
        limit = self.truncation or meta.get("convention", {}).get("truncation")
        return Truncation(limit, self.chosen_kind(meta)) if limit is not None else None

    @staticmethod
    def own_truncation(meta: dict) -> Truncation | None:
        """The Truncation that a converted checkpoint's running batch-norm statistics are for, None for none."""
        return SamplingOptions().chosen_truncation(meta)


def generate(
    G: nn.Module, y: Tensor, seed: int, batch_size: int, truncation: Truncation | None = None, start: int = 0
) -> Iterator[Tensor]:
    """Make images number start to start + N - 1 of a seed, in the mode (train or eval) that G is in.

    Args: y: class ids int64 (N,); truncation: see `latents`.
    Yields: uint8 (b,3,R,R) on the CPU, b being batch_size, or less in the last.
    Raises: utils.UserError if the GPU's memory is too small for the batch.
    """
    for first in range(0, len(y), batch_size):
        y_batch = y[first : first + batch_size]
        indices = range(start + first, start + first + len(y_batch))
        yield make_images(G, latents(seed, indices, G.config.dim_z, truncation), y_batch)


def check_fits(config: ModelConfig, number: int, device: torch.device, flag: str) -> None:
    """Raise utils.UserError where a device cannot hold so many images at a time and their z, which `flag` asks for.

    A lower bound, before anything is drawn.
    """
    image = 4 * (3 * config.resolution**2 + config.dim_z)
    memory.check_fits(number * image, device, f"{flag} {number:,}", "lower it")


@torch.no_grad()
def make_images(G: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Images of z (N,dim_z) and y, ids (N,) or weights (N,K), in one forward: uint8 (N,3,R,R) on the CPU.

    Raises: utils.UserError if the GPU's memory is too small for them, or if they are not finite.
    """
    device = next(G.parameters()).device
    try:
        images = G(z.to(device), y.to(device))
        pixels = to_uint8(images).cpu()
    except torch.OutOfMemoryError as error:
        raise utils.UserError(f"{device} has too little free memory for {len(z)} images at a time") from error
    check_finite(images)
    return pixels


def check_finite(images: Tensor) -> None:
    """Raise utils.UserError where images are not finite: as uint8 they would be black, and look like images."""
    if not images.isfinite().all():
        raise utils.UserError("the generator's images are not finite (NaN or infinite): has its training diverged?")


def describe(G: nn.Module, meta: dict, device: torch.device) -> str:
    """One line about a loaded generator, for the user to read."""
    weights = "moving average of G" if meta["ema"] else "G"
    config = G.config
    size = f"{utils.counted(config.n_classes, 'class')} at {config.resolution}x{config.resolution}"
    steps = utils.counted(meta["step"], "iteration")
    return f"{utils.printable(meta['path'])}: {weights} after {steps}, {size}, on {device}"
