"""Sizes and costs counted on the meta device against what real networks do."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import BigGAN
from model_config import ModelConfig
from training import model_size

CONFIG = ModelConfig(resolution=32, n_classes=7, dim_z=12, G_ch=8, D_ch=8, G_attn=(16,), D_attn=(16,), ssm="voxel")


def saved_bytes(forward, n):
    """What autograd keeps of a real forward of n images."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    z, x, y = torch.randn(n, CONFIG.dim_z), torch.randn(n, 3, 32, 32), torch.arange(n) % 7
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(z, x, y)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_of_a_pass_is_what_autograd_keeps():
    G, D = BigGAN.build(CONFIG)
    state, d_pass, g_pass = model_size.training_bytes(CONFIG, averages=1)
    real = [
        (saved_bytes(forward, 24) - saved_bytes(forward, 8)) / 16
        for forward in (
            lambda z, x, y: D(torch.cat([x, x]), torch.cat([y, y])),
            lambda z, x, y: D.requires_grad_(False)(G(z, y), y),
        )
    ]
    assert [d_pass, g_pass] == pytest.approx(real, rel=0.1)  # attention on the CPU keeps less than its plain form
    weights = [4 * sum(p.numel() for p in net.parameters()) for net in (G, D)]
    assert state == pytest.approx(5 * sum(weights) + weights[0], rel=0.01)


@pytest.mark.parametrize("options", [{}, {"G_shared": True, "hier": True}, {"D_cond": "concat", "D_num_down": 2}])
@pytest.mark.parametrize("fused", [True, False])
def test_multiply_adds_are_those_of_a_real_forward(fused, options):
    config = dataclasses.replace(CONFIG, G_attn=(), D_attn=(), **options)
    counted = model_size.multiply_adds(config, fused=fused)
    G, D = (net.eval() for net in BigGAN.build(config))
    model_size.set_fused((G, D), fused)
    z, x, y = torch.randn(1, config.dim_z), torch.randn(1, 3, 32, 32), torch.tensor([3])
    for network, inputs, expected in ((G, (z, y), counted[0]), (D, (x, y), counted[1])):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*inputs)
        assert counter.get_total_flops() // 2 == expected


def test_attention_is_counted():
    with_attention, without = (
        model_size.multiply_adds(dataclasses.replace(CONFIG, G_attn=where), fused=True)[0] for where in ((16,), ())
    )
    c, positions = 32, 16 * 16
    convolutions = positions * (2 * c * (c // 8) + 2 * c * (c // 2))
    products = positions * (positions // 4) * (c // 8 + c // 2)
    assert with_attention - without == convolutions + products
