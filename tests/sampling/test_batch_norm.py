"""Batch-norm modes: which statistics are used, that nothing else changes, and that the network is left as it was."""

import random

import numpy as np
import pytest
import torch
from small_models import CLASSES, small_generator
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import utils
from metrics.images import GeneratedImages
from sampling import generate, latents
from sampling.batch_norm import BatchNormMode, batch_statistics, chosen_mode, evaluating, prepared, standing_copy

MODES = [BatchNormMode(), BatchNormMode("batch", 8), BatchNormMode("standing", 8, 3)]


@pytest.fixture(scope="module", params=["spectral norm, conditional", "plain batch norm, SSM"])
def G(request):
    if request.param.startswith("plain"):
        return small_generator(ssm="global_voxel", G_cbn=False)
    return small_generator(G_param="SN", G_embed_SN=True)


class Inputs:
    """Within the block, the inputs and outputs of every batch norm, in the order of the forwards."""

    def __enter__(self):
        self.seen = {}
        self.hook = nn.modules.module.register_module_forward_hook(self._keep)
        return self.seen

    def _keep(self, module, inputs, output):
        if isinstance(module, nn.BatchNorm2d):
            self.seen.setdefault(module, []).append((inputs[0], output))

    def __exit__(self, *error):
        self.hook.remove()


def norms(G):
    return [module for module in G.modules() if isinstance(module, nn.BatchNorm2d)]


def draw(G, n=8):
    return latents.latents(0, range(n), G.config.dim_z), torch.arange(n) % CLASSES


def test_batch_mode_normalises_by_the_batch_and_nothing_else(G):
    with Inputs() as seen, evaluating(G), batch_statistics(G):
        assert [m.training for m in G.modules() if hasattr(m, "sn")] == [False] * sum(
            hasattr(m, "sn") for m in G.modules()
        )  # no power iteration
        images = G(*draw(G))
    assert set(seen) == set(norms(G)) and len(seen) > 3
    for norm, [(x, y)] in seen.items():
        expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        assert torch.allclose(y, expected, atol=1e-6)
    assert not torch.allclose(images, G(*draw(G)), atol=1e-2)  # the running statistics give other images


def test_standing_statistics_are_averages_over_batches(G):
    mode = BatchNormMode("standing", 8, 3)
    with Inputs() as seen:
        copy = standing_copy(G, mode, seed=4)
    assert set(seen) == set(norms(copy))
    for norm, calls in seen.items():
        assert len(calls) == 3
        x = torch.stack([x for x, _ in calls]).double().transpose(1, 2).flatten(2)  # (3,C,8HW)
        assert torch.allclose(norm.running_mean.double(), x.mean(2).mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var.double(), x.var(2).mean(0), rtol=1e-4)
    again, others = (
        standing_copy(G, mode, 4),
        (standing_copy(G, mode, 5), standing_copy(G, mode, 4, latents.Truncation(0.2))),
    )
    for name, tensor in copy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if name.endswith("running_mean"):
            assert not any(torch.allclose(tensor, other.state_dict()[name], rtol=1e-3) for other in others)
        elif not name.endswith(("running_var", "num_batches_tracked")):
            assert torch.equal(tensor, G.state_dict()[name])


def everything(G):
    state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    flags = [(m.training, getattr(m, "track_running_stats", 0), getattr(m, "momentum", 0)) for m in G.modules()]
    return state, flags, [p.requires_grad for p in G.parameters()], torch.get_rng_state(), random.getstate()


def check_equal(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:3] == after[1:3] and torch.equal(before[3], after[3]) and before[4] == after[4]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.bn_mode)
def test_the_network_is_left_as_it_was(mode, error):
    G = small_generator(G_param="SN").train().requires_grad_(True)
    G.stages[0][0].bn1.eval()
    before, numpy_state = everything(G), np.random.get_state()[1].copy()
    try:
        with prepared(G, mode, seed=0) as network:
            network(*draw(G))
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    check_equal(before, everything(G))
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize("interrupted", [0, 1])
def test_an_interrupt_while_statistics_are_made_leaves_the_network(monkeypatch, interrupted):
    G = small_generator(G_param="SN").train()
    before = everything(G)
    calls = iter(range(9))

    def forward(self, *arguments):
        if next(calls) == interrupted:
            raise KeyboardInterrupt
        return original(self, *arguments)

    original = type(G).forward
    monkeypatch.setattr(type(G), "forward", forward)
    with pytest.raises(KeyboardInterrupt), prepared(G, MODES[2], seed=0):
        pass
    check_equal(before, everything(G))


def test_too_little_memory_is_one_line(monkeypatch):
    G = small_generator()
    monkeypatch.setattr(type(G), "forward", lambda *arguments: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(utils.UserError, match="--bn_batch_size 8"), prepared(G, MODES[2], 0):
        pass


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.bn_mode)
def test_an_image_depends_on_neither_what_is_read_nor_the_batch_size(mode):
    G = small_generator()
    with prepared(G, mode, seed=0) as network:
        images = GeneratedImages(network, 21, 0, mode)
        whole = images.read(np.arange(21))
        parts = [torch.cat([images.read(part) for part in np.split(np.arange(21), cuts)]) for cuts in ([1, 2], [7, 14])]
        more = GeneratedImages(network, 50, 0, mode)
        parts += [more.read(np.arange(21)), torch.cat([more.read(np.array([i])) for i in range(21)])]
        assert torch.equal(images.read(np.array([3, 9, 20])), images.read(np.arange(21))[[3, 9, 20]])
    assert whole.shape == (21, 3, 16, 16) and images.labels.tolist() == more.labels[:21].tolist()
    assert all((whole.int() - part.int()).abs().max() <= 1 for part in parts)
    assert np.bincount(images.labels).tolist() == [7, 7, 7]


def test_shuffled_labels_are_balanced_and_mixed():
    y = latents.shuffled_labels(0, 2500, range(1000))
    assert torch.equal(y[:1000].sort().values, torch.arange(1000)) and torch.equal(
        y[:70], latents.shuffled_labels(0, 70, range(1000))
    )
    assert not torch.equal(y[:1000], y[1000:2000]) and not torch.equal(y, latents.shuffled_labels(1, 2500, range(1000)))
    assert (y[:64].diff() == 1).sum() < 5  # neighbours in the batch are no neighbours in the list of classes


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # copying G does
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.bn_mode)
def test_no_mode_mixes_devices(mode, monkeypatch):
    monkeypatch.setattr(generate, "check_finite", lambda images: None)  # fake tensors have no values
    G = small_generator(G_param="SN", ssm="voxel")
    made = GeneratedImages(G, 12, 0, mode)
    with FakeTensorMode(allow_non_fake_inputs=True), prepared(G.to("cuda"), mode, seed=0) as made.G:
        images = made.read(np.arange(12))
    assert images.shape == (12, 3, 16, 16) and images.device.type == "cpu"


def test_truncated_z_has_standing_statistics_unless_a_mode_is_named_or_the_weights_hold_them(capsys):
    own, other = latents.Truncation(0.4, "scaled_truncated_normal"), latents.Truncation(0.4)
    flags = {"bn_mode": None, "bn_batch_size": 8, "num_standing_accumulations": 3}
    for truncation in (None, own, latents.Truncation(1.0, "scaled_normal")):
        assert chosen_mode(flags, truncation, own) == BatchNormMode("running", 8, 3)
    assert capsys.readouterr().out == ""
    for truncation, of_weights in ((other, None), (other, own), (latents.Truncation(1.0), None)):
        assert chosen_mode(flags, truncation, of_weights) == BatchNormMode("standing", 8, 3)
        assert "--bn_mode running" in capsys.readouterr().out
    for mode in ("running", "batch"):
        assert chosen_mode({**flags, "bn_mode": mode}, other, None).bn_mode == mode
    assert capsys.readouterr().out == ""
