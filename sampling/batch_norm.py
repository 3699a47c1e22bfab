"""Which batch-norm statistics a generator is evaluated and sampled with: running, batch or standing ones.

The evaluated network is left as it was, bit for bit: weights, buffers, modes and torch's random state, whatever happens
in between.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import layers
import utils
from model_config import ModelConfig
from sampling import generate
from sampling.latents import Truncation, latents, random_labels
from torch_utils import memory
from utils import Options, option, positive_int


@dataclass(frozen=True)
class BatchNormMode(Options):
    """running: the averages of training; batch: each block of `bn_batch_size` images has its own statistics; standing:
    averages over `num_standing_accumulations` batches of `bn_batch_size` images, made for the occasion."""

    title = "batch norm of G in evaluations and samples"

    bn_mode: str = option(
        "running",
        "running: averages of training (BigGAN-PyTorch's --G_eval_mode); batch: of each block of images itself "
        "(StudioGAN's -batch_stat); standing: averages over batches made for the purpose (StudioGAN's -std_stat, "
        "BigGAN-PyTorch's --accumulate_stats). If none is named: running, or standing where z is truncated and the "
        "weights hold no statistics for that truncation",
        choices=("running", "batch", "standing"),
    )
    bn_batch_size: int = option(64, "images of a block (batch) or of a batch (standing)", kind=positive_int)
    num_standing_accumulations: int = option(
        16, "batches that standing statistics are the average of", kind=positive_int
    )

    @property
    def block_size(self) -> int | None:
        """Images that share their statistics, and are always generated together; None where images are independent."""
        return self.bn_batch_size if self.bn_mode == "batch" else None

    def whole(self, num_images: int) -> int:
        """The number of images in the blocks that `num_images` images are part of."""
        block = self.block_size or 1
        return -(-num_images // block) * block

    def check_fits(self, config: ModelConfig, device: torch.device) -> None:
        """Raise utils.UserError where the device cannot hold the batches that this takes, before they are drawn."""
        if self.bn_mode != "running":
            generate.check_fits(config, self.bn_batch_size, device, "--bn_batch_size")
        if self.bn_mode == "standing":
            flag = f"--num_standing_accumulations {self.num_standing_accumulations:,}"
            labels = 8 * self.num_standing_accumulations * self.bn_batch_size
            memory.check_fits(labels, torch.device("cpu"), flag, "lower it")

    def protocol(self) -> dict:
        """What a metric's protocol says of it."""
        meaningful = {"running": 1, "batch": 2, "standing": 3}[self.bn_mode]  # of the fields
        return dict(list(self.record().items())[:meaningful])


RUNNING = BatchNormMode()


def chosen_mode(values: dict, truncation: Truncation | None, own: Truncation | None) -> BatchNormMode:
    """The mode of flags by name; where bn_mode is None, the one that suits the truncation, said if it is not `running`.

    Running statistics are of the z of training: under another distribution they make images pale, down to white ones.
    own: the truncation that the running statistics are for, as a converted checkpoint may say.
    """
    if values["bn_mode"] is not None:
        return BatchNormMode.of(values)
    suits = truncation is None or truncation == own or truncation.changes_nothing
    if not suits and utils.is_main_process():
        print(
            "truncated z: batch norm uses standing statistics, made for it, as the running ones are of training's z "
            "(--bn_mode running uses those)"
        )
    return BatchNormMode.of({**values, "bn_mode": "running" if suits else "standing"})


@contextlib.contextmanager
def prepared(
    G: nn.Module,
    mode: BatchNormMode,
    seed: int,
    truncation: Truncation | None = None,
    class_counts: Sequence[int] | None = None,
) -> Iterator[nn.Module]:
    """Yield the network to make images with: G itself, or for standing statistics a copy of it, in eval mode.

    seed, truncation, class_counts (what classes are drawn by, None: evenly): of the images that standing statistics are
    made from. Under `batch` the caller makes the images in whole blocks of mode.block_size.
    """
    if mode.bn_mode == "standing":
        yield standing_copy(G, mode, seed, truncation, class_counts)
        return
    with evaluating(G), batch_statistics(G) if mode.bn_mode == "batch" else contextlib.nullcontext():
        yield G


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block the module and its parts are in eval mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def batch_statistics(module: nn.Module, accumulate: bool = False) -> Iterator[None]:
    """Within the block the batch norms of `module`, and nothing else in it, use the statistics of their batch.

    The running statistics stay as they are, unless `accumulate` says that they follow, as in training. Spectral norm
    takes no power iteration. The batch is this process's, whatever --cross_replica does in training.
    """
    norms = [part for part in module.modules() if isinstance(part, (nn.BatchNorm2d, layers.ConditionalBatchNorm2d))]
    changed = ("training", "track_running_stats", "groups")  # attributes: train() would reach the layers inside of it
    before = [(norm, {name: getattr(norm, name) for name in changed if hasattr(norm, name)}) for norm in norms]
    try:
        for norm, values in before:
            for name in values:
                setattr(norm, name, {"training": True, "track_running_stats": accumulate, "groups": None}[name])
        yield
    finally:
        for norm, values in before:
            for name, value in values.items():
                setattr(norm, name, value)


@torch.no_grad()
def standing_copy(
    G: nn.Module,
    mode: BatchNormMode,
    seed: int,
    truncation: Truncation | None = None,
    class_counts: Sequence[int] | None = None,
) -> nn.Module:
    """A copy of G, in eval mode, whose running statistics are made afresh (Brock et al. 2019, appendix C).

    They are the plain averages of mean and (unbiased) variance over the mode's number of batches of images with random
    z, under `truncation`, and random classes, by `class_counts` if any: a function of G and the seed. As in training,
    each layer sees what the layers before it make of the batch with the batch's own statistics.
    """
    G = copy.deepcopy(G).requires_grad_(False).eval()
    G.zero_grad(set_to_none=True)  # the copy's gradients are copies too
    device = next(G.parameters()).device
    norms = [norm for norm in G.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
    size = mode.bn_batch_size
    number, classes = mode.num_standing_accumulations * size, range(G.config.n_classes)
    y = random_labels(seed, number, classes, stream="standing_y", counts=class_counts)
    with batch_statistics(G, accumulate=True):
        for i, y_batch in enumerate(y.split(size)):
            z = latents(seed, range(i * size, (i + 1) * size), G.config.dim_z, truncation, stream="standing_z")
            for norm in norms:
                norm.momentum = 1 / (i + 1)  # of the new batch: the plain average of all so far
            try:
                G(z.to(device), y_batch.to(device))
            except torch.OutOfMemoryError as error:
                raise utils.UserError(f"{device} has too little free memory for --bn_batch_size {size}") from error
    return G
