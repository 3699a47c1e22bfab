"""The networks on a device against the CPU: outputs, gradients, whole steps, memory formats, mixed precision."""

import copy

import pytest
import torch
from devices import DEVICES, LONG_DEVICES
from small_models import small_config
from torch._subclasses import FakeTensorMode
from whole_steps import ATTENTION, BIGGAN, MODELS, assert_near, batch, networks, steps_of

import BigGAN
import layers
import train
from torch_utils.distributed import Ranks
from torch_utils.mixed_precision import LossScaler, PrecisionOptions
from training.batches import Draw
from training.regularisation import Regularisation
from training.steps import d_step, g_step

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
TYPES = [torch.bfloat16, torch.float16]


def on(device, pair, memory_format=torch.channels_last):
    return [copy.deepcopy(network).to(device, memory_format=memory_format) for network in pair]


def results(pair, device, dtype, training=True):
    """Images, logits and all gradients, on the CPU."""
    G, D = (network.train(training) for network in pair)
    _, z, y = (t.to(device) for t in batch(G, dtype=dtype))
    images = G(z, y)
    logits = D(images, y)
    weights = torch.linspace(-1, 2, len(logits), dtype=dtype, device=device)
    parameters = [p for network in pair for p in network.parameters()]
    gradients = torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)
    return [t.detach().cpu() for t in (images, logits, *gradients) if t is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("model", MODELS)
def test_outputs_and_gradients_are_those_of_the_cpu(model, dtype, device):
    pair = networks(dtype, **model)
    for training in (True, False):
        expected = results(on("cpu", pair), "cpu", dtype, training)
        assert_near(results(on(device, pair), device, dtype, training), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_a_training_step_is_that_of_the_cpu(model, device):
    """Losses, fused Adam with orthogonal regularisation, moving average, buffers."""
    pair = networks(**model)
    of_cpu, of_device = (steps_of(*on(where, pair), False, torch.float64, 1) for where in ("cpu", device))
    for (losses, state), (theirs, their_state) in ((of_device, of_cpu),):
        assert_near([t.cpu() for t in losses[0].values()], theirs[0].values(), 1e-8)
        assert_near([t.detach().cpu() for t in state], [t.detach() for t in their_state], 1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("approx", [[], ["--r1_approx", "--r2_approx"]])
@pytest.mark.parametrize("augmentation", [["--diffaug", "color_translation_cutout"], ["--ada_target", "0.6"]])
def test_regularised_steps_are_those_of_the_cpu(augmentation, approx, device):
    """Second derivatives through attention, and all that D's images go through."""
    flags = "--loss relativistic --r1_gamma 1 --r2_gamma 1 --bcr 10 --zcr 20 --lecam 0.3".split()
    options, _ = train.parse_args(["--dataset", "x", *flags, *approx, *augmentation])
    pair, results = networks(ssm="voxel", **ATTENTION), []
    for where in ("cpu", device):
        (G, D), memory = on(where, pair), Regularisation(options.techniques, torch.device(where))
        memory.strength.fill_(0.7)
        x, z, y = (t.to(where) for t in batch(G))
        draw = Draw(0, Ranks(0, 1, torch.device(where)), 1, 0, len(x))
        optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (G, D)]
        terms = d_step(G, D, D, optimizers[1], [(x, y, z, y, draw)], *options.steps.of_D, None, memory)
        terms |= g_step(G, D, G, optimizers[0], [(z, y, x, draw)], *options.steps.of_G, None, memory)
        results.append([t.detach().cpu() for t in (*terms.values(), *G.parameters(), *D.parameters())])
    assert_near(results[1], results[0], 1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", [MODELS[1], MODELS[6]])
def test_the_memory_format_changes_nothing(model, device):
    pair = networks(torch.float32, **model)
    formats = torch.channels_last, torch.contiguous_format
    last, first = (results(on(device, pair, f), device, torch.float32) for f in formats)
    assert_near(last, first, 1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *TYPES])
@pytest.mark.parametrize("widths", [(1, 4), (4, 16), (24, 96)])  # of queries and of values, which GPUs pad to
@pytest.mark.parametrize("channels_last", [True, False])
def test_attention_is_the_plain_one(widths, channels_last, dtype, device):
    """Its gradients too; with large scores, so that a softmax in half precision would show."""
    g = torch.Generator().manual_seed(0)
    d, e = widths
    shapes = (2, 64, d), (2, 16, d), (2, 16, e)
    plain = [torch.randn(s, generator=g).to(dtype).double() for s in shapes]
    plain[0] *= 3
    given = [t.to(device, dtype) for t in plain]
    if not channels_last:  # what flattening (N,C,H,W) gives: the positions are dense
        given = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in given]
    outcomes = []
    for tensors in (plain, given):
        q, k, v = (t.requires_grad_(True) for t in tensors)
        out = torch.softmax(q @ k.transpose(1, 2), -1) @ v if tensors is plain else layers.attend(q, k, v)
        outcomes.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    assert outcomes[1][0].dtype == dtype and outcomes[1][0].device.type == device
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 0.1}[dtype]
    assert_near([t.detach().cpu().double() for t in outcomes[1]], [t.detach() for t in outcomes[0]], tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("model", [MODELS[1], MODELS[5], MODELS[6]])
def test_mixed_precision_is_near_float32(model, dtype, device):
    pair = networks(torch.float32, **model)
    plain = results(on(device, pair), device, torch.float32)
    for network in pair:
        network.amp = dtype
    mixed = results(on(device, pair), device, torch.float32)
    least = {torch.float16: 0.97, torch.bfloat16: 0.85}[dtype]
    assert mixed[0].dtype == mixed[1].dtype == torch.float32 and not torch.equal(mixed[0], plain[0])
    for a, b in zip(mixed, plain, strict=True):
        if a.numel() > 100:
            assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > least


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_scale_and_fused_adam_agree(device):
    """Gradients are unscaled once: before orthogonal regularisation, and not again by the fused step."""
    pair = networks(torch.float32, ssm="voxel", **ATTENTION)
    states = []
    for scaled in (False, True):
        G, D = on(device, pair)
        scalers = [LossScaler(device, init_scale=2.0**12) if scaled else None for _ in range(2)]
        optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-4, fused=True) for net in (G, D)]
        x, z, y = (t.to(device) for t in batch(G, dtype=torch.float32))
        d_step(G, D, D, optimizers[1], [(x, y, z, y)], 1, 1e-2, scaler=scalers[1])
        g_step(G, D, G, optimizers[0], [(z, y)], 1, 1e-2, scaler=scalers[0])
        states.append([p.detach().cpu() for net in (G, D) for p in net.parameters()])
        if scaled:
            d_step(G, D, D, optimizers[1], [(x * torch.inf, y, z, y)], 1, 1e-2, scaler=scalers[1])
            assert scalers[1].skipped == scalers[1].in_a_row == 1 and scalers[1].get_scale() == 2.0**11
            assert_near([p.detach().cpu() for p in D.parameters()], states[1][-len([*D.parameters()]) :], 0)
            assert {int(s["step"]) for s in optimizers[1].state.values()} == {1}
    assert_near(states[1], states[0], 1e-4)


@pytest.mark.parametrize("device", LONG_DEVICES)
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("model", [MODELS[1], MODELS[6]])
def test_compiled_networks_train_as_they_do_without(model, amp, device):
    """In one graph each; state dicts keep their keys. On the CPU by the tracing backend alone."""
    losses = []
    for compiled in (False, True):
        G, D = on(device, networks(torch.float32, **model))
        PrecisionOptions(amp=amp, tf32=False).apply(G, D)
        keys = set(G.state_dict()), set(D.state_dict())
        if compiled:
            for network in (G, D):
                network.compile(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
        losses += steps_of(G, D, False, torch.float32, 2)[0]
        assert keys == (set(G.state_dict()), set(D.state_dict()))
    tolerance = 1e-3 if amp == "off" else 0.1
    for plain, compiled in zip(losses[:2], losses[2:], strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [None, *TYPES])
@pytest.mark.parametrize("model", [{"ssm": "voxel", **BIGGAN, **ATTENTION}, MODELS[6], MODELS[4]])
@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_nothing_leaves_a_fake_gpu_under_autocast(model, dtype, monkeypatch):
    """Fake CUDA tensors raise wherever a CPU tensor meets them, and tell what type comes out."""
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            G, D = BigGAN.build(small_config(D_init="N02", **model))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # else autocast is off
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        G.amp = D.amp = dtype
        maps = set()
        for module in [*G.modules(), *D.modules()]:
            if isinstance(module, (layers.Conv2d, layers.SelfAttention, layers.ConditionalBatchNorm2d)):
                module.register_forward_hook(lambda layer, inputs, out: maps.add((out.dtype, out.device.type)))
        z, y = torch.empty(2, G.config.dim_z, device="cuda"), torch.empty(2, dtype=torch.int64, device="cuda")
        images = G(z, y)
        logits = D(images, y)
    assert maps == {(dtype or torch.float32, "cuda")}
    assert images.dtype == logits.dtype == torch.float32 and logits.device.type == "cuda"
