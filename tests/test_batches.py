"""What a step sees: the same for any number of ranks, dequantised within a grey level, with the classes asked for."""

import numpy as np
import torch

import batches
import train
import utils
from model_config import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(resolution=32, n_classes=5, dim_z=6)


def parse(*flags):
    return train.parse_args(["--dataset", "x", "--batch_size", "8", *flags])


def reals(args, rank=0, world_size=1, step=3, draw=1):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (8, 3, 32, 32)).astype(np.uint8))
    ranks = utils.Ranks(rank, world_size, CPU)
    loader = iter([(ranks.slice(images), ranks.slice(torch.arange(8) % 5))])
    return ranks.slice(images), *batches.draw_reals(args, loader, ranks, step, draw)


def joined(draw):
    return [torch.cat(parts) for parts in zip(*(draw(rank) for rank in range(2)), strict=True)]


def test_latents_do_not_depend_on_the_number_of_ranks():
    def latents(rank, world_size=2):
        return batches.draw_latents(parse(), CONFIG, utils.Ranks(rank, world_size, CPU), 3, 1, 8)

    for one, two in zip(latents(0, 1), joined(latents), strict=True):
        assert torch.equal(one, two)


def test_reals_do_not_depend_on_the_number_of_ranks():
    args = parse("--flip", "--dequantise")
    for one, two in zip(reals(args), joined(lambda rank: reals(args, rank, 2)), strict=True):
        assert torch.equal(one, two)


def test_dequantised_reals_fill_their_grey_level():
    images, x, _ = reals(parse("--dequantise"))
    noise = (x + 1) * 128 - images  # 2 (x/256 - 1/2) + U(0, 1/128), in grey levels
    assert noise.min() > -1e-4 and noise.max() < 1 + 1e-4 and x.min() >= -1 and x.max() <= 1
    assert abs(noise.mean().item() - 0.5) < 0.01 and abs(noise.std().item() - 12**-0.5) < 0.01
    assert not torch.equal(x, reals(parse("--dequantise"), draw=2)[1])
    assert not torch.equal(x, reals(parse("--dequantise"), step=4)[1])
    assert torch.equal(reals(parse())[1], utils.to_float(images))


def test_fakes_of_D_take_the_classes_that_are_asked_for():
    for labels in ("random", "real"):
        loader = iter([(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 5)] * 3)
        args = parse("--D_fake_labels", labels)
        passes = list(batches.D_passes(args, CONFIG, utils.Ranks(0, 1, CPU), loader, 1, range(3)))
        assert len(passes) == 3
        assert all(torch.equal(y, y_fake) for _, y, _, y_fake in passes) == (labels == "real")


def test_G_may_see_a_larger_batch_than_D():
    ranks = utils.Ranks(1, 2, CPU)
    for size, flags in ((4, []), (8, ["--G_batch_size", "16"])):
        ((z, y),) = batches.G_passes(parse(*flags), CONFIG, ranks, 1, [0])
        assert z.shape == (size, 6) and y.shape == (size,)
