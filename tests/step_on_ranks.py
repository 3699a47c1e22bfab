"""A step of D and G on slices of a batch; `python tests/step_on_ranks.py DEVICE FILE` is what torchrun's ranks do."""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from whole_steps import ATTENTION, batch, networks

from torch_utils.distributed import Ranks, broadcast_buffers, data_parallel, mean_over_ranks, on_ranks, process_group
from training.steps import d_step, g_step


def step(ranks: Ranks) -> dict:
    """Losses, weights and buffers after a step; batch norm is in evaluation, so that images are independent."""
    G, D = (net.to(ranks.device, memory_format=torch.channels_last) for net in networks(ssm="voxel", **ATTENTION))
    G.eval()
    forward_G, forward_D = (data_parallel(network, ranks) for network in (G, D))
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (G, D)]
    x, z, y = (ranks.slice(t).to(ranks.device) for t in batch(G))
    terms = d_step(G, D, forward_D, optimizers[1], [(x, y, z, y)] * 2, 2, 1e-4)
    terms |= g_step(G, D, forward_G, optimizers[0], [(z, y)] * 2, 2, 1e-4)
    broadcast_buffers([G, D], ranks)
    losses = mean_over_ranks(terms, ranks)
    state = {f"{name}.{key}": t.cpu() for name, net in (("G", G), ("D", D)) for key, t in net.state_dict().items()}
    return state | {name: torch.tensor(value, dtype=torch.float64) for name, value in losses.items()}


if __name__ == "__main__":
    with process_group(sys.argv[1]) as ranks:
        result = step(ranks)
        on_ranks(ranks, lambda: torch.save(result, sys.argv[2]))
