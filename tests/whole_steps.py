"""Models, batches and whole training steps, for tests that compare two ways of computing them."""

import torch
from small_models import small_config

import BigGAN
from benchmarks import plain_twins
from training.ema import MovingAverage
from training.optimizers import OptimizerOptions, make_optimizers
from training.steps import d_step, g_step

ATTENTION = {"G_attn": (8,), "D_attn": (8,)}
BIGGAN = {"G_shared": True, "hier": True}
MODELS = [
    ATTENTION,
    {"ssm": "voxel", **ATTENTION},
    {"ssm": "global_voxel", "ssm_zero_init": True},
    {"ssm": "group_gain", "G_cbn": False},
    {"D_cond": "concat", "D_ch_mult": (1, 2, 2), **BIGGAN, **ATTENTION},
    {"ssm": "voxel", "D_relu_shortcut": True, **BIGGAN, **ATTENTION},
    {"model": "BigGANdeep", "ssm": "gain", **BIGGAN, **ATTENTION},
    {"model": "BigGANdeep", "deep_style": "studiogan", **BIGGAN},
]
RATES = {"G_lr": 1e-4, "D_lr": 4e-4}


def networks(dtype=torch.float64, **model):
    """A small G and D; attention's and SSM's scales are not 0."""
    torch.manual_seed(0)
    pair = [network.to(dtype) for network in BigGAN.build(small_config(**model))]
    for network in pair:
        for parameter in network.parameters():
            if parameter.ndim == 0:
                torch.nn.init.constant_(parameter, 0.6)
    return pair


def batch(G, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 3, 16, 16, generator=g, dtype=dtype) * 2 - 1
    return x, torch.randn(6, G.config.dim_z, generator=g, dtype=dtype), torch.arange(6) % G.config.n_classes


def assert_near(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def steps_of(G, D, plain, dtype, count):
    """The losses of each of some training steps, and floating-point state of G, D and the average after them.

    plain: whether G and D are twins, which have a plain Adam and a plain average.
    """
    device = G.linear.weight.device
    if plain:
        optimizers = [plain_twins.PlainAdam(net.parameters(), lr=RATES[f"{n}_lr"], betas=(0.0, 0.999))
                      for n, net in (("G", G), ("D", D))]  # fmt: skip
    else:
        optimizers = make_optimizers(G, D, OptimizerOptions(**RATES))
    average = (plain_twins.PlainAverage if plain else MovingAverage)(G, 0.9, 0)
    losses = []
    for step in range(1, count + 1):
        x, z, y = (t.to(device) for t in batch(G, step, dtype))
        terms = d_step(G, D, D, optimizers[1], [(x, y, z, y)], 1, 1e-4)
        losses.append(terms | g_step(G, D, G, optimizers[0], [(z, y)], 1, 1e-4))
        average.update(step)
    state = [t for module in (G, D, average.module) for t in module.state_dict().values() if t.is_floating_point()]
    return losses, state
