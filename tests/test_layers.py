"""Fused convolutions against their plain composition, spectral norm against the SVD, norms, attention, init."""

import pytest
import torch
import torch.nn.functional as F

import layers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fused_and_plain(conv, x):
    """Output and gradients (input, weight, bias) of a resampling convolution, fused and as the plain composition."""
    results = []
    for fused in (True, False):
        conv.fused = fused
        x = x.detach().requires_grad_(True)
        out = conv(x)
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)  # no symmetry to hide behind
        results.append([out, *torch.autograd.grad((out * weights).sum(), [x, conv.weight, conv.bias])])
    return results


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kind", [layers.UpConv2d, layers.DownConv2d])
def test_fused_resampling_equals_the_plain_composition(kind, kernel):
    conv = kind(3, 5, kernel).double()
    torch.nn.init.normal_(conv.bias)
    fused, plain = fused_and_plain(conv, torch.randn(2, 3, 6, 8, dtype=torch.float64))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [layers.UpConv2d, layers.DownConv2d])
def test_plain_composition_is_what_it_says(kind):
    conv, x = kind(3, 5), torch.randn(2, 3, 8, 8)
    conv.fused = False
    up = F.conv2d(F.interpolate(x, scale_factor=2), conv.weight, conv.bias, padding=1)
    down = F.avg_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=1), 2)
    torch.testing.assert_close(conv(x), up if kind is layers.UpConv2d else down)


@pytest.mark.parametrize(
    "layer", [layers.Conv2d(6, 9, 3, sn=True), layers.Linear(12, 7, sn=True), layers.Embedding(10, 16, sn=True)]
)
def test_spectral_norm_finds_the_largest_singular_value(layer):
    torch.nn.init.normal_(layer.weight)
    for _ in range(300):
        weight = layer.train().normalized_weight()
    assert torch.linalg.svdvals(weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    evaluated = layer.eval().normalized_weight()
    torch.testing.assert_close(evaluated, weight)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())  # evaluation writes nothing


def test_spectral_norm_gradient_flows_through_sigma():
    layer = layers.Linear(4, 3, sn=True).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(weight):
        sigma = layer.u @ weight @ layer.v
        return ((x @ (weight / sigma).t()) ** 3).sum()

    assert torch.autograd.gradcheck(loss, layer.weight.detach().requires_grad_(True))
    (ours,) = torch.autograd.grad(((layer(x) - layer.bias) ** 3).sum(), layer.weight)
    weight = layer.weight.detach().requires_grad_(True)
    torch.testing.assert_close(ours, torch.autograd.grad(loss(weight), weight)[0])


def test_a_second_forward_does_not_spoil_the_first_ones_backward():
    layer = layers.Conv2d(3, 4, sn=True).train()
    first, _ = layer(torch.randn(1, 3, 5, 5)).sum(), layer(torch.randn(1, 3, 5, 5))
    first.backward()


@pytest.mark.parametrize("condition_dim", [None, 6])
def test_conditional_batch_norm(condition_dim):
    norm = layers.ConditionalBatchNorm2d(4, condition_dim, num_classes=3, sn={"sn": False}).double()
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64) * 3 + 1
    condition = torch.tensor([0, 1, 2, 1, 0]) if condition_dim is None else torch.randn(5, 6, dtype=torch.float64)
    gain, bias = 1 + norm.gain(condition), norm.bias(condition)
    for training in (True, False):  # in eval with running statistics that training has moved
        norm.train(training)
        plain = F.batch_norm(x, norm.bn.running_mean.clone(), norm.bn.running_var.clone(), training=training)
        torch.testing.assert_close(norm(x, condition), plain * gain[:, :, None, None] + bias[:, :, None, None])
    assert not torch.equal(norm.bn.running_mean, torch.zeros(4, dtype=torch.float64))


def plain_conditional_batch_norm(norm, x, condition):
    gain, bias = (of_y(condition)[:, :, None, None] for of_y in (norm.gain, norm.bias))
    return torch.addcmul(bias.to(x.dtype), norm.bn(x), (1 + gain).to(x.dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_conditional_batch_norm_that_keeps_one_map_gives_every_digit_of_the_plain_one(dtype, memory_format):
    """Output, gradients and running statistics; the plain one keeps the normalised map as well."""
    shape, condition = (8, 6, 9, 9), torch.arange(8) % 5
    x, weights = (t.to(dtype, memory_format=memory_format) for t in (3 + 2 * torch.randn(shape), torch.randn(shape)))
    results, kept = [], []
    for forward in (layers.ConditionalBatchNorm2d.forward, plain_conditional_batch_norm):
        torch.manual_seed(1)
        norm = layers.ConditionalBatchNorm2d(6, None, 5, {"sn": False})
        norm = norm.double() if dtype == torch.float64 else norm
        leaf = x.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            out = forward(norm, leaf, condition)
        (F.relu(out) * weights).sum().backward()
        moved = norm.bn.running_mean, norm.bn.running_var, norm.bn.num_batches_tracked
        results.append((out, leaf.grad, norm.gain.weight.grad, norm.bias.weight.grad, *moved))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept.count(torch.Size(shape)) == 1 + 2  # maps of the one and of the other


def test_attention_is_the_identity_at_first_and_attends_to_pooled_positions_later():
    attention, x = layers.SelfAttention(16, {"sn": False}), torch.randn(2, 16, 4, 4)
    assert torch.equal(attention(x), x)
    attention.gamma.data.fill_(0.7)
    theta, phi, g = (conv(x) for conv in (attention.theta, attention.phi, attention.g))
    phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
    weights = torch.softmax(theta.flatten(2).transpose(1, 2) @ phi, dim=-1)
    attended = (g @ weights.transpose(1, 2)).view(2, 8, 4, 4)
    torch.testing.assert_close(attention(x), x + 0.7 * attention.o(attended))


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_d_block_shapes_and_identity_shortcut(down, wide):
    block = layers.DBlock(4, 8, {"sn": False}, down=down, wide=wide)
    assert block(torch.randn(2, 4, 8, 8)).shape == ((2, 8, 4, 4) if down else (2, 8, 8, 8))
    assert block.conv1.out_channels == (8 if wide else 4)
    same = layers.DBlock(8, 8, {"sn": False}, down=False)
    assert isinstance(same.conv_sc, torch.nn.Identity)


@pytest.mark.parametrize("scheme", ["ortho", "xavier", "N02"])
def test_init(scheme):
    conv = layers.Conv2d(32, 16, sn=True)
    layers.init_weights(conv, scheme)
    W = conv.weight.detach().flatten(1)
    if scheme == "ortho":
        torch.testing.assert_close(W @ W.t(), torch.eye(16), atol=1e-5, rtol=0)
    else:
        std = {"xavier": (2 / (9 * (32 + 16))) ** 0.5, "N02": 0.02}[scheme]
        assert W.std().item() == pytest.approx(std, rel=0.05)
    assert conv.bias.abs().max() == 0
