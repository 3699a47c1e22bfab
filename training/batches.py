"""What a training step sees: real images, noise and classes, as functions of the seed and the step.

Each pass is drawn for the whole batch and every rank takes its slice, so that any number of ranks sees the same.
Symbols: N images of this rank in a pass, R resolution.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

import utils
from model_config import ModelConfig
from torch_utils.distributed import Ranks
from torch_utils.images import to_float
from utils import Check, Options, option

CIFAR_RESOLUTION, CIFAR_PADDING = 32, 4  # files of this resolution are padded by so much where --augment crops them


@dataclass(frozen=True)
class BatchOptions(Options):
    """What G and D are shown."""

    title = "batches"

    batch_size: int = option(64, "images of one pass, over all processes", kind=utils.positive_int)
    G_batch_size: int = option(0, "fakes of one pass of G; 0: batch_size", kind=utils.count)
    D_fake_labels: str = option(
        "random",
        "classes of the fakes in a step of D: drawn at random, or those of the real images beside them",
        choices=("random", "real"),
    )
    flip: bool = option(False, "random horizontal flips")
    augment: bool = option(
        False,
        "random horizontal flips and random crops: of --crop_size from larger images, or, at 32x32 (CIFAR), of "
        "the image padded by 4 black pixels",
    )
    dequantise: bool = option(False, "uniform noise of one grey level on real images: 2 (x/256 - 1/2) + U(0, 1/128)")
    data_fraction: float = option(
        1.0,
        "share of each class's images that D sees, drawn by --seed, of those that --retention_ratio keeps",
        check=Check(lambda x: 0 < x <= 1, "be above 0 and at most 1"),
    )
    unconditional: bool = option(False, "ignore labels: one class, and a D without class", switch=True)

    @property
    def G_images(self) -> int:
        """Fakes of one pass of G."""
        return self.G_batch_size or self.batch_size

    def check_ranks(self, world_size: int) -> None:
        """Raise utils.UserError unless the batches can be split evenly over the processes."""
        for name in ("batch_size", "G_batch_size"):
            if getattr(self, name) % world_size:
                raise utils.UserError(
                    f"--{name} {getattr(self, name)} cannot be split evenly over {world_size} processes"
                )


@dataclass(frozen=True)
class Draw:
    """What else is random in a pass: each array is drawn for the whole batch, and this rank gets its part, float32.

    step, number: of the pass; size: its images, over all ranks; rollbacks: as those of `Batches`. `stream` is one of
    `utils.STREAMS`, `part` tells draws of the same stream apart.
    """

    seed: int
    ranks: Ranks
    step: int
    number: int
    size: int
    rollbacks: int = 0

    def uniform(self, stream: str, part: int, *shape: int) -> torch.Tensor:
        """(N, *shape) in [0,1)."""
        return self._mine(self._rng(stream, part, 0).random((self.size, *shape), dtype="float32"))

    def normal(self, stream: str, part: int, *shape: int) -> torch.Tensor:
        """(N, *shape)."""
        return self._mine(self._rng(stream, part, 1).standard_normal((self.size, *shape), dtype="float32"))

    def share(self, stream: str, part: int, every: int, shape: Iterable[int]) -> tuple[slice, torch.Tensor]:
        """Each so-manieth image of the whole batch: which these are of this rank's, and normal (n, *shape) for them."""
        rows, numbers = self.rows_of_share(every)
        noise = self._rng(stream, part, 1).standard_normal((-(-self.size // every), *shape), dtype="float32")
        return rows, torch.from_numpy(noise[numbers]).to(self.ranks.device, non_blocking=True)

    def rows_of_share(self, every: int) -> tuple[slice, slice]:
        """Of each so-manieth image of the whole batch, those of this rank: rows of its part, and numbers of them."""
        local = self.size // self.ranks.world_size
        before = -(-self.ranks.rank * local // every)  # chosen images of earlier ranks
        after = -(-(self.ranks.rank + 1) * local // every)
        return slice(before * every - self.ranks.rank * local, None, every), slice(before, after)

    def _rng(self, stream, part, kind):
        after = [self.rollbacks] if self.rollbacks else []
        return utils.rng(self.seed, stream, self.step, self.number, part, kind, *after)

    def _mine(self, array):
        return torch.from_numpy(self.ranks.slice(array)).to(self.ranks.device, non_blocking=True)


@dataclass(frozen=True)
class Batches:
    """The passes of each step, on one rank.

    loader: of the real images (image_datasets.loading.BatchLoader), whose next batch a pass of D takes; crop_size: side
    of the crops that --augment takes, None where it pads; rollbacks: of the run so far. After one, noise, classes,
    crops and flips are others than before; the order of images stays, so that an epoch shows each of them once.
    regularised: whether passes come with their Draw; paired: whether fakes have the classes of the reals beside them,
    and G's passes the reals of the last passes of D.
    """

    options: BatchOptions
    config: ModelConfig
    crop_size: int | None
    seed: int
    ranks: Ranks
    loader: Iterator | None = None
    rollbacks: int = 0
    regularised: bool = False
    paired: bool = False
    seen: list = field(default_factory=list)  # reals and their classes, of the last update of D, where they are paired

    def D_passes(self, step: int, draws: Iterable[int]) -> Iterator[tuple]:
        """The passes of one step of D: (x (N,3,R,R), y (N,), z (N,dim_z), y_fake (N,)) for each number in `draws`.

        And a Draw after these where they are `regularised`.
        """
        self.seen.clear()
        size = self.options.batch_size
        for draw in draws:
            x, y = self.reals(step, draw)
            z, y_fake = self.latents(step, draw, size)
            if self.paired:
                self.seen.append((x, y))
            yield x, y, z, y if self.fakes_as_reals else y_fake, *self._draw(step, draw, size)

    def G_passes(self, step: int, draws: Iterable[int]) -> Iterator[tuple]:
        """The passes of one step of G: (z (N,dim_z), y (N,)) for each number in `draws`.

        And x (N,3,R,R) of the classes y, or None unless `paired`, and a Draw, where they are `regularised`.
        """
        size = self.options.G_images
        for i, draw in enumerate(draws):
            z, y = self.latents(step, draw, size)
            x, y = self.seen[i % len(self.seen)] if self.paired else (None, y)
            yield (z, y, x, *self._draw(step, draw, size)) if self.regularised else (z, y)

    @property
    def fakes_as_reals(self) -> bool:
        """Whether the fakes of D's passes have the classes of the reals."""
        return self.paired or self.options.D_fake_labels == "real"

    def _draw(self, step, draw, size):
        return [Draw(self.seed, self.ranks, step, draw, size, self.rollbacks)] if self.regularised else []

    def latents(self, step: int, draw: int, batch_size: int) -> list[torch.Tensor]:
        """z (N,dim_z) and y (N,) of this rank for pass `draw` of a step."""
        shape = (batch_size, self.config.dim_z)
        z = self._rng("z", step, draw).standard_normal(shape, dtype="float32")
        y = self._rng("y", step, draw).integers(self.config.n_classes, size=batch_size)
        return [self._mine(array) for array in (z, y)]

    def reals(self, step: int, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Real images x (N,3,R,R) in [-1,1] and their classes y (N,) of this rank for a pass of D."""
        images, y = (tensor.to(self.ranks.device, non_blocking=True) for tensor in next(self.loader))
        images = self.augment(images, step, draw)
        y = torch.zeros_like(y) if self.options.unconditional else y
        if not self.options.dequantise:
            return to_float(images), y
        shape = (self.options.batch_size, *images.shape[1:])
        noise = self._rng("dequantise", step, draw).random(shape, dtype="float32")
        return (images.float() + self._mine(noise)) / 128 - 1, y

    def augment(self, images: torch.Tensor, step: int, draw: int) -> torch.Tensor:
        """What --augment and --flip make of the real images of a pass.

        Crops are uniform over all positions: in images larger than the crop, without a crop size in images padded by 4
        black pixels on every side, as torchvision's RandomCrop(32, padding=4). Flips are horizontal, with probability
        1/2. Args: images: uint8 (N,3,S,S) of this rank, S the resolution of the file. Returns: uint8 (N,3,R,R).
        """
        if self.options.augment:
            size = self.crop_size or images.shape[-1]
            padded = images if self.crop_size else F.pad(images, [CIFAR_PADDING] * 4)
            top, left = self._integers("crop", step, draw, padded.shape[-1] - size + 1, 2).T
            windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view (N,3,positions,positions,size,size)
            images = windows[torch.arange(len(images), device=images.device), :, top, left]
        if self.options.augment or self.options.flip:
            flips = self._integers("flip", step, draw, 2).bool()[:, None, None, None]
            images = torch.where(flips, images.flip(3), images)
        return images

    def _integers(self, stream, step, draw, high, *shape):
        """This rank's of int64 (batch, *shape), below `high`."""
        shape = (self.options.batch_size, *shape)
        return self._mine(self._rng(stream, step, draw).integers(high, size=shape))

    def _rng(self, stream, step, draw):
        return utils.rng(self.seed, stream, step, draw, *([self.rollbacks] if self.rollbacks else []))

    def _mine(self, array):
        """This rank's part of something drawn for the whole batch, on its device."""
        return torch.from_numpy(self.ranks.slice(array)).to(self.ranks.device, non_blocking=True)
