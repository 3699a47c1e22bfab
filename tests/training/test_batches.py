"""What a step sees: the same for any number of ranks, dequantised within a grey level, with the classes asked for."""

import numpy as np
import torch
from torch._subclasses import FakeTensorMode

import train
from model_config import ModelConfig
from torch_utils import distributed
from torch_utils.images import to_float
from training.batches import Batches

CPU = torch.device("cpu")
CONFIG = ModelConfig(resolution=32, n_classes=5, dim_z=6)


def made(*flags, rank=0, world_size=1, device=CPU, loader=None):
    """The Batches of some flags."""
    options, _ = train.parse_args(["--dataset", "x", "--batch_size", "8", *flags])
    ranks = distributed.Ranks(rank, world_size, device)
    return Batches(options.batches, CONFIG, options.data.crop_size, options.run.seed, ranks, loader)


def reals(*flags, rank=0, world_size=1, step=3, draw=1):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (8, 3, 32, 32)).astype(np.uint8))
    ranks = distributed.Ranks(rank, world_size, CPU)
    loader = iter([(ranks.slice(images), ranks.slice(torch.arange(8) % 5))])
    batches = made(*flags, rank=rank, world_size=world_size, loader=loader)
    return ranks.slice(images), *batches.reals(step, draw)


def joined(draw):
    return [torch.cat(parts) for parts in zip(*(draw(rank) for rank in range(2)), strict=True)]


def test_latents_do_not_depend_on_the_number_of_ranks():
    def latents(rank, world_size=2):
        return made(rank=rank, world_size=world_size).latents(3, 1, 8)

    for one, two in zip(latents(0, 1), joined(latents), strict=True):
        assert torch.equal(one, two)


def test_reals_do_not_depend_on_the_number_of_ranks():
    for flags in (["--flip", "--dequantise"], ["--augment"], ["--augment", "--crop_size", "24", "--dequantise"]):
        parts = joined(lambda rank, flags=flags: reals(*flags, rank=rank, world_size=2))
        for one, two in zip(reals(*flags), parts, strict=True):
            assert torch.equal(one, two)


def test_dequantised_reals_fill_their_grey_level():
    images, x, _ = reals("--dequantise")
    noise = (x + 1) * 128 - images  # 2 (x/256 - 1/2) + U(0, 1/128), in grey levels
    assert noise.min() > -1e-4 and noise.max() < 1 + 1e-4 and x.min() >= -1 and x.max() <= 1
    assert abs(noise.mean().item() - 0.5) < 0.01 and abs(noise.std().item() - 12**-0.5) < 0.01
    assert not torch.equal(x, reals("--dequantise", draw=2)[1])
    assert not torch.equal(x, reals("--dequantise", step=4)[1])
    assert torch.equal(reals()[1], to_float(images))


def windows(image, size):
    """All crops of an image (3,S,S), and the same mirrored: {pixels: (mirrored, top, left)}."""
    places = range(image.shape[-1] - size + 1)
    crops = {(0, i, j): image[:, i : i + size, j : j + size] for i in places for j in places}
    mirrored = {(1, i, j): crop.flip(2) for (_, i, j), crop in crops.items()}
    return {crop.numpy().tobytes(): place for place, crop in (crops | mirrored).items()}


def places_of_crops(batches, images, size, num_steps):
    """Where `augment` took each image from, over some steps, (steps * N, 3); each is one of the image's windows."""
    known = [windows(image, size) for image in images]
    crops = [batches.augment(images, step, 0) for step in range(num_steps)]
    return np.array([place[x.numpy().tobytes()] for each in crops for place, x in zip(known, each, strict=True)])


def noise(side):
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (8, 3, side, side)).astype(np.uint8))


def test_augment_takes_every_crop_of_larger_images_equally_often():
    places = places_of_crops(made("--augment", "--crop_size", "8"), noise(10), 8, 200)
    _, counts = np.unique(places, axis=0, return_counts=True)
    assert len(counts) == 2 * 3 * 3
    expected = 200 * 8 / 18
    assert ((counts - expected) ** 2 / expected).sum() < 41  # chi-square of 17 degrees of freedom: 1 in 1000


def test_augment_pads_small_images_with_black():
    images = noise(32)
    padded = torch.zeros(8, 3, 40, 40, dtype=torch.uint8)
    padded[:, :, 4:36, 4:36] = images
    known = [windows(image, 32) for image in padded]
    crops = [made("--augment").augment(images, step, 0) for step in range(30)]
    places = [place[x.numpy().tobytes()] for each in crops for place, x in zip(known, each, strict=True)]
    assert np.array_equal(np.min(places, 0), [0, 0, 0]) and np.array_equal(np.max(places, 0), [1, 8, 8])


def test_augment_includes_flip_and_is_drawn_anew_for_every_pass():
    images = noise(32)

    def augmented(*flags, step=3, draw=1):
        return made(*flags).augment(images, step, draw)

    assert torch.equal(augmented(), images)
    assert torch.equal(augmented("--augment"), augmented("--augment", "--flip"))
    assert torch.equal(augmented("--augment"), augmented("--augment"))
    for other in ({"step": 4}, {"draw": 2}):
        assert not torch.equal(augmented("--augment"), augmented("--augment", **other))
    assert not torch.equal(augmented("--augment"), augmented("--augment", "--seed", "1"))
    mirrored = (augmented("--flip") != images).flatten(1).any(1)
    assert mirrored.any() and not mirrored.all()


def test_augment_stays_on_the_device():
    with FakeTensorMode():
        images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
        for flags in (["--augment"], ["--augment", "--crop_size", "24"]):
            augmented = made(*flags, device=torch.device("cuda")).augment(images, 3, 1)
            assert augmented.device.type == "cuda" and augmented.shape[-1] == (24 if flags[1:] else 32)


def test_fakes_of_D_take_the_classes_that_are_asked_for():
    for labels in ("random", "real"):
        loader = iter([(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 5)] * 3)
        passes = list(made("--D_fake_labels", labels, loader=loader).D_passes(1, range(3)))
        assert len(passes) == 3
        assert all(torch.equal(y, y_fake) for _, y, _, y_fake in passes) == (labels == "real")


def test_G_may_see_a_larger_batch_than_D():
    for size, flags in ((4, []), (8, ["--G_batch_size", "16"])):
        ((z, y),) = made(*flags, rank=1, world_size=2).G_passes(1, [0])
        assert z.shape == (size, 6) and y.shape == (size,)
