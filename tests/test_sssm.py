"""Spatial self-modulation: each variant's formula, its start, and its place in every generator."""

import dataclasses

import pytest
import torch

import BigGAN
import sssm
from model_config import SSM_VARIANTS, ModelConfig

VARIANTS = SSM_VARIANTS[1:]
TINY = ModelConfig(resolution=32, n_classes=4, dim_z=24, G_ch=4, G_attn=(16,), D_attn=())
BIGGAN = {"G_shared": True, "hier": True, "shared_dim": 12}
NETWORKS = [{}, BIGGAN, {"model": "BigGANdeep", **BIGGAN}]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def standardized(h, dims):
    return (h - h.mean(dims, keepdim=True)) / h.std(dims, keepdim=True)


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_modulation_is_the_published_formula(variant, zero_init):
    stage = sssm.STAGES[variant](4, 8, {"sn": False}, zero_init).double()
    s, h = torch.randn(3, 4, 2, 2, dtype=torch.float64), 2 + 3 * torch.randn(3, 8, 4, 4, dtype=torch.float64)
    scale = 1.0
    if zero_init:
        scale = 0.3
        stage.scale.data.fill_(scale)
    new_s, out = stage(s, h)
    a = scale * stage.gain(new_s)
    if variant == "group_gain":
        assert a.shape == (3, 2, 4, 4)
        a = torch.cat([a, a, a, a], dim=1)
    if variant in ("gain", "group_gain"):
        expected = h * (1 + a)
    else:
        if variant == "global_voxel":
            pooled = new_s.mean((2, 3), keepdim=True)
            h = standardized(h, (2, 3)) * (1 + scale * stage.global_gain(pooled)) + scale * stage.global_bias(pooled)
        expected = standardized(h, (1, 2, 3)) * (1 + a) + scale * stage.bias(new_s)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("G_cbn", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_generator_runs_with_every_variant(variant, network, G_cbn):
    G = BigGAN.Generator(dataclasses.replace(TINY, ssm=variant, G_cbn=G_cbn, ssm_zero_init=True, **network))
    z, y = torch.randn(2, 24, requires_grad=True), torch.tensor([0, 3])
    G(z, y).sum().backward()
    assert z.grad.abs().min() > 0 or not G_cbn
    assert not [name for name, p in G.named_parameters() if p.grad is None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_init_starts_without_modulation_and_learns(variant):
    """At first neither the stream's noise nor its class reaches the image, but the scales have a gradient."""
    G = BigGAN.Generator(dataclasses.replace(TINY, ssm=variant, ssm_zero_init=True))
    z, y = torch.randn(4, 24), torch.tensor([0, 1, 2, 3])
    before = G.eval()(z, y)
    G.ssm.embedding.weight.data += 1
    assert torch.equal(G(z, y), before)
    if variant in ("gain", "group_gain"):  # without normalisation this start is the generator without SSM
        plain = BigGAN.Generator(TINY).eval()
        plain.load_state_dict({k: v for k, v in G.state_dict().items() if not k.startswith("ssm.")})
        torch.testing.assert_close(plain(z, y), before)
    (G(z, y) * torch.linspace(-1, 1, before.numel()).view_as(before)).sum().backward()
    assert all(stage.scale.grad.abs() > 0 for stage in G.ssm.stages)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("init", ["ortho", "xavier", "N02"])
def test_start_is_well_scaled(init, network):
    """Standard deviations of a fresh generator in training mode: of each stage within [0.3, 3], of the image within a
    factor 2 of the generator's without SSM. The published form needs no remedy for it."""
    config = dataclasses.replace(TINY, G_ch=16, G_ch_mult=(4, 4, 2, 1), G_init=init, **network)
    of_plain = image_std(BigGAN.Generator(config))[0]
    for variant in VARIANTS:
        of_image, of_stages = image_std(BigGAN.Generator(dataclasses.replace(config, ssm=variant)))
        assert of_plain / 2 < of_image < of_plain * 2
        assert all(0.3 < std < 3 for std in of_stages), (variant, of_stages)


def image_std(G):
    stages = []
    for stage in G.ssm.stages if G.ssm else ():
        stage.register_forward_hook(lambda module, inputs, outputs: stages.append(outputs[1].std().item()))
    with torch.no_grad():
        image = G.train()(torch.randn(32, 24), torch.arange(32) % 4)
    return image.std().item(), stages
