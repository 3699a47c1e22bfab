"""How much the fused resampling convolutions save: one training step of D and G, fused against the plain composition.

    python benchmarks/bench_resampling.py [--resolution 64 --ch 32 --batch_size 32 --repeats 5]

Both forms run in turn in one process, so that a machine whose speed drifts slows both; the ratio of medians is what to
quote. Operations are counted by PyTorch (a multiply-add is 2).
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import BigGAN
from model_config import ModelConfig
from torch_utils import distributed
from training import model_size, steps


def make_step(ssm, args, device):
    """The networks of a SAGAN, and a function that trains both for one step and returns the loss terms."""
    attention = (args.resolution // 2,)
    config = ModelConfig(
        resolution=args.resolution,
        n_classes=100,
        G_ch=args.ch,
        D_ch=args.ch,
        G_attn=attention,
        D_attn=attention,
        ssm=ssm,
    )
    torch.manual_seed(0)
    G, D = (net.to(device, memory_format=torch.channels_last) for net in BigGAN.build(config))
    opt_G, opt_D = (torch.optim.SGD(net.parameters(), lr=0.0) for net in (G, D))  # the weights stay: losses compare
    x = torch.rand(args.batch_size, 3, args.resolution, args.resolution, device=device) * 2 - 1
    z = torch.randn(args.batch_size, config.dim_z, device=device)
    y = torch.arange(args.batch_size, device=device) % 100

    def step():
        terms = steps.d_step(G, D, D, opt_D, [(x, y, z, y)], 1, 0) | steps.g_step(G, D, G, opt_G, [(z, y)], 1, 0)
        return {name: value.item() for name, value in terms.items()}  # waits for a GPU

    return (G, D), step


def measure(ssm, args, device):
    networks, step = make_step(ssm, args, device)
    seconds, flops = {True: [], False: []}, {}
    for fused in (True, False):
        model_size.set_fused(networks, fused)
        with FlopCounterMode(display=False) as counter:
            step()
        flops[fused] = counter.get_total_flops()
    for _ in range(args.repeats):
        for fused in (True, False):
            model_size.set_fused(networks, fused)
            start = time.perf_counter()
            step()
            seconds[fused].append(time.perf_counter() - start)
    return {fused: statistics.median(times) for fused, times in seconds.items()}, flops


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--ch", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    distributed.add_device_arg(parser)
    args = parser.parse_args()
    device = distributed.resolve_device(args.device)
    print(f"SAGAN-{args.resolution} ch {args.ch}, batch {args.batch_size}, {device}, {torch.get_num_threads()} threads")
    print(f"{'':>6}{'plain s':>10}{'fused s':>10}{'speed-up':>10}{'plain GFLOP':>14}{'fused GFLOP':>14}{'ratio':>8}")
    for ssm in ("none", "voxel"):
        seconds, flops = measure(ssm, args, device)
        print(
            f"{ssm:>6}{seconds[False]:>10.3f}{seconds[True]:>10.3f}{seconds[False] / seconds[True]:>9.2f}x"
            f"{flops[False] / 1e9:>14.0f}{flops[True] / 1e9:>14.0f}{flops[False] / flops[True]:>7.2f}x"
        )


if __name__ == "__main__":
    main()
