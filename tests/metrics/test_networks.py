"""Published feature networks and the rules that bring images to them, against the codebases they come from."""

import dataclasses
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import utils
from metrics import networks, resizing
from metrics.dinov2 import DINOv2
from metrics.networks import FeatureNetwork, InceptionV3, Release, ResNet50, load_feature_network


def images_of(resolution, n=3, seed=0):
    """Half smooth, half noise: rules differ on both."""
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(n, 3, 4, 4, generator=g), resolution, mode="bicubic") * 160
    return (smooth + 95 * torch.rand(n, 3, resolution, resolution, generator=g)).clamp(0, 255).to(torch.uint8)


def assert_close(ours, theirs, relative=1e-4):
    """Equal to `relative` of the largest entry; the issue's bound for features."""
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


# --- resize rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [32, 45, 64, 299, 320])
def test_tf1_equals_torch_fidelity(resolution):
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = images_of(resolution)
    resize = theirs.interpolate_bilinear_2d_like_tensorflow1x
    expected = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
    assert torch.equal(resizing.tf1(images), expected)


@pytest.mark.parametrize(("resolution", "size"), [(32, 299), (64, 299), (299, 299), (400, 299), (32, 224), (400, 224)])
def test_pil_bicubic_equals_pillow(resolution, size):
    images = images_of(resolution, n=2)
    images[0, :, : resolution // 2] = 0
    images[0, :, resolution // 2 :] = 255  # a step overshoots
    planes = images.flatten(0, 1).numpy().astype(np.float32)
    resized = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in planes]
    expected = np.stack([np.asarray(plane).clip(0, 255) for plane in resized]).reshape(2, 3, size, size)
    if size == 299:
        ours = resizing.pil_bicubic(images) * 128 + 128
    else:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        ours = (resizing.pil_bicubic_224(images) * std[:, None, None] + mean[:, None, None]) * 255
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=0.005)


def test_rules_of_instance_selection():
    from torchvision.models import Inception3

    images = images_of(40)
    normalised = resizing.bilinear_corners(images)
    transformed = Inception3._transform_input(SimpleNamespace(transform_input=True), normalised)
    ours = resizing.bilinear_corners_transform_input(images)
    torch.testing.assert_close(ours, transformed, rtol=0, atol=1e-5)
    small = resizing.bilinear_corners_224(images)
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    for y, x in corners:  # aligned: the corners are the image's own, at either size
        torch.testing.assert_close(small[:, :, y, x], normalised[:, :, y, x], rtol=0, atol=1e-5)
    assert small.shape == (3, 3, 224, 224)


@pytest.mark.parametrize("name", resizing.RESIZE_RULES)
def test_rules_keep_constant_images_and_the_callers_pixels(name):
    images = torch.full((2, 3, 33, 33), 7, dtype=torch.uint8)
    x = resizing.RESIZE_RULES[name](images)
    torch.testing.assert_close(x, x[:1, :, :1, :1].expand_as(x), rtol=0, atol=2e-6)
    assert x.dtype == torch.float32 and (images == 7).all()


def test_every_rule_belongs_to_a_network():
    assert {rule for rules in networks.NETWORK_RESIZE.values() for rule in rules} == set(resizing.RESIZE_RULES)
    assert set(networks.RELEASES) == set(networks.NETWORK_RESIZE) - {"classifier"}
    assert set(networks.ALIASES.values()) <= set(networks.NETWORK_RESIZE)


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_inception_tf_equals_torch_fidelity(inception_tf_weights):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    expected = theirs.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_tf_weights)
    )
    network = load_feature_network("inception_tf", "nowhere", "toy", weights=inception_tf_weights)
    for images in (images_of(32, n=2), images_of(64, n=2)):
        for ours, their in zip(network(images), expected(images), strict=True):
            assert_close(ours, their)
    assert (network.name, network.resize, network.distance) == ("inception_tf", "tf1", "fid")
    assert (network.feature_dim, network.num_classes) == (2048, 1008)
    assert network.weights_hash == utils.sha256(inception_tf_weights)


@pytest.mark.slow
@torch.no_grad()
def test_inception_tf_equals_pytorch_fid(inception_tf_weights, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(inception_tf_weights, weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state)
    expected = theirs.InceptionV3().eval()
    network = load_feature_network("InceptionV3_tf", "nowhere", "toy", inception_tf_weights, resize="bilinear")
    images = images_of(48, n=2)
    features = network(images)[0]
    assert_close(features, expected(images / 255)[0].flatten(1))
    network.resize = "tf1"
    assert (network(images)[0] - features).abs().max() > 1e-3 * features.abs().max()


class Script(nn.Module):
    """The interface of StyleGAN's inception-2015-12-05.pt, with one layer for the network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 13, stride=13), nn.ReLU(), nn.AvgPool2d(23))
        self.output = nn.Linear(2048, 1008)

    def forward(self, img, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False):
        n, height = img.shape[0], img.shape[2]
        theta = torch.eye(2, 3).unsqueeze(0).repeat(n, 1, 1)
        theta[:, :, 2] += 1 / height - 1 / 299  # TensorFlow 1's bilinear
        grid = F.affine_grid(theta, [n, 3, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 2048)
        if return_features:
            return features
        bias = None if no_output_bias else self.output.bias
        return F.linear(features, self.output.weight, bias).softmax(1)


@pytest.fixture(scope="module")
def script_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("script") / "inception-2015-12-05.pt"
    torch.jit.script(Script().eval()).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@torch.no_grad()
def test_torchscript_form(script_file):
    network = load_feature_network("inception_tf", "nowhere", "toy", weights=script_file)
    script = torch.jit.load(str(script_file))
    images = images_of(32)
    features, logits = network(images)
    assert_close(features, script(images, return_features=True))
    assert_close(logits.softmax(1), script(images, no_output_bias=True))
    assert logits.shape == (3, 1008) and network.weights_hash == utils.sha256(script_file)
    corners = load_feature_network("inception_tf", "nowhere", "toy", script_file, "bilinear_corners")
    assert_close(corners(images)[0], script.layers(resizing.bilinear_corners(images)).flatten(1))
    assert not network.train().training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_resnet50_equals_torchvision(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs, path = resnet50(weights=None).eval(), tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), path)
    network = load_feature_network("ResNet50_torch", "nowhere", "toy", weights=path)
    pooled = []
    theirs.avgpool.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1)))
    images = images_of(32, n=2)
    expected = theirs(resizing.bilinear_corners_224(images))
    features, logits = network(images)
    assert_close(features, pooled[0])
    assert_close(logits, expected)
    assert (network.name, network.distance, network.feature_dim, network.num_classes) == ("resnet50", "fd", 2048, 1000)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random network in a file like torchvision's (auxiliary head included), and the network."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    net = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False).eval()
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path, net


@pytest.mark.slow
@torch.no_grad()
def test_inception_equals_torchvision(inception_file):
    path, theirs = inception_file
    network = load_feature_network("inceptionv3", "nowhere", "toy", weights=path)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # The family: [-1,1], back to [0,1], normalised, then interpolated with aligned corners.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (((images / 127.5 - 1) + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=True)
    pooled = []
    theirs.avgpool.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1)))
    expected = theirs(x)
    features, logits = network(images)
    torch.testing.assert_close(features, pooled[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert (network.name, network.resize, network.distance) == ("inception", "bilinear_corners", "fid")
    assert (network.feature_dim, network.num_classes) == (2048, 1000)
    assert network.weights_hash == utils.sha256(path)


def test_images_must_be_uint8():
    network = FeatureNetwork(SimpleNet(), name="resnet50", resize="bilinear_corners_224", weights_hash="")
    assert network(images_of(32))[0].shape == (3, 1)
    with pytest.raises(TypeError, match="uint8"):
        network(torch.zeros(1, 3, 32, 32))


class SimpleNet(nn.Module):
    feature_dim, num_classes = 1, 1

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None], x.mean((1, 2, 3))[:, None]


@pytest.mark.slow
def test_networks_and_rules_stay_on_their_device():
    """Fake CUDA tensors raise wherever a CPU tensor meets them."""
    from metrics.inception_tf import InceptionTF

    builders = {"inception": InceptionV3, "inception_tf": InceptionTF, "resnet50": ResNet50, "dinov2": DINOv2}
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.empty(4, 3, 32, 32, dtype=torch.uint8)
        for name, build in builders.items():
            rules = networks.NETWORK_RESIZE[name]
            sizes = {resizing.RESIZE_RULES[rule](images).shape for rule in rules}
            assert sizes == {(4, 3, 299, 299) if name.startswith("inception") else (4, 3, 224, 224)}
            network = FeatureNetwork(build(), name=name, resize=rules[0], weights_hash="")
            features, logits = network(images)
            assert features.device.type == logits.device.type == "cuda"
            assert features.shape == (4, network.feature_dim) and logits.shape == (4, network.num_classes)
            with pytest.raises(RuntimeError):
                network(torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="cpu"))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder as torch.hub's cache, on a machine without network."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "checkpoints"


CACHED = {
    "inception": "inception_v3_google-0cc3c7bd.pth",
    "inception_tf": "pt_inception-2015-12-05-6726825d.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "dinov2": "dinov2_vitl14_pretrain.pth",
}


@pytest.mark.parametrize("name", CACHED)
def test_weights_that_cannot_be_had(name, cache, tmp_path):
    with pytest.raises(utils.UserError, match="no network here") as error:
        load_feature_network(name, "data", "toy")
    text = str(error.value)
    assert str(cache / CACHED[name]) in text and "--inception_weights" in text and "\n" not in text
    (cache / CACHED[name]).write_bytes(b"half a file")
    with pytest.raises(utils.UserError, match="damaged"):
        load_feature_network(name, "data", "toy")
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(utils.UserError, match="no such file|is a folder"):
            load_feature_network(name, "data", "toy", weights=path)


@pytest.mark.parametrize("name", CACHED)
def test_files_that_hold_something_else(name, tmp_path, script_file):
    foreign = tmp_path / "foreign.pth"
    for content in ({"fc.weight": torch.zeros(3)}, [1, 2]):
        torch.save(content, foreign)
        with pytest.raises(utils.UserError, match=r"foreign\.pth does not hold the weights of"):
            load_feature_network(name, "data", "toy", weights=foreign)
    for path, whole in ((foreign, foreign.read_bytes()), (tmp_path / "cut.pt", script_file.read_bytes())):
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(utils.UserError, match=r"(foreign|cut)\.pt.* is not a readable checkpoint"):
            load_feature_network(name, "data", "toy", weights=path)
    if name != "inception_tf":
        with pytest.raises(utils.UserError, match="goes with the network inception_tf and --inception_weights"):
            load_feature_network(name, "data", "toy", weights=script_file)
    foreign.write_text("<html>404</html>")
    with pytest.raises(utils.UserError, match="is not a readable checkpoint"):
        load_feature_network(name, "data", "toy", weights=foreign)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_of_another_network(tmp_path):
    path = tmp_path / "other.pt"
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(str(path))
    with pytest.raises(utils.UserError, match=r"other\.pt does not hold"):
        load_feature_network("inception_tf", "data", "toy", weights=path)
    other = Script()
    other.output = nn.Linear(2048, 1000)
    torch.jit.script(other).save(str(path))
    with pytest.raises(utils.UserError, match=r"other\.pt does not hold"):
        load_feature_network("inception_tf", "data", "toy", weights=path)


@pytest.mark.slow
def test_download(tmp_path, inception_tf_weights, monkeypatch):
    digest = utils.sha256(inception_tf_weights)
    source = Release(inception_tf_weights.as_uri(), digest[:8], "the network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(networks.RELEASES, "inception_tf", dataclasses.replace(source, sha256="0" * 8))
    with pytest.raises(utils.UserError, match="invalid hash value"):
        load_feature_network("inception_tf", "data", "toy")
    assert not list((tmp_path / "checkpoints").iterdir())
    monkeypatch.setitem(networks.RELEASES, "inception_tf", source)
    assert load_feature_network("inception_tf", "data", "toy").weights_hash == digest
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [inception_tf_weights.name]


def test_cache_under_either_name(cache, inception_tf_weights, script_file, monkeypatch):
    digest = utils.sha256(inception_tf_weights)
    release = networks.RELEASES["inception_tf"]
    monkeypatch.setitem(
        networks.RELEASES,
        "inception_tf",
        dataclasses.replace(release, sha256=digest[:8]),
    )
    cache.mkdir()
    (cache / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_tf_weights)
    assert load_feature_network("inception_tf", "data", "toy").weights_hash == digest
    # Code is run only from a file that the user has named, even where the hash were right.
    (cache / CACHED["inception_tf"]).symlink_to(script_file)
    with pytest.raises(utils.UserError, match="damaged"):
        load_feature_network("inception_tf", "data", "toy")
    monkeypatch.setattr(utils, "sha256", lambda path: digest)
    with pytest.raises(utils.UserError, match="is TorchScript"):
        load_feature_network("inception_tf", "data", "toy")


def test_the_classifier_takes_no_other_weights(tmp_path):
    with pytest.raises(utils.UserError, match="--inception_weights"):
        load_feature_network("classifier", tmp_path, "toy", weights="some.pth")
