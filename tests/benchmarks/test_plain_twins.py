"""The fast forms of the layers against their plain twins: whole networks, and whole steps of training."""

import copy

import pytest
import torch
from whole_steps import ATTENTION, MODELS, assert_near, batch, networks, steps_of

import layers
import sssm
from benchmarks import plain_twins


def pair(dtype=torch.float64, **model):
    """(G, D) and their plain twins of the same weights."""
    fast = networks(dtype, **model)
    plain = copy.deepcopy(fast)
    plain_twins.make_plain(*plain)
    return [network.to(memory_format=torch.channels_last) for network in fast], plain


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
