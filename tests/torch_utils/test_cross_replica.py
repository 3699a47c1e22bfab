"""Batch norm over all ranks: one process, two and four train alike; groups of images, whoever holds them."""

import itertools
import multiprocessing
from contextlib import nullcontext

import pytest
import torch
from small_models import CLASSES, DIM_Z, RESOLUTION, small_config, small_generator
from torch.nn import functional as F

import BigGAN
import utils
from sampling.batch_norm import BatchNormMode, prepared
from torch_utils import distributed
from torch_utils.cross_replica import BatchNorm2d
from torch_utils.distributed import Ranks
from training.batch_statistics import BatchStatistics
from training.ema import MovingAverage
from training.optimizers import OptimizerOptions, make_optimizers
from training.steps import d_step, g_step

CPU = torch.device("cpu")
BATCH, ACCUMULATIONS = 12, 2
# Name -> the model's options, the type, the group size.
RUNS = {
    "conditional": ({}, torch.float32, 0),
    "shared, hier, ssm": ({"G_shared": True, "hier": True, "ssm": "voxel"}, torch.float64, 0),
    "plain, ssm": ({"G_cbn": False, "ssm": "global_voxel"}, torch.float32, 0),
    "groups of 6": ({"ssm": "gain"}, torch.float64, 6),
    "groups of 4": ({"G_cbn": False}, torch.float64, 4),  # a rank has parts of groups: of 6 images, or of 3
}


def draw(step, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def trained(name, steps, ranks):
    """State dicts of G, D and the average after so many steps of accumulated passes on this rank's slices."""
    options, dtype, size = RUNS[name]
    torch.manual_seed(0)
    G, D = (net.to(dtype) for net in BigGAN.build(small_config(G_init="ortho", **options)))
    average = MovingAverage(G, 0.5, 3)
    BatchStatistics(True, size).apply(G, ranks)
    # A bias before a batch norm has gradient 0, of which rounding leaves 1e-9 in float32: Adam's usual eps would make
    # whole steps of that, in one process as in two.
    opt_G, opt_D = make_optimizers(G, D, OptimizerOptions(adam_eps=1e-2 if dtype == torch.float32 else 1e-8))
    forward_G, forward_D = (distributed.data_parallel(net, ranks) for net in (G, D))
    draws = itertools.count()

    def latents():
        z = ranks.slice(draw(next(draws), BATCH, DIM_Z)).to(dtype)
        return z[:, : G.config.dim_z], ranks.slice((torch.arange(BATCH) + next(draws)) % CLASSES)

    def reals():
        return ranks.slice(draw(next(draws), BATCH, 3, RESOLUTION, RESOLUTION)).to(dtype), latents()[1]

    for step in range(1, steps + 1):
        d_step(G, D, forward_D, opt_D, ((*reals(), *latents()) for _ in range(ACCUMULATIONS)), ACCUMULATIONS, 0.0)
        g_step(G, D, forward_G, opt_G, (latents() for _ in range(ACCUMULATIONS)), ACCUMULATIONS, 1e-4)
        average.update(step)
    return [net.state_dict() for net in (G, D, average.module)]


def trained_as_rank(rank, world_size, steps, names, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, CPU)
    torch.save({name: trained(name, steps, ranks) for name in names}, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "world_size, steps, names",
    [
        (2, 3, ["groups of 4"]),
        pytest.param(2, 20, ["conditional", "shared, hier, ssm"], marks=pytest.mark.slow),
        pytest.param(4, 3, ["groups of 4"], marks=pytest.mark.slow),
        pytest.param(4, 20, ["plain, ssm", "groups of 6"], marks=pytest.mark.slow),
    ],
    ids=["2 ranks, few steps", "2 ranks", "4 ranks, few steps", "4 ranks"],
)
def test_any_number_of_ranks_trains_the_same(world_size, steps, names, tmp_path):
    context = multiprocessing.get_context("fork")  # the imports of new processes would take many seconds
    processes = [
        context.Process(target=trained_as_rank, args=(rank, world_size, steps, names, tmp_path))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        assert process.exitcode == 0
    of_rank = [torch.load(tmp_path / f"{rank}.pth") for rank in range(world_size)]
    for name in names:
        alone = trained(name, steps, Ranks(0, 1, CPU))
        tolerance = 1e-5 if RUNS[name][1] == torch.float32 else 1e-10
        for i, network in enumerate(alone):
            for key, expected in network.items():
                values = [states[name][i][key] for states in of_rank]
                assert torch.allclose(values[0], expected, rtol=tolerance, atol=tolerance), (name, i, key)
                assert all(torch.equal(value, values[0]) for value in values), (name, i, key)


def grouped(size, channels=5, **options):
    norm = BatchNorm2d(channels, **options)
    BatchStatistics(True, size).apply(norm, Ranks(0, 1, CPU))
    return norm


@pytest.mark.parametrize("affine", [False, True])
def test_a_group_is_torchs_batch_norm_of_its_images(affine):
    norm = grouped(4, affine=affine).double()
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = (1e3 + torch.randn(8, 5, 3, 3, dtype=torch.float64)).requires_grad_()
    expected = torch.cat([F.batch_norm(part, None, None, norm.weight, norm.bias, True) for part in x.split(4)])
    weights = torch.randn_like(x)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *norm.parameters()])
    y = norm(x)
    assert torch.allclose(y, expected, atol=1e-8)
    for gradient, other in zip(torch.autograd.grad((y * weights).sum(), [x, *norm.parameters()]), wanted, strict=True):
        assert torch.allclose(gradient, other, atol=1e-8)
    halves = torch.stack(x.split(4)).transpose(1, 2).flatten(2)  # (2,C,4HW)
    assert torch.allclose(norm.running_mean, 0.1 * halves.mean(2).mean(0))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * halves.var(2).mean(0)) and norm.num_batches_tracked == 1


def test_gradients_are_those_of_finite_differences():
    norm = grouped(2, 2, affine=False).double()
    assert torch.autograd.gradcheck(norm, torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_float32_under_mixed_precision(dtype):
    """An offset of which a sum in 8 or 11 bits would leave nothing."""
    norm = grouped(4)
    x = (8 + torch.randn(8, 5, 4, 4)).to(dtype).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype):
        y = norm(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    expected = torch.cat([F.batch_norm(part.float(), None, None, training=True) for part in x.split(4)])
    assert torch.allclose(y.float(), expected, atol=0.05) and norm.running_mean.dtype == torch.float32
    assert torch.allclose(norm.running_mean, 0.1 * x.float().mean((0, 2, 3)), atol=1e-4)


def test_one_process_without_groups_is_torchs_batch_norm_bit_for_bit():
    x = torch.randn(8, 5, 3, 3)
    assert grouped(0).groups is None and torch.equal(grouped(0)(x), torch.nn.BatchNorm2d(5)(x))


@pytest.mark.parametrize("mode", ["running", "batch", "standing"])
def test_evaluations_use_their_own_statistics(mode):
    """Those of their blocks: ranks evaluate by themselves, and must not wait for another."""
    plain, G = small_generator(), small_generator()
    BatchStatistics(True, 0).apply(G, Ranks(0, 2, CPU))  # which would fail to communicate
    z, y = torch.randn(8, DIM_Z), torch.arange(8) % CLASSES
    images = []
    for net in (plain, G):
        with prepared(net, BatchNormMode(mode, 8, 2), seed=0) as ready, torch.no_grad():
            images.append(ready(z, y))
    assert torch.equal(*images)
    assert all(norm.groups is not None for norm in G.modules() if isinstance(norm, BatchNorm2d))


@pytest.mark.parametrize(
    "options, compiled, batches, message",
    [
        ({"bn_group_size": 4}, False, {}, "--bn_group_size 4 goes with --cross_replica"),
        ({"cross_replica": True, "bn_group_size": 5}, False, {"batch_size": 8}, "does not divide --batch_size 8"),
        ({"cross_replica": True, "bn_group_size": 16}, False, {"batch_size": 8}, "does not divide --batch_size 8"),
        ({"cross_replica": True}, True, {"batch_size": 8}, "--compile does not go with --cross_replica"),
        ({"cross_replica": True, "bn_group_size": 4}, False, {"batch_size": 8}, None),
    ],
)
def test_what_does_not_go_together_is_one_line(options, compiled, batches, message):
    with pytest.raises(utils.UserError, match=message) if message else nullcontext():
        BatchStatistics(**options).check(compiled, **batches)
