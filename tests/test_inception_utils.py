"""Feature networks, and the metrics of generated images."""

import argparse
import json
import urllib.error

import pytest
import torch
from test_reference_statistics import made_reference, small_network
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import classifier
import feature_networks
import inception_utils
import metrics
import utils
from feature_networks import FeatureNetwork, InceptionV3, load_feature_network
from metrics import RunningMoments

# --- feature networks ------------------------------------------------------------------------------------------------


def test_feature_network_stays_in_eval_mode_and_full_precision():
    network = small_network()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    features, logits = network(images)
    assert features.shape == (5, 128) and logits.shape == (5, 3)
    torch.nn.Sequential(network).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = network(images)
    assert not network.training and not any(module.training for module in network.modules())
    assert torch.equal(again[0], features) and torch.equal(again[1], logits)
    assert not features.requires_grad and not any(p.requires_grad for p in network.parameters())
    alone = torch.cat([network(image[None])[0] for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-6)
    with pytest.raises(utils.UserError, match="16x16 images, these are 32x32"):
        network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("resolution", [8, 16, 32, 48, 64, 96, 128])
def test_classifier_takes_any_resolution(resolution):
    net = classifier.Classifier(resolution, 7).eval()
    features, logits = net(torch.rand(2, 3, resolution, resolution))
    assert features.shape == (2, 128) and logits.shape == (2, 7)
    h = net.blocks(net.stem(torch.rand(1, 3, resolution, resolution)))
    assert h.shape[-1] in (3, 4)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random network in a file like torchvision's (auxiliary head included), and the network."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    net = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False).eval()
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path, net


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


def test_inception_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    cached = tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    with pytest.raises(utils.UserError, match="no network here") as error:
        load_feature_network("inception", "data", "toy")
    assert str(cached) in str(error.value) and "--inception_weights" in str(error.value)
    cached.write_bytes(b"half a file")
    with pytest.raises(utils.UserError, match="damaged"):
        load_feature_network("inception", "data", "toy")
    with pytest.raises(utils.UserError, match="no such file"):
        load_feature_network("inception", "data", "toy", weights=tmp_path / "missing.pth")
    foreign = tmp_path / "foreign.pth"
    for content in ({"weight": torch.zeros(3)}, [1, 2], {"format": "something"}):
        torch.save(content, foreign)
        with pytest.raises(utils.UserError, match=r"foreign\.pth does not hold"):
            load_feature_network("inception", "data", "toy", weights=foreign)


def test_names_and_resize_rules_are_checked(tmp_path):
    with pytest.raises(utils.UserError, match="--feature_network vgg"):
        load_feature_network("vgg", tmp_path, "toy")
    with pytest.raises(utils.UserError, match="--resize native"):
        load_feature_network("inception", tmp_path, "toy", resize="native")
    with pytest.raises(utils.UserError, match=r"calculate_inception_moments\.py --dataset toy"):
        load_feature_network("classifier", tmp_path, "toy")
    parser = argparse.ArgumentParser()
    inception_utils.add_metric_args(parser)
    args = parser.parse_args(["--feature_network", "inceptionv3"])
    assert args.feature_network == "inception" and args.num_inception_images == 50_000 and args.resize is None


def test_classifier_file_round_trip(tmp_path):
    network = small_network()
    path = classifier.classifier_path(tmp_path, "toy")
    classifier.save_classifier(network.net, path, dataset_name="toy", accuracy=0.5, seed=1, epochs=2)
    loaded = load_feature_network("classifier", tmp_path, "toy")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded(images)[0], network(images)[0])
    assert loaded.weights_hash == classifier.weights_hash(network.net) and loaded.distance == "fd"
    assert classifier.load_classifier(path)[1] == {"dataset": "toy", "accuracy": 0.5, "seed": 1, "epochs": 2}
    classifier.save_classifier(network.net, path, dataset_name="toy", accuracy=0.5, seed=1, epochs=2)
    assert load_feature_network("classifier", tmp_path, "toy").weights_hash == loaded.weights_hash
    torch.save({"G": {}}, path)
    with pytest.raises(utils.UserError, match="not a classifier"):
        load_feature_network("classifier", tmp_path, "toy")


def test_everything_stays_on_its_device():
    """Fake CUDA tensors raise wherever a CPU tensor meets them."""
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.empty(20, 3, 32, 32, dtype=torch.uint8)
        for name, net in (("inception", InceptionV3()), ("classifier", classifier.Classifier(32, 10))):
            resize = feature_networks.NETWORK_RESIZE[name][0]
            network = FeatureNetwork(net, name=name, resize=resize, weights_hash="")
            features, logits = network(images)
            assert features.device.type == "cuda" and features.shape == (20, network.feature_dim)
            moments, score = RunningMoments(), metrics.RunningInceptionScore(4)
            for part in (slice(0, 12), slice(12, 20)):
                moments.update(features[part])
                score.update(logits[part], torch.arange(20)[part] // 5)
            assert score.scores().device.type == "cuda"
            distance = metrics.frechet_tensor(*moments.finalize(), *moments.finalize())
            assert distance.device.type == "cuda" and distance.shape == ()
            with pytest.raises(RuntimeError):
                network(torch.empty(20, 3, 32, 32, dtype=torch.uint8, device="cpu"))


# --- the metrics of generated images ---------------------------------------------------------------------------------


def test_compute_metrics(tmp_path):
    network = small_network()
    reference = made_reference(network)
    features, labels = reference.real_features[torch.randperm(200)], torch.arange(200) % 3
    logits = 10.0 * F.one_hot(labels, 3)
    values = inception_utils.compute_metrics(features, logits, labels, network, reference)
    keys = ["fd", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "density", "coverage", "accuracy"]
    assert list(values) == keys and all(type(value) is float for value in values.values())
    assert values["fd"] < 1e-6 * reference.sigma.trace() and values["accuracy"] == 1
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    collapsed = features[:1] + 0.01 * torch.randn(200, 128)
    values = inception_utils.compute_metrics(collapsed, logits, None, network, reference, splits=5, k=3)
    assert values["precision"] == 1 and values["recall"] < 0.05 and "accuracy" not in values
    line = inception_utils.summary(values)
    assert line.startswith("FD ") and "precision 1.000" in line and "\n" not in line

    with pytest.warns(UserWarning, match="too few"):
        few = inception_utils.compute_metrics(features[:50], logits[:50], labels[:50], network, reference)
    assert few["fd"] > 0

    about = {"num_fake": 200, "ema": True, "bn_mode": "running", "seed": 0}
    about |= {"truncation": None, "truncation_kind": "truncated_normal"}
    protocol = inception_utils.protocol(network, reference, **about)
    assert protocol["prdc_num"] == 200 and protocol["reference"] == "toy" and protocol["truncation_kind"] is None
    torch.save({"metrics": values, "protocol": protocol}, tmp_path / "m.pth")
    assert torch.load(tmp_path / "m.pth", weights_only=True)["protocol"] == json.loads(json.dumps(protocol))


def test_inception_is_reported_as_fid():
    network = small_network("inception")
    reference = made_reference(network)
    features = reference.real_features
    values = inception_utils.compute_metrics(
        features, torch.randn(200, 3), torch.zeros(200, dtype=torch.int64), network, reference
    )
    assert "fid" in values and "fd" not in values and "accuracy" not in values
