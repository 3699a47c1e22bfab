"""Batch norm over all ranks: one process, two and four train alike; groups of images, whoever holds them."""

from contextlib import nullcontext

import clean_forks
import pytest
import torch
from small_models import CLASSES, DIM_Z, small_generator
from torch.nn import functional as F
from train_on_ranks import CPU, RUNS, trained, trained_as_rank

import utils
from sampling.batch_norm import BatchNormMode, prepared
from torch_utils.cross_replica import BatchNorm2d
from torch_utils.distributed import Ranks
from training.batch_statistics import BatchStatistics


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
    processes = [
        clean_forks.context().Process(target=trained_as_rank, args=(rank, world_size, steps, names, tmp_path))
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
