"""Weights of other codebases: their images and logits, any architecture of theirs, files, and what does not fit."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import BigGAN
import convert_weights
import layers
import sample
import utils
from conversion import convert, peers
from model_config import ModelConfig
from torch_utils import checkpoints
from training import model_size

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Models of random weights made and run by each codebase (float32, CPU): source, file, and what weights do not tell.
PEERS = [
    ("ssm", "ssm_voxel_32"),
    ("ssm", "ssm_global-voxel_32"),
    ("ssm", "ssm_group-gain_32"),
    ("ssm", "ssm_voxel-uncondbn_32"),
    ("ajbrock", "ajbrock_biggan_32"),
    ("ajbrock", "ajbrock_biggan-mybn-standing_32"),
    # In evaluation that code adds the gain; in training it multiplies by it, which is what is meant.
    ("ajbrock", "ajbrock_biggan-crossreplica_32", "z", "G_out_multiplicative_gain"),
    ("studiogan", "studiogan_sngan_32", "z", "G_out_detop", "D_logits_detop"),
    ("studiogan", "studiogan_bigresnet-ema_32", "z", "G_out_detop", "D_logits_detop"),
    ("studiogan", "studiogan_bigresnetdeepstudiogan_32", "z", "G_out_detop", "D_logits_detop"),
    ("mmgen", "mmgen_sngan-chainerinit_32"),
    ("mmgen", "mmgen_sagan-inplace_32", "z", "G_out", "D_logits", "--set", "D_relu_shortcut=true"),
    ("mmgen", "mmgen_sagan-bigganschedule_64", "z", "G_out", "D_logits", "--set", "BN_eps=1e-5"),
    ("mmgen", "mmgen_biggan-shared_32", "z", "G_out", "D_logits", "--set", "D_relu_shortcut=true"),
    ("mmgen", "mmgen_biggandeep_64", "z", "G_out", "D_logits", "--set", "D_relu_shortcut=true"),
    ("huggingface", "hf_biggandeep_128", "z", "G_out"),
    ("huggingface", "hf_biggandeep_128", "z_t0413", "G_out_t0413", None, "--truncation", "0.413"),
]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: "-".join(filter(None, peer[1:3])))
def test_images_and_logits_equal_the_peers(peer, tmp_path):
    source, name, z, image, logits, *flags = (*peer, *("z", "G_out", "D_logits")[len(peer) - 2 :])
    arrays = np.load(FIXTURES / f"{name}.npz")
    out = tmp_path / "out.pth"
    convert_weights.main(["--from", source, str(FIXTURES / f"{name}.pth"), str(out), *flags])
    G, meta = BigGAN.load_generator(out)
    assert meta["convention"]["source"] == source
    networks, y = [G], torch.from_numpy(arrays["y"])
    if "D_logits" in arrays:
        networks.append(BigGAN.load_discriminator(out)[0])
    for fused in (True, False):
        model_size.set_fused(networks, fused)
        np.testing.assert_allclose(G(torch.from_numpy(arrays[z]), y).numpy(), arrays[image], rtol=0, atol=2e-5)
        if "D_logits" in arrays:
            ours = networks[1](torch.from_numpy(arrays["G_out"]), y).numpy()
            np.testing.assert_allclose(ours, arrays[logits].reshape(-1), rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Our networks, written as those codebases would write them: `encode` is the inverse of the conversion.


def randomized(config):
    """G and D with nothing at its start: norms, attention gains, biases, and u and v far from converged."""
    torch.manual_seed(0)
    networks = BigGAN.build(config)
    for net in networks:
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim < 2:
                tensor.copy_(torch.randn(tensor.shape) * 0.3 + (0.8 if name.endswith(("gamma", "bn.weight")) else 0))
        net.eval()
    return networks


def their_block_names(network, config, source):
    """Our names of blocks, each to theirs."""
    is_G = isinstance(network, BigGAN.Generator)
    if is_G:
        stages = [[f"stages.{s}.{i}" for i in range(len(stage))] for s, stage in enumerate(network.stages)]
    else:
        depth, flat, stages = (config.D_depth if config.deep else 1), iter(range(len(network.blocks))), []
        for *_, attention in config.D_stages:
            stages.append([f"blocks.{next(flat)}" for _ in range(depth + attention)])
    names = {}
    for s, stage in enumerate(stages):
        depth = (config.G_depth if is_G else config.D_depth) if config.deep else 1
        for i, ours in enumerate(stage):
            if source == "ajbrock":
                theirs = f"blocks.{s}.{i}"
                if is_G and config.deep:
                    theirs = f"blocks.{s * depth + min(i, depth - 1)}.{max(i - depth + 1, 0)}"
            elif source == "studiogan":
                theirs = f"blocks.{len(names)}.0"
            else:
                theirs = f"conv_blocks.{len(names)}"
            names[ours] = theirs
    return names


AJBROCK = [(r"^output_bn\.weight", "output_layer.0.gain"), (r"^output_bn\.", "output_layer.0."),
           (r"^output_conv", "output_layer.2"), (r"\.bn\.running", ".stored"), ("running", "stored"),
           (r"\.(bn\d)\.weight$", r".\1.gain"),
           (r"^ssm\.embedding", "spatial_modulation_shared"), (r"^ssm\.linear", "spatial_modulation_linear"),
           (r"^ssm\.stages\.(\d+)", r"spatial_modulation_blocks.\1.0"),
           (r"(spatial.*)global_gain", r"\1global_a_modulation.1"),
           (r"(spatial.*)global_bias", r"\1global_b_modulation.1"),
           (r"(spatial.*0\.)gain", r"\1voxelwise_a_modulation"),
           (r"(spatial.*0\.)bias", r"\1voxelwise_b_modulation")]  # fmt: skip
STUDIOGAN = [(r"^output_bn", "bn4"), (r"^output_conv", "conv2d5"), (r"(blocks.*\.)conv(\d)", r"\1conv2d\2"),
             (r"\.conv_sc", ".conv2d0"), (r"\.(theta|phi|g)\.", r".conv1x1_\1."),
             (r"\.o\.", ".conv1x1_attn."), (r"gamma", "sigma"), (r"^embed\.", "embedding.")]  # fmt: skip
MMGEN = [(r"^output_(bn|conv)", r"output_layer.\1"), (r"\.conv_sc", ".shortcut.conv"), (r"\.(conv\d)", r".\1.conv"),
         (r"^input_conv", "input_conv.conv"), (r"\.(theta|phi|g|o)\.", r".\1.conv."), (r"^shared", "shared_embedding"),
         (r"^embed\.", "proj_y.")]  # fmt: skip
LINEAR = {"ajbrock": ("linear", "linear"), "studiogan": ("linear0", "linear1"), "mmgen": ("noise2feat", "decision")}


def encode(network, source):
    """The state dict as another codebase's; the spectral norm's vectors are drawn, and ours set to what follows."""
    names = their_block_names(network, network.config, source)
    rules = {"ajbrock": AJBROCK, "studiogan": STUDIOGAN, "mmgen": MMGEN}[source]
    is_G = isinstance(network, BigGAN.Generator)
    state = {}

    def put(key, tensor):
        for block, theirs in names.items():
            key = re.sub(rf"^{re.escape(block)}\.", f"{theirs}.", key)
        key = re.sub(r"^linear", LINEAR[source][0 if is_G else 1], key)
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = tensor.clone()

    torch_style = source != "ajbrock"
    for name, module in network.named_modules():
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if isinstance(module, layers.SpectralNorm) and module.sn:
            u = F.normalize(torch.randn(module.u.shape), dim=0)
            v = F.normalize(torch.randn(module.v.shape), dim=0)
            W = tensors.pop("weight").detach()
            tensors.pop("u"), tensors.pop("v")
            module.u.copy_(u), module.v.copy_(v)
            if source != "mmgen":
                module.power_iteration()
            elif (u @ W.flatten(1) @ v).abs() < 0.05:  # an arbitrary sigma must not be next to 0
                module.power_iteration()
                u, v = module.u, module.v
            if torch_style:
                put(f"{name}.weight_orig", W), put(f"{name}.weight_u", u), put(f"{name}.weight_v", v)
            else:
                put(f"{name}.weight", W), put(f"{name}.u0", u[None]), put(f"{name}.sv0", torch.ones(1))
        for leaf, tensor in tensors.items():
            put(f"{name}.{leaf}", tensor.detach())
    return {key: tensor for key, tensor in state.items() if torch_style or not key.endswith("num_batches_tracked")}


SHARED = {"G_shared": True, "hier": True, "shared_dim": 6, "dim_z": 24}
DEEP = {"model": "BigGANdeep", **SHARED}
ARCHITECTURES = [
    ("ajbrock", {"resolution": 256, "G_attn": (64, 128), "D_attn": (64,), **SHARED}),
    ("ajbrock", {"resolution": 64, "G_attn": (), "D_attn": (8, 32), "D_wide": False, "G_param": "none"}),
    ("ajbrock", {"resolution": 128, "G_shared": True, "shared_dim": 6}),
    ("ajbrock", {"resolution": 32, "D_attn": (16, 8), "D_attn_after": (3, 4), "D_param": "none"}),
    ("ajbrock", {"resolution": 24, "bottom_width": 3}),
    ("ajbrock", {"resolution": 256, "G_attn": (64,), "D_attn": (64,), **DEEP}),
    ("ajbrock", {"resolution": 64, "G_depth": 3, "D_depth": 1, "D_attn": (), **DEEP}),
    ("ajbrock", {"resolution": 32, "G_depth": 4, "D_attn": (16, 8), "D_attn_after": (3,), **DEEP}),
    ("ssm", {"resolution": 64, "ssm": "voxel", "shared_dim": 6, "G_attn": (32,)}),
    ("ssm", {"resolution": 32, "ssm": "global_voxel", "shared_dim": 6, "G_cbn": False}),
    ("ssm", {"resolution": 32, "ssm": "group_gain", "ssm_group": 2, "shared_dim": 6}),
    ("studiogan", {"resolution": 64, "G_ch_mult": (16, 8, 4, 2, 1), "G_attn": (32,), "D_attn": (32,), **SHARED}),
    ("studiogan", {"resolution": 256, "G_param": "none", "G_attn": (), "D_attn": (), **SHARED}),
    (
        "studiogan",
        {"resolution": 64, "G_ch_mult": (16, 8, 4, 2, 1), "deep_style": "studiogan", "D_attn": (16,), **DEEP},
    ),
    ("studiogan", {"resolution": 128, "G_depth": 1, "D_depth": 3, "D_attn": (64,), "deep_style": "studiogan", **DEEP}),
    ("studiogan", {"resolution": 128, "D_attn": (64,), **DEEP}),
    ("mmgen", {"resolution": 128, "D_attn": (64,), **SHARED}),
    ("mmgen", {"resolution": 256, "G_param": "none", "D_param": "none"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "options"), ARCHITECTURES)
def test_architecture_is_inferred(source, options):
    ch = 4 if options.get("model") else 2
    inits = {"G_init": "xavier", "D_init": "xavier"}
    config = ModelConfig(**{"n_classes": 5, "dim_z": 16, "G_ch": ch, "D_ch": ch, **inits, **options})
    config = dataclasses.replace(config, D_relu_shortcut=source == "studiogan")
    if source == "studiogan":
        config = dataclasses.replace(config, BN_eps=1e-4, output_BN_eps=1e-4)
    G, D = randomized(config)
    networks = {"G": encode(G, source.replace("ssm", "ajbrock")), "D": encode(D, source.replace("ssm", "ajbrock"))}
    checkpoint = convert.convert(networks, source, {})
    found = ModelConfig.from_dict(checkpoint["model_config"])
    known = dataclasses.replace(config, SN_eps=found.SN_eps, shared_dim=found.shared_dim)
    same = ("G_ch", "G_ch_mult", "D_ch", "D_ch_mult", "G_attn", "D_attn", *inits)  # the same network, said otherwise
    assert dataclasses.replace(known, **{name: getattr(found, name) for name in same}) == found
    assert (found.G_stages, found.D_stages) == (config.G_stages, config.D_stages)
    for net, kind in ((G, "G"), (D, "D")):
        ours = net.state_dict()
        assert ours.keys() == checkpoint[kind].keys()
        for name, tensor in checkpoint[kind].items():
            torch.testing.assert_close(tensor, ours[name], msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Files and errors


@pytest.fixture
def small():
    """An ajbrock pair: {"G": ..., "D": ...}."""
    config = ModelConfig(resolution=32, n_classes=4, dim_z=16, G_ch=2, D_ch=2, **{"G_attn": (), "D_attn": ()})
    return {kind: encode(net, "ajbrock") for kind, net in zip("GD", randomized(config), strict=True)}


def run(*argv):
    convert_weights.main([str(arg) for arg in argv])


def test_folder_gives_all_networks_and_the_checkpoint_can_be_sampled(small, tmp_path, capsys):
    average = {key: tensor * 0.5 if tensor.ndim > 1 else tensor for key, tensor in small["G"].items()}
    (tmp_path / "in").mkdir()
    for name, state in (("G", small["G"]), ("G_ema", average), ("D", small["D"])):
        torch.save(state, tmp_path / "in" / f"{name}.pth", _use_new_zipfile_serialization=name != "D")  # D: legacy
    torch.save({"itr": 3, "config": {"odd": {1, 2}}}, tmp_path / "in" / "state_dict.pth")  # holds no weights
    run("--from", "ajbrock", tmp_path / "in", tmp_path / "out.pth")
    assert "G, G_ema, D of a BigGAN at 32x32 with 4 classes" in capsys.readouterr().out
    checkpoint = checkpoints.load(tmp_path / "out.pth")
    weight = "stages.0.0.bn1.gain.weight"
    torch.testing.assert_close(checkpoint["G_ema"][weight] * 2, checkpoint["G"][weight])
    assert BigGAN.load_generator(tmp_path / "out.pth")[1]["ema"]
    sample.main([str(tmp_path / "out.pth"), "--rows", "1", "--num_samples", "2", "--out", str(tmp_path / "samples")])
    assert (tmp_path / "samples" / "class_sheet.png").exists()


def test_codebases_own_files(small, tmp_path):
    config = ModelConfig(32, 4, dim_z=16, G_ch=2, D_ch=2, G_attn=(), D_attn=(), **{"G_shared": True, "shared_dim": 8})
    G, D = randomized(config)
    mmgen = {f"{prefix}.{key}": tensor for net, prefix in ((G, "generator"), (G, "generator_ema"), (D, "discriminator"))
             for key, tensor in encode(net, "mmgen").items()}  # fmt: skip
    checkpoints.save({"meta": {"mmgen_version": "0"}, "state_dict": mmgen}, tmp_path / "mmgen.pth")
    assert peers.read_networks(tmp_path / "mmgen.pth", "mmgen").keys() == {"G", "G_ema", "D"}
    extra = {"best_fid": np.float64(3.0), "optimizer": {}, "seed": 0}
    for kind, net in (("G_ema", G), ("D", D)):
        state = {f"module.{key}": tensor for key, tensor in encode(net, "studiogan").items()}
        torch.save({"state_dict": state, **extra}, tmp_path / f"model={kind}-best-weights-step=7.pth")
        torch.save({"state_dict": state, **extra}, tmp_path / f"model={kind}-current-weights-step=9.pth")
    networks = peers.read_networks(tmp_path, "studiogan")
    assert networks.keys() == {"G_ema", "D"} and "linear0.bias" in networks["G_ema"]
    checkpoints.save(small["D"], tmp_path / "D_best.pth")
    assert peers.read_networks(tmp_path / "D_best.pth", "ajbrock").keys() == {"D"}


@pytest.mark.slow
def test_bgr_reverses_the_channels(tmp_path):
    config = ModelConfig(32, 4, dim_z=16, G_ch=2, D_ch=2, G_attn=(), D_attn=())
    for options in ({}, {"model": "BigGANdeep", "G_ch": 4, "D_ch": 4, "G_shared": True}):
        networks = [encode(net, "mmgen") for net in randomized(dataclasses.replace(config, **options))]
        networks = dict(zip("GD", networks, strict=True))
        z, y, images = torch.randn(2, 16), torch.tensor([0, 3]), []
        for bgr in (False, True):
            checkpoints.save(convert.convert(networks, "mmgen", {}, bgr=bgr), tmp_path / "out.pth")
            (G, _), (D, _) = (
                BigGAN.load_generator(tmp_path / "out.pth"),
                BigGAN.load_discriminator(tmp_path / "out.pth"),
            )
            images.append((G(z, y), D(G(z, y), y)))
        torch.testing.assert_close(images[0][0].flip(1), images[1][0])
        torch.testing.assert_close(images[0][1], images[1][1])


def test_what_does_not_fit_is_one_clear_line(small, tmp_path):
    def without(kind, key):
        return {**small, kind: {k: v for k, v in small[kind].items() if k != key}}

    def with_(kind, key, tensor):
        return {**small, kind: {**small[kind], key: tensor}}

    cases = [
        (without("G", "blocks.1.0.conv2.bias"), "stages.1.0.conv2.bias is missing"),
        (without("G", "blocks.1.0.conv1.weight"), "blocks.1.conv1 are missing"),
        (without("G", "output_layer.0.stored_var"), "output_bn.running_var is missing"),
        (with_("D", "extra.weight", torch.zeros(2, 2)), "extra.weight is not used"),
        (with_("G", "blocks.0.0.bn1.odd", torch.zeros(2)), "odd is not used"),
        (with_("D", "blocks.1.0.conv1.bias", torch.zeros(3)), "has the shape"),
        (with_("D", "embed.weight", torch.zeros(5, 8)), "embed: its tensors do not fit one another"),
        (
            {"G": small["G"], "D": {**small["D"], "embed.weight": torch.ones(5, 8), "embed.u0": torch.ones(1, 5)}},
            "disagree: n_classes",
        ),
        ({"G": {"x.weight": torch.zeros(2, 2)}}, "G is not a network of"),
        ({"weights": 3}, "holds no state dict"),
        (with_("D", "blocks.1.0.conv1.bias", torch.tensor([torch.nan])), r"blocks.1.0.conv1.bias of D .* not finite"),
    ]
    for content, message in cases:
        checkpoints.save(content, tmp_path / "in.pth")
        with pytest.raises(utils.UserError, match=message) as error:
            run("--from", "ajbrock", tmp_path / "in.pth", tmp_path / "out.pth")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.pth").exists()
    checkpoints.save(small, tmp_path / "in.pth")
    for flags, message in ((["--set", "D_odd=1"], "not a field"), (["--set", "D_ch"], "FIELD=VALUE"),
                           (["--truncation", "0.5"], "huggingface"), (["--set", "D_ch=3"], "do not fit")):  # fmt: skip
        with pytest.raises(utils.UserError, match=message):
            run("--from", "ajbrock", tmp_path / "in.pth", tmp_path / "out.pth", *flags)
    with pytest.raises(utils.UserError, match="cannot write .*in.pth: Not a directory"):  # before anything is read
        run("--from", "ajbrock", tmp_path / "none.pth", tmp_path / "in.pth" / "out.pth")
    with pytest.raises(utils.UserError, match="holds no G.pth"):
        run("--from", "ajbrock", tmp_path, tmp_path / "out.pth")


def test_fields_set_by_hand(small, tmp_path):
    checkpoints.save(small, tmp_path / "in.pth")
    flags = ["--set", "BN_eps=1e-3", "--set", "D_relu_shortcut=true", "--set", "D_num_down=2"]
    run("--from", "ajbrock", *flags, tmp_path / "in.pth", tmp_path / "out.pth")
    config = checkpoints.load(tmp_path / "out.pth")["model_config"]
    assert config["BN_eps"] == 1e-3 and config["output_BN_eps"] == 1e-5 and config["D_relu_shortcut"]


def test_spectral_norm_of_part_of_a_network():
    """A layer that has spectral norm on one side only computes the same: sigma goes into the weight, or into u."""
    plain, normed = layers.Conv2d(3, 4), layers.Conv2d(3, 4, sn=True)
    layer = peers.Layer(plain.weight.detach())
    normed.weight.data, scaled = plain.weight.data, layer.scaled_to(1.0)
    normed.u, normed.v = scaled.u, scaled.v
    torch.testing.assert_close(normed.eval().normalized_weight(), plain.weight)
    torch.testing.assert_close(layer.scaled_to(2.5).baked().weight, plain.weight / 2.5)


def test_fields_are_read_fields_as_flags_do():
    read = {
        name: convert.parse_field(name, text)
        for name, text in {"G_attn": "32_64", "D_wide": "false", "BN_eps": "1e-4", "D_ch": "7", "ssm": "gain"}.items()
    }
    assert read == {"G_attn": (32, 64), "D_wide": False, "BN_eps": 1e-4, "D_ch": 7, "ssm": "gain"}
    for name, text in (("D_wide", "perhaps"), ("ssm", "other"), ("D_ch", "x"), ("nothing", "1")):
        with pytest.raises(utils.UserError, match=name):
            convert.parse_field(name, text)
