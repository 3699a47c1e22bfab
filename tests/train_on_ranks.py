"""Training with batch norm over all ranks, as a process of several or alone: what test_cross_replica.py compares."""

import itertools

import torch
from small_models import CLASSES, DIM_Z, RESOLUTION, small_config

import BigGAN
from torch_utils import distributed
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
