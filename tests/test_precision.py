"""Mixed precision through both networks, the loss scale of float16, and compiling: what is computed in which type."""

import copy

import pytest
import torch
from small_models import save_checkpoint, small_config, small_generator
from torch.utils._python_dispatch import TorchDispatchMode

import BigGAN
import layers
import sample
import sssm
import train
import utils
from torch_utils import precision
from torch_utils.mixed_precision import LossScaler, PrecisionOptions, compilation
from training.steps import d_step, g_step

ATTENTION = {"G_attn": (8,), "D_attn": (8,)}
BIGGAN = {"G_shared": True, "hier": True}
MODELS = [
    {},
    {"ssm": "voxel"},
    {"ssm": "global_voxel", "ssm_zero_init": True, **BIGGAN},
    {"ssm": "group_gain", "G_cbn": False},
    {"model": "BigGANdeep", "ssm": "gain", **BIGGAN},
    {"model": "BigGANdeep", "deep_style": "studiogan", **BIGGAN},
    {"D_cond": "concat", "D_ch_mult": (1, 2, 2)},
]
N = 5  # images: no other dimension is as large


def networks(dtype, **model):
    torch.manual_seed(0)
    G, D = BigGAN.build(small_config(**{**ATTENTION, **model}))
    G.amp = D.amp = dtype
    return G, D


def batch(G, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(N, 3, G.config.resolution, G.config.resolution, generator=g) * 2 - 1
    return x, torch.randn(N, G.config.dim_z, generator=g), torch.arange(N) % G.config.n_classes


class MapTypes(TorchDispatchMode):
    """Notes every operation that makes a feature map, (N,C,H,W), of float32."""

    def __init__(self):
        super().__init__()
        self.float32, self.maps = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and len(tensor) == N:
                self.maps += 1
                if tensor.dtype == torch.float32 and max(tensor.shape[2:]) > 1 and tensor.shape[1] > 3:
                    self.float32.append(str(function))
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_no_feature_map_turns_back_to_float32(model, training, dtype, monkeypatch):
    # Within the standardization float32 is wanted: what comes out of it is what counts.
    monkeypatch.setattr(sssm.StandardizeModulate, "forward", staticmethod(plainly_standardized))
    G, D = (network.train(training) for network in networks(dtype, **model))
    _, z, y = batch(G)
    with MapTypes() as of_G:
        images = G(z, y)
    with MapTypes() as of_D:
        logits = D(images, y)
    assert images.dtype == logits.dtype == torch.float32 and of_G.maps > 20 and of_D.maps > 8
    assert [*of_G.float32, *of_D.float32[:-1]] == [] and set(of_D.float32) <= {
        "aten._to_copy.default"
    }  # before the sum


def plainly_standardized(ctx, h, gain, bias, dims):
    return torch.addcmul(bias, h - h.mean(dims, keepdim=True), gain)


def test_a_layer_that_promotes_would_be_found():
    G, _ = networks(torch.bfloat16)
    for module in G.modules():
        if isinstance(module, layers.UpConv2d):
            module.register_forward_hook(lambda layer, inputs, out: out.float())
    _, z, y = batch(G)
    with MapTypes() as seen:
        G(z, y)
    assert "aten._to_copy.default" in seen.float32


@pytest.mark.parametrize("kind", ["conv", "linear", "embedding"])
def test_sigma_and_the_power_iteration_stay_float32(kind):
    layer = {
        "conv": layers.Conv2d(40, 30, sn=True),
        "linear": layers.Linear(300, 20, sn=True),
        "embedding": layers.Embedding(50, 60, sn=True),
    }[kind]
    torch.nn.init.normal_(layer.weight)
    other = copy.deepcopy(layer)
    for _ in range(3):
        plain = layer.normalized_weight()
        with precision.autocast("cpu", torch.bfloat16):
            mixed = other.normalized_weight()
    assert mixed.dtype == torch.float32 and torch.equal(mixed, plain)
    assert torch.equal(layer.u, other.u) and torch.equal(layer.v, other.v)


def test_weights_are_cast_anew_within_another_autocast():
    """Whose end alone would empty autocast's cache of them: the weights of a step before must not be used."""
    G, D = networks(torch.bfloat16, G_param="none", D_param="none")
    z, y = torch.randn(N, G.config.dim_z), torch.arange(N) % 3
    G.eval(), D.eval()  # which leaves buffers alone
    with precision.no_autocast("cpu"):
        before = D(G(z, y), y)
        with torch.no_grad():
            for parameter in (*G.parameters(), *D.parameters()):
                parameter.mul_(1.5)
        after = D(G(z, y), y)
    assert not torch.equal(before, after) and torch.equal(after, D(G(z, y), y))


def test_batch_norm_statistics_and_modulation_keep_float32_digits():
    x = 100 + torch.randn(64, 4, 8, 8)
    norm = layers.ConditionalBatchNorm2d(4, None, 3, {"sn": False})
    torch.nn.init.zeros_(norm.gain.weight), torch.nn.init.zeros_(norm.bias.weight)
    norm(x.bfloat16(), torch.zeros(64, dtype=torch.int64))
    momentum, mean, var = norm.bn.momentum, x.bfloat16().float().mean((0, 2, 3)), x.bfloat16().float().var((0, 2, 3))
    torch.testing.assert_close(norm.bn.running_mean, momentum * mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.bn.running_var, 1 - momentum + momentum * var, rtol=1e-5, atol=0)
    h, one = (30 + torch.randn(2, 8, 16, 16)).bfloat16(), torch.ones(2, 8, 16, 16).bfloat16()
    out = sssm.StandardizeModulate.apply(h, one, torch.zeros_like(one), (1, 2, 3))
    x = h.float()
    expected = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.bfloat16())


def test_the_softmax_of_attention_is_float32():
    query, key, value = ((scale * torch.randn(2, n, 8)).bfloat16() for n, scale in ((20, 10), (10, 10), (10, 1)))
    mixed = layers.attend(query, key, value).float()
    weights = torch.softmax(query.float() @ key.float().transpose(1, 2), -1)
    torch.testing.assert_close(mixed, weights @ value.float(), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", MODELS)
def test_outputs_and_gradients_are_near_those_of_float32(model, dtype):
    results = []
    for amp in (None, dtype):
        G, D = networks(amp, **model)
        _, z, y = batch(G)
        logits = D(G(z, y), y)
        logits.sum().backward()
        results.append((logits, *(network.linear.weight.grad.flatten() for network in (G, D))))
    for plain, mixed in zip(*results, strict=True):
        least = {torch.float16: 0.97, torch.bfloat16: 0.85}[dtype]  # these networks are a few random channels wide
        assert torch.nn.functional.cosine_similarity(plain, mixed, dim=0) > least
        assert 0.7 < mixed.norm() / plain.norm() < 1.4


def trained(dtype, scalers, steps=3, bad_step=None):
    G, D = networks(dtype, ssm="voxel")
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.9), fused=True) for network in (G, D)]
    for step in range(steps):
        x, z, y = batch(G, step)
        x = x * torch.inf if step == bad_step else x
        d_step(G, D, D, optimizers[1], [(x, y, z, y)], 1, 1e-4, scaler=scalers[1])
        g_step(G, D, G, optimizers[0], [(z, y)], 1, 1e-4, scaler=scalers[0])
    return G, D


def test_the_loss_scale_leaves_out_steps_that_overflow():
    scalers = [LossScaler("cpu", init_scale=2**10) for _ in range(2)]
    before = [p.clone() for p in networks(torch.float16, ssm="voxel")[1].parameters()]
    _, D = trained(torch.float16, scalers, steps=1, bad_step=0)
    assert scalers[1].skipped == scalers[1].in_a_row == 1 and scalers[0].skipped == 0
    assert all(torch.equal(a, b) for a, b in zip(before, D.parameters(), strict=True))
    _, D = trained(torch.float16, scalers, steps=2)
    assert scalers[1].skipped == 1 and scalers[1].in_a_row == 0 and scalers[1].get_scale() == 2.0**9
    other = LossScaler("cpu")
    other.load_state_dict(scalers[1].state_dict())
    assert (other.skipped, other.get_scale()) == (1, 2.0**9)


def test_the_scale_changes_nothing_but_small_gradients():
    """Orthogonal regularisation included, which is added to gradients that are unscaled again."""
    plain, scaled = (trained(None, scalers) for scalers in ((None, None), (LossScaler("cpu"), LossScaler("cpu"))))
    for a, b in zip(plain, scaled, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_sampling_in_bfloat16_is_near_and_its_flags_are_checked(tmp_path):
    path = save_checkpoint(tmp_path / "c.pth", small_generator())
    G, _ = BigGAN.load_generator(path)
    z, y = torch.randn(8, G.config.dim_z), torch.arange(8) % 3
    plain = G(z, y)
    PrecisionOptions(amp="bf16").apply(G)
    mixed = G(z, y)
    assert (plain - mixed).abs().max() > 0 and (plain - mixed).abs().mean() < 0.02
    sample.main([str(path), "--amp", "bf16", "--out", str(tmp_path / "out"), "--rows", "1"])
    assert (tmp_path / "out" / "random_sheet.png").exists()
    with pytest.raises(SystemExit):
        sample.main([str(path), "--amp", "fp8"])


def test_flags_of_the_family_mean_amp():
    flags = ["--dataset", "x", "--experiment_name", "x"]
    for flag in ("--G_fp16", "--D_fp16", "--G_mixed_precision", "--D_mixed_precision"):
        options, _ = train.parse_args([*flags, flag])
        assert options.precision.amp == "fp16" and options.legacy_notes == [f"{flag}: as --amp fp16, for G and D"]
    assert train.parse_args(flags)[0].precision == PrecisionOptions()


@pytest.mark.parametrize(
    "flags, expected", [([], True), (["--no-cudnn_benchmark"], False), (["--deterministic"], False)]
)
def test_cudnn_tries_its_algorithms_unless_told_otherwise(flags, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda *args: seen.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(train, "make_deterministic", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not expected)
    train.main(["--dataset", "x", "--experiment_name", "x", "--device", "cpu", *flags])
    assert seen == [expected]


def test_what_cannot_be_compiled_is_one_line():
    from torch._dynamo.exc import TorchDynamoException

    told = r"--compile cannot be had here \(a break\); train without it"
    with pytest.raises(utils.UserError, match=told), compilation(True):
        raise TorchDynamoException("a break\nand where it is")
    with pytest.raises(TorchDynamoException), compilation(False):
        raise TorchDynamoException("a break")


@pytest.mark.slow
def test_compiled_networks_train_as_they_do_without():
    """By the tracing backend alone: that everything is in one graph, and that state dicts keep their keys."""
    results = []
    for compiled in (False, True):
        G, D = networks(None, ssm="voxel")
        if compiled:
            for network in (G, D):
                network.compile(fullgraph=True, backend="aot_eager")
        keys = set(G.state_dict())
        optimizers = [torch.optim.SGD(network.parameters(), lr=1e-3) for network in (G, D)]
        x, z, y = batch(G)
        terms = d_step(G, D, D, optimizers[1], [(x, y, z, y)], 1, 0)
        terms |= g_step(G, D, G, optimizers[0], [(z, y)], 1, 0)
        assert set(G.state_dict()) == keys
        results.append(terms)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)
