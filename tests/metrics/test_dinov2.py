"""DINOv2's network: the released names and shapes, its arithmetic written out once more, and what it measures."""

import math

import numpy as np
import pytest
import torch
from evaluation_fixtures import ONE
from small_models import NAMES, RESOLUTION, small_generator
from torch.nn import functional as F

import calculate_inception_moments
import utils
from image_datasets import writing
from image_datasets.hdf5 import HDF5Dataset
from inception_utils import Measure, evaluate_generator, metric_keys, summary
from metrics import dinov2, tables, truncation_sweep
from metrics.networks import load_feature_network
from metrics.protocol import MetricOptions
from metrics.reference import load_reference, reference_path
from sampling.latents import Truncation
from selection.scores import compute_scores, load_embedding

BLOCK = {
    "norm1.weight": (1,), "norm1.bias": (1,), "attn.qkv.weight": (3, 1), "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1), "attn.proj.bias": (1,), "ls1.gamma": (1,), "norm2.weight": (1,), "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1), "mlp.fc1.bias": (4,), "mlp.fc2.weight": (1, 4), "mlp.fc2.bias": (1,), "ls2.gamma": (1,),
}  # fmt: skip


def test_names_and_shapes_are_the_released_ones():
    with torch.device("meta"):
        state = dinov2.DINOv2().state_dict()
    expected = {"cls_token": (1, 1, 1024), "mask_token": (1, 1024), "pos_embed": (1, 1370, 1024)}
    expected |= {"patch_embed.proj.weight": (1024, 3, 14, 14), "patch_embed.proj.bias": (1024,)}
    expected |= {"norm.weight": (1024,), "norm.bias": (1024,)}
    for i in range(24):
        expected |= {f"blocks.{i}.{name}": tuple(1024 * n for n in shape) for name, shape in BLOCK.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert sum(tensor.numel() for tensor in state.values()) == 304_368_640  # x 4 bytes: the 1.2 GB of the file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the released layout, narrow, while the network is as narrow."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WIDTH", 16), ("DEPTH", 2), ("HEADS", 2)):
            patch.setattr(dinov2, name, value)
        torch.manual_seed(0)
        state = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in dinov2.DINOv2().state_dict().items()}
        path = tmp_path_factory.mktemp("dinov2") / "dinov2_vitl14_pretrain.pth"
        torch.save(state, path)
        yield path


def class_token(state, x):
    """The features of x (N,3,224,224), head by head, from the papers' formulas."""

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, h):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    patches = x.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 256, -1)
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic").permute(0, 2, 3, 1)
    h = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], 1)
    h = h + torch.cat([state["pos_embed"][:, :1], grid.reshape(1, 256, -1)], 1)
    for i in range(2):
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", h)).chunk(3, -1)
        heads = [
            (a @ b.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ c
            for a, b, c in zip(q.split(8, -1), k.split(8, -1), v.split(8, -1), strict=True)
        ]
        h = h + state[f"blocks.{i}.ls1.gamma"] * linear(f"blocks.{i}.attn.proj", torch.cat(heads, -1))
        inner = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", h))
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        h = h + state[f"blocks.{i}.ls2.gamma"] * linear(f"blocks.{i}.mlp.fc2", inner)
    return norm("norm", h[:, 0])


@torch.no_grad()
def test_features_are_those_of_the_formulas(weights):
    network = load_feature_network("dinov2", "nowhere", "toy", weights=weights)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = network(images)
    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(features, class_token(torch.load(weights), x), rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 16) and logits.shape == (2, 0)
    assert (network.name, network.resize, network.distance) == ("dinov2", "pil_bicubic_224", "fd")
    assert network.weights_hash == utils.sha256(weights)
    net = network.net
    assert torch.equal(net.positions(37), net.pos_embed) and net.positions(16).shape == (1, 257, 16)


def test_weights_of_another_size_are_one_line(weights, monkeypatch):
    monkeypatch.setattr(dinov2, "DEPTH", 3)
    with pytest.raises(utils.UserError, match="does not hold the weights of DINOv2's ViT-L/14"):
        load_feature_network("dinov2", "nowhere", "toy", weights=weights)


@pytest.mark.filterwarnings("ignore:fd of")
def test_it_measures_without_an_inception_score(weights, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (36, 3, RESOLUTION, RESOLUTION)).astype(np.uint8)
    writing.write_hdf5(tmp_path / "small.hdf5", images, np.arange(36) % 3, NAMES, "made", "none")
    flags = ["--dataset", "small", "--data_root", str(tmp_path), "--feature_network", "dinov2", "--device", "cpu"]
    calculate_inception_moments.main([*flags, "--inception_weights", str(weights)])
    out = capsys.readouterr().out
    assert "16 dinov2 features (pil_bicubic_224" in out and "IS of the real images" not in out
    network = load_feature_network("DINOv2_torch", tmp_path, "small", weights=weights)
    reference = load_reference(reference_path(tmp_path, "small", "dinov2", "pil_bicubic_224"), network)
    assert reference.is_mean is None and "is_mean" not in metric_keys(network, reference, 3)
    measure = Measure(network, reference, MetricOptions(kid_subsets=3), ONE)
    metrics = evaluate_generator(small_generator(), measure, 30, 0, Truncation(0.5), ema=True)
    assert set(metric_keys(network, reference, 3)) | {"protocol"} == metrics.keys()
    assert summary(metrics).startswith("FD ") and ", IS " not in summary(metrics)
    assert metrics["protocol"]["network"] == "dinov2" and metrics["protocol"]["is_outputs"] == 0
    utils.save_json(metrics, tmp_path / "a.json")
    assert tables.read_results(tmp_path / "a.json")[0][1] == metrics and "fd" in tables.table(metrics)
    truncation_sweep.plot([metrics, metrics], tmp_path / "sweep.png")
    embedding = load_embedding("dinov2", tmp_path, "small", weights)
    assert len(compute_scores(HDF5Dataset(tmp_path / "small.hdf5"), embedding, "ppca", 16, ONE)) == 36
