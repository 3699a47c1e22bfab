"""The fast forms of the layers against their plain twins: whole networks, and whole steps of training."""

import copy

import pytest
import torch
from small_models import small_config

import BigGAN
import layers
import sssm
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


def pair(dtype=torch.float64, **model):
    """(G, D) and their plain twins of the same weights; attention's and SSM's scales are not 0."""
    torch.manual_seed(0)
    fast = [network.to(dtype) for network in BigGAN.build(small_config(**model))]
    for network in fast:
        for parameter in network.parameters():
            if parameter.ndim == 0:
                torch.nn.init.constant_(parameter, 0.6)
    plain = copy.deepcopy(fast)
    plain_twins.make_plain(*plain)
    return [network.to(memory_format=torch.channels_last) for network in fast], plain


def batch(G, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 3, 16, 16, generator=g, dtype=dtype) * 2 - 1
    return x, torch.randn(6, G.config.dim_z, generator=g, dtype=dtype), torch.arange(6) % G.config.n_classes


def assert_near(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def test_every_fast_layer_has_a_twin():
    fast = {cls for cls in vars(layers).values() if isinstance(cls, type) and hasattr(cls, "fused")}
    assert fast | {*sssm.STAGES.values(), layers.ConditionalBatchNorm2d, layers.SelfAttention} == set(plain_twins.TWINS)
    _, (G, D) = pair(ssm="voxel", **ATTENTION)
    assert not any(type(module) in plain_twins.TWINS for network in (G, D) for module in network.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_outputs_and_gradients_equal_the_twins(model, training):
    results = []
    for G, D in pair(**model):
        G.train(training), D.train(training)
        _, z, y = batch(G)
        images = G(z.requires_grad_(True), y)
        logits = D(images, y)
        weights = torch.linspace(-1, 2, len(logits), dtype=logits.dtype)
        inputs = [z, *(p for network in (G, D) for p in network.parameters())]
        gradients = torch.autograd.grad((logits * weights).sum(), inputs, allow_unused=True)
        results.append([images, logits, *(g for g in gradients if g is not None)])
    assert_near(*results)


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_step_equals_the_twins(model):
    """Losses, gradients, Adam, moving average and buffers."""
    results = []
    for (G, D), plain in zip(pair(**model), (False, True), strict=True):
        losses, state = steps_of(G, D, plain, torch.float64, 1)
        gradients = [p.grad for network in (G, D) for p in network.parameters() if p.grad is not None]
        results.append([*losses[0].values(), *gradients, *state])
    assert_near(*results)


@pytest.mark.parametrize("model", [MODELS[1], MODELS[6]])
def test_losses_in_float32_follow_the_twins(model):
    ours, theirs = (
        steps_of(*networks, plain, torch.float32, 3)[0]
        for networks, plain in zip(pair(torch.float32, **model), (False, True), strict=True)
    )
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=(1e-4, 1e-3, 1e-3)[step], atol=(1e-4, 1e-3, 1e-3)[step])


def steps_of(G, D, plain, dtype, count):
    """The losses of each of some training steps, and floating-point state of G, D and the average after them."""
    if plain:
        optimizers = [plain_twins.PlainAdam(net.parameters(), lr=RATES[f"{n}_lr"], betas=(0.0, 0.999))
                      for n, net in (("G", G), ("D", D))]  # fmt: skip
    else:
        optimizers = make_optimizers(G, D, OptimizerOptions(**RATES))
    average = (plain_twins.PlainAverage if plain else MovingAverage)(G, 0.9, 0)
    losses = []
    for step in range(1, count + 1):
        x, z, y = batch(G, step, dtype)
        terms = d_step(G, D, D, optimizers[1], [(x, y, z, y)], 1, 1e-4)
        losses.append(terms | g_step(G, D, G, optimizers[0], [(z, y)], 1, 1e-4))
        average.update(step)
    state = [t for module in (G, D, average.module) for t in module.state_dict().values() if t.is_floating_point()]
    return losses, state
