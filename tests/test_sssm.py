"""Spatial self-modulation: each variant's formula, its start, and its place in every generator."""

import dataclasses

import pytest
import torch

import BigGAN
import sssm
from model_config import SSM_VARIANTS, ModelConfig
from training import model_size

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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_width_and_stages_in_every_generator(network, variant):
    for options in ({"ssm_width": 0.5}, {"ssm_width": 0}, {"ssm_width": 0.01, "ssm_stages": (3, 1)}):
        config = dataclasses.replace(TINY, ssm=variant, **network, **options)
        G = BigGAN.Generator(config)
        G(torch.randn(2, 24), torch.tensor([0, 3])).sum().backward()
        assert not [name for name, p in G.named_parameters() if p.grad is None]
        assert ModelConfig.from_dict(config.to_dict()) == config
        if "ssm_stages" in options:
            assert list(G.ssm.modulating) == [0, 2] and not hasattr(G.ssm.stages[1], "gain")
            assert config.ssm_widths == (1, 1, 1, 1)
        else:
            assert list(G.ssm.modulating) == [0, 1, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_space_gain_and_bias_are_the_same_everywhere(variant):
    """What a stage does to h is, for each sample and channel, the same affine map at all positions."""
    config = dataclasses.replace(TINY, ssm=variant, ssm_width=0)
    G = BigGAN.Generator(config)
    z, y = torch.randn(3, 24), torch.tensor([0, 1, 3])
    s = G.ssm.start(z, y)
    for stage, width in zip(G.ssm.stages, config.G_widths[1:], strict=True):
        h = torch.randn(3, width, 4, 4)
        s, out = stage(s, h)
        assert s.shape == (3, width, 1, 1) and stage.gain(s).shape[2:] == (1, 1)
        slope = (out[:, :, 0, 0] - out[:, :, 0, 1]) / (h[:, :, 0, 0] - h[:, :, 0, 1])
        offset = out[:, :, 0, 0] - slope * h[:, :, 0, 0]
        everywhere = slope[:, :, None, None] * h + offset[:, :, None, None]
        torch.testing.assert_close(out, everywhere, rtol=1e-3, atol=1e-3)
        assert (slope[0] - slope[1]).abs().max() > 1e-4  # but not the same for all samples


def test_a_stage_that_is_not_modulated_is_that_of_the_plain_generator():
    """Stages behind the last that modulates are not built, and what comes before the first sees no stream."""
    G = BigGAN.Generator(dataclasses.replace(TINY, ssm="voxel", ssm_stages=(2,))).eval()
    plain = BigGAN.Generator(TINY).eval()
    plain.load_state_dict({k: v for k, v in G.state_dict().items() if not k.startswith("ssm.")})
    assert len(G.ssm.stages) == 2 and list(G.ssm.modulating) == [1]
    z, y, entering = torch.randn(2, 24), torch.tensor([0, 3]), {G: [], plain: []}
    for network, maps in entering.items():
        for stage in network.stages:
            stage[0].register_forward_pre_hook(lambda layer, args, maps=maps: maps.append(args[0]))
        network(z, y)
    same = [torch.equal(a, b) for a, b in zip(*entering.values(), strict=True)]
    assert same == [True, True, False]


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_channels_of_a_group_share_a_map(group):
    config = dataclasses.replace(TINY, ssm="group_gain", ssm_group=group)
    stage = BigGAN.Generator(config).ssm.stages[0]
    s, h = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 8, 8)
    new_s, out = stage(s, h)
    gain = stage.gain(new_s)
    assert gain.shape[1] == 16 // group
    for channel in range(16):
        torch.testing.assert_close(out[:, channel], h[:, channel] * (1 + gain[:, channel % (16 // group)]))


@pytest.mark.parametrize("width, added", [(1, 1208), (0.5, 336), (0.25, 101), (0, 1)])
def test_multiply_adds_of_a_narrower_stream(width, added):
    """Those added to G of the published SAGAN-64, in millions."""
    plain = ModelConfig(resolution=64, n_classes=1000, G_ch=32, D_ch=32, G_attn=(32,), D_attn=(32,))
    ssm = dataclasses.replace(plain, ssm="voxel", ssm_width=width)
    of_plain, of_ssm = (model_size.multiply_adds(config, fused=True)[0] for config in (plain, ssm))
    assert (of_ssm - of_plain) / 1e6 == pytest.approx(added, rel=0.01, abs=1)


def test_the_published_form_is_the_default_to_the_bit():
    """Keys, shapes and first weights as before there were widths: by their sum, of the seed 0."""
    torch.manual_seed(0)
    state = BigGAN.Generator(dataclasses.replace(TINY, ssm="global_voxel")).state_dict()
    total = sum(v.double().abs().sum() for v in state.values()).item()
    assert len(state) == 169 and total == pytest.approx(4244.316993360742, rel=1e-12)
    torch.manual_seed(0)
    stated = dataclasses.replace(TINY, ssm="global_voxel", ssm_width=1.0, ssm_stages=(1, 2, 3), ssm_group=4)
    other = BigGAN.Generator(stated).state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


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
