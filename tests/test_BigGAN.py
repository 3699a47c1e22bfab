"""The networks: shapes of every option, checkpoints, and device placement without a GPU."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import BigGAN
import utils
from model_config import ModelConfig
from torch_utils import checkpoints

TINY = ModelConfig(resolution=32, n_classes=4, dim_z=16, G_ch=4, D_ch=4, G_attn=(16,), D_attn=(16,))
BIGGAN = {"G_shared": True, "hier": True, "shared_dim": 12}


@pytest.mark.parametrize("resolution", [32, 64, 128])
@pytest.mark.parametrize("ssm", ["none", "voxel"])
@pytest.mark.parametrize("options", [{}, BIGGAN, {"G_cbn": False}, {"G_cbn": False, **BIGGAN}, {"G_shared": True}])
def test_shapes(resolution, ssm, options):
    G, D = BigGAN.build(dataclasses.replace(base(resolution), ssm=ssm, **options))
    z, y = torch.randn(3, G.config.dim_z), torch.tensor([0, 3, 1])
    x = G(z, y)
    assert x.shape == (3, 3, resolution, resolution) and x.abs().max() <= 1
    assert D(x, y).shape == (3,)
    (D(x, y).sum() + x.sum()).backward()
    unused = [name for net in (G, D) for name, p in net.named_parameters() if p.grad is None]
    assert not unused  # DistributedDataParallel needs every parameter used


DEEP = {"model": "BigGANdeep", **BIGGAN}
# Options that change what the networks are made of.
VARIANTS = [
    DEEP,
    {**DEEP, "deep_style": "studiogan", "D_relu_shortcut": True},
    {**DEEP, "ssm": "global_voxel", "ssm_zero_init": True},
    {"ssm": "group_gain", "G_cbn": False},
    {"model": "BigGANdeep", "G_shared": True, "G_depth": 1, "D_depth": 3},
    {"model": "BigGANdeep", "G_cbn": False, "deep_style": "studiogan", "D_cond": "concat"},
    {"D_cond": "concat", "D_pool": "mean", "G_out_cbn": True, "G_param": "none"},
    {"G_out_cbn": True, "D_wide": False, "D_relu_shortcut": True, **BIGGAN},
    {"G_attn_after": (1, 2), "D_attn_after": (1, 2, 3, 4), "D_param": "none", "D_cond": "none"},
]


@pytest.mark.parametrize("size", [(24, 3), (64, 4)])
@pytest.mark.parametrize("options", VARIANTS)
def test_shapes_of_the_whole_family(size, options):
    resolution, bottom_width = size
    config = dataclasses.replace(
        base(32),
        resolution=resolution,
        bottom_width=bottom_width,
        G_ch_mult=(),
        D_ch_mult=(),
        D_num_down=0,
        G_ch=4,
        D_ch=4,
        **options,
    )
    G, D = BigGAN.build(config)
    x, y = G(torch.randn(2, G.config.dim_z), torch.tensor([0, 3])), torch.tensor([0, 3])
    assert x.shape == (2, 3, resolution, resolution)
    logits = D(x, y)
    assert logits.shape == (2,)
    (logits.sum() + x.sum()).backward()
    assert not [name for net in (G, D) for name, p in net.named_parameters() if p.grad is None]


@pytest.mark.parametrize("options", VARIANTS)
def test_fused_networks_equal_the_plain_composition(options):
    G, D = (net.double().eval() for net in BigGAN.build(dataclasses.replace(TINY, **options)))
    z, y = torch.randn(2, G.config.dim_z, dtype=torch.float64), torch.tensor([0, 3])
    x = G(z, y)
    fused = x, D(x, y)
    for module in (*G.modules(), *D.modules()):
        if hasattr(module, "fused"):
            module.fused = False
    for a, b in zip(fused, (G(z, y), D(x, y)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [256, 512])
@pytest.mark.parametrize("model", ["BigGAN", "BigGANdeep"])
def test_large_resolutions_are_built(resolution, model):
    """D ends at 4x4 with BigGAN's tables, and the images have the size that they should (shapes alone)."""
    options = {"model": model, "G_init": "N02", "D_init": "N02", "G_attn": (64,), "D_attn": (64,)}
    with torch.device("meta"), torch.no_grad():
        G, D = BigGAN.build(ModelConfig(resolution=resolution, n_classes=4, dim_z=24, G_ch=8, D_ch=8, **options))
        y = torch.zeros(1, dtype=torch.int64)
        x = G.eval()(torch.randn(1, 24), y)
        assert x.shape == (1, 3, resolution, resolution)
        last = D.eval().blocks(D.input_conv(x) if D.input_conv else x)
        assert last.shape == (1, 16 * 8, 4, 4) and D(x, y).shape == (1,)


def test_label_joins_the_features_after_the_first_stage():
    config = dataclasses.replace(TINY, D_cond="concat", D_label_dim=6, D_label_ch=5, D_pool="mean")
    _, D = BigGAN.build(config)
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    assert D.label_embedding.weight.shape == (4, 6) and not D.label_embedding.sn
    seen = []
    hook = D.blocks[D.num_first].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    D.eval()(x, y)
    hook.remove()
    label = D.label_linear(D.label_embedding(y))
    assert seen[0].shape == (2, 16 + 5, 16, 16)
    torch.testing.assert_close(seen[0][:, 16:], label[:, :, None, None].expand(2, 5, 16, 16))
    features = F.relu(D.blocks[D.num_first :](seen[0])).mean(dim=(2, 3))
    torch.testing.assert_close(D(x, y), D.linear(features).squeeze(1))


def test_spectral_norm_of_the_norms_own_embeddings():
    for G_embed_SN in (True, False):
        G, _ = BigGAN.build(dataclasses.replace(base(32), G_embed_SN=G_embed_SN))
        embeddings = [part for name, part in G.named_modules() if name.endswith((".gain", ".bias"))]
        assert len(embeddings) == 12 and all(part.sn == G_embed_SN for part in embeddings)
        x = G(torch.randn(3, G.config.dim_z), torch.tensor([0, 3, 1]))
        x.sum().backward()
        assert all(part.weight.grad is not None for part in embeddings)


def base(resolution):
    return ModelConfig(resolution=resolution, n_classes=4, dim_z=24, G_ch=2, D_ch=2, G_attn=(16,), D_attn=(16,))


def test_class_changes_the_image_and_the_logit_exactly_where_it_should():
    z, y = torch.randn(2, 16), torch.tensor([0, 1])
    for ssm, G_cbn, differs in (("none", True, True), ("voxel", False, True), ("none", False, False)):
        G, _ = BigGAN.build(dataclasses.replace(TINY, ssm=ssm, G_cbn=G_cbn))
        assert torch.equal(G.eval()(z, y), G(z, y.flip(0))) != differs
    x = torch.randn(2, 3, 32, 32)
    for D_cond, differs in (("projection", True), ("none", False)):
        _, D = BigGAN.build(dataclasses.replace(TINY, D_cond=D_cond))
        assert torch.equal(D.eval()(x, y), D(x, y.flip(0))) != differs


def test_hierarchical_z_reaches_the_stream_whole_and_the_blocks_in_slots():
    G, _ = BigGAN.build(dataclasses.replace(TINY, dim_z=18, ssm="voxel", G_init="xavier", **BIGGAN))
    assert G.config.dim_z == 16 and G.linear.in_features == 4  # 4 slots
    assert G.ssm.linear.in_features == 12 + 16
    conditions = G._split(torch.arange(16.0)[None], torch.tensor([0]))[1]
    assert [c[0, 12:].tolist() for c in conditions] == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


SHARED = {"G_shared": True, "hier": True, "shared_dim": 128}
SAGAN_64 = {"resolution": 64, "n_classes": 1000, "G_ch": 32, "D_ch": 32, "G_attn": (32,), "D_attn": (32,)}
# Options of published configurations -> parameters of G and of D in the reference code.
COUNTS = [
    ({"resolution": 128, "dim_z": 120, "G_ch": 96, "D_ch": 96, **SHARED}, 70_433_988, 87_982_370),
    ({"resolution": 128, "dim_z": 120, "G_ch": 64, "D_ch": 64, **SHARED}, 31_978_628, 39_448_258),
    ({"resolution": 256, "dim_z": 140, "G_ch": 64, "D_ch": 64, **SHARED}, 37_325_444, 44_445_890),
    ({"model": "BigGANdeep", "resolution": 128, "G_ch": 128, "D_ch": 128, **SHARED}, 50_244_484, 34_590_210),
    ({"resolution": 32, "n_classes": 10, "G_attn": (), "D_attn": ()}, 4_304_387, 4_207_361),
    (SAGAN_64, 13_293_188, 5_401_186),
    ({**SAGAN_64, "ssm": "voxel"}, 23_267_716, 5_401_186),
]


@pytest.mark.parametrize(("options", "of_G", "of_D"), COUNTS)
def test_published_parameter_counts(options, of_G, of_D):
    with torch.device("meta"):
        networks = BigGAN.build(ModelConfig(**{"n_classes": 1000, **options}))
    assert [sum(p.numel() for p in net.parameters()) for net in networks] == [of_G, of_D]


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"ssm": "voxel"}, {"ssm": "voxel", **BIGGAN}, *VARIANTS[:6]])
def test_networks_stay_on_their_device(training, options):
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            config = dataclasses.replace(TINY, G_init="N02", D_init="N02", **options)
            G, D = (net.train(training) for net in BigGAN.build(config))
        z, y = torch.randn(2, G.config.dim_z, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
        x = G(z, y)
        assert x.device.type == D(x, y).device.type == "cuda"


def checkpoint(tmp_path, **entries):
    G, D = BigGAN.build(dataclasses.replace(TINY, ssm="voxel"))
    state = {"step": 7, "model_config": G.config.to_dict(), "G": G.state_dict(), "D": D.state_dict(), "G_ema": None}
    checkpoints.save({**state, **entries}, tmp_path / "ckpt_00000007.pth")
    return tmp_path / "ckpt_00000007.pth", G, D


def test_load_generator_and_discriminator(tmp_path):
    path, G, D = checkpoint(tmp_path)
    z, y = torch.randn(2, 16), torch.tensor([1, 2])
    before = torch.get_rng_state()
    loaded_G, meta = BigGAN.load_generator(path)
    loaded_D, _ = BigGAN.load_discriminator(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert meta["step"] == 7 and meta["path"] == str(path) and not meta["ema"] and loaded_G.config == G.config
    x = loaded_G(z, y)
    assert torch.equal(x, G.eval()(z, y)) and torch.equal(loaded_D(x, y), D.eval()(x, y))
    assert not any(p.requires_grad for p in loaded_G.parameters())


def test_load_generator_prefers_the_moving_average(tmp_path):
    average = BigGAN.build(dataclasses.replace(TINY, ssm="voxel"))[0]
    path, G, _ = checkpoint(tmp_path, G_ema=average.state_dict())
    for ema, expected in ((True, average), (False, G)):
        loaded, meta = BigGAN.load_generator(path, ema=ema)
        assert meta["ema"] == ema and torch.equal(loaded.linear.weight, expected.linear.weight)


def test_bad_checkpoints_are_one_clear_line(tmp_path):
    path, *_ = checkpoint(tmp_path)
    cases = {
        "no such": tmp_path / "missing.pth",
        "no checkpoint in this folder": tmp_path / "empty",
        "does not fit": tmp_path / "other.pth",
        "damaged": tmp_path / "truncated.pth",
        "no model_config": tmp_path / "foreign.pth",
        "unknown fields": tmp_path / "newer.pth",
        "linear.weight": tmp_path / "number.pth",
    }
    (tmp_path / "empty").mkdir()
    state = torch.load(path, weights_only=True)
    cases["damaged"].write_bytes(path.read_bytes()[:5000])
    checkpoints.save({**state, "model_config": {**state["model_config"], "G_ch": 6}}, cases["does not fit"])
    checkpoints.save({"weights": torch.zeros(1)}, cases["no model_config"])
    checkpoints.save({**state, "model_config": {**state["model_config"], "new": 6}}, cases["unknown fields"])
    checkpoints.save({**state, "G_ema": None, "G": {**state["G"], "linear.weight": 3}}, cases["linear.weight"])
    for message, bad in cases.items():
        with pytest.raises(utils.UserError, match=message) as error:
            BigGAN.load_generator(bad)
        assert "\n" not in str(error.value)
