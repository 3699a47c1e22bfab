"""Feature networks, moments, scores, distances, and reference files."""

import argparse
import json
import urllib.error
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import classifier
import feature_networks
import inception_utils
import utils
from feature_networks import FeatureNetwork, InceptionV3, load_feature_network
from inception_utils import RunningMoments, frechet_distance, inception_score


def small_network(name="classifier", hash_="a" * 64, resolution=16, num_classes=3):
    torch.manual_seed(0)
    net = classifier.Classifier(resolution, num_classes)
    resize = feature_networks.NETWORK_RESIZE[name][0]
    return FeatureNetwork(net, name=name, resize=resize, weights_hash=hash_, resolution=resolution)


def made_reference(network, n=200, assumed=False):
    g = torch.Generator().manual_seed(1)
    features = torch.randn(n, network.feature_dim, generator=g)
    moments = RunningMoments()
    moments.update(features)
    protocol = inception_utils.make_protocol(network, dataset="toy", num_images=n, seed=0, k=5, splits=10)
    return inception_utils.Reference(*moments.finalize(), features, 2.5, 0.1, 0.9, protocol)


# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_equal_numpy(offset):
    features = np.random.default_rng(0).normal(offset, np.arange(1, 21), (1000, 20))
    moments, parts = RunningMoments(), [RunningMoments() for _ in range(3)]
    for i, batch in enumerate(torch.from_numpy(features).split(37)):
        moments.update(batch)
        parts[i % 3].update(batch)
    moments.update(torch.empty(0, 20))
    merged = RunningMoments()
    for part in (RunningMoments(), *parts):
        merged.merge(part)
    for result in (moments, merged):
        mu, sigma = result.finalize()
        expected = np.cov(features, rowvar=False)
        assert mu.dtype == sigma.dtype == torch.float64 and result.count == 1000
        assert np.abs(mu.numpy() - features.mean(0)).max() <= 1e-10 * np.abs(features.mean(0)).max()
        assert np.abs(sigma.numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_merging_leaves_the_other_alone():
    part, whole = RunningMoments(), RunningMoments()
    part.update(torch.randn(10, 3))
    before = part.mean.clone()
    whole.merge(part)
    whole.update(torch.randn(10, 3) + 5)
    assert torch.equal(part.mean, before)
    with pytest.raises(utils.UserError):
        RunningMoments().finalize()


# --- Frechet distance ------------------------------------------------------------------------------------------------


def covariance(n, d, seed, scale=1.0):
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.logspace(0, -3, d) * scale
    return x.mean(0), np.cov(x, rowvar=False)


def test_frechet_distance_of_commuting_gaussians():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    a, b = rng.uniform(0.1, 4, (2, 12))
    mu1, mu2 = rng.normal(size=(2, 12))
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, q @ np.diag(a) @ q.T, mu2, q @ np.diag(b) @ q.T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [300, 20, 2])
def test_frechet_distance_of_equal_statistics_is_zero(n):
    mu, sigma = covariance(n, 64, 1)
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) <= 1e-6 * np.trace(sigma)


def test_frechet_distance_is_symmetric_and_finite_for_rank_deficient_covariances():
    full, thin = covariance(500, 64, 2), covariance(10, 64, 3)
    there, back = frechet_distance(*thin, *full), frechet_distance(*full, *thin)
    assert there == pytest.approx(back, rel=1e-5)
    zero = (np.zeros(64), np.zeros((64, 64)))
    assert frechet_distance(*zero, *zero) == 0
    assert frechet_distance(*zero, *full) == pytest.approx((full[0] ** 2).sum() + np.trace(full[1]))
    with pytest.raises(utils.UserError, match="not finite"):
        frechet_distance(np.full(64, np.nan), full[1], *full)


@pytest.mark.parametrize("n", [2, 60, 64, 65, 70, 500])
def test_both_roots_give_the_same_frechet_distance(n):
    moments = [torch.as_tensor(moment) for moment in (*covariance(n, 64, 6), *covariance(500, 64, 7))]
    root = inception_utils._cholesky(moments[1])
    assert (root is not None) == (n > 64)  # n images determine n - 1 directions
    expected = inception_utils.frechet_tensor(*moments).item()
    assert frechet_distance(*moments) == pytest.approx(expected, abs=1e-9 * moments[1].trace().item())


def test_frechet_distance_equals_pytorch_fid():
    theirs = pytest.importorskip("pytorch_fid.fid_score")
    one, two = covariance(400, 48, 4), covariance(400, 48, 5, scale=1.5)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs.calculate_frechet_distance(*one, *two)
    except TypeError:  # scipy 1.18 no longer has the argument that pytorch-fid passes
        import scipy.linalg

        expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1])
        expected -= 2 * np.trace(scipy.linalg.sqrtm(one[1] @ two[1])).real
    assert frechet_distance(*one, *two) == pytest.approx(expected, rel=1e-7)


# --- Inception score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, splits", [(100, 10), (103, 10), (7, 7), (50, 1)])
def test_splits_are_cut_as_in_torch_fidelity(n, splits):
    expected = torch.empty(n, dtype=torch.int64)
    for i in range(splits):
        expected[i * n // splits : (i + 1) * n // splits] = i
    assert torch.equal(inception_utils.contiguous_splits(n, splits), expected)


def test_inception_score_equals_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 5 * torch.randn(5003, 30, generator=torch.Generator().manual_seed(0))
    expected = theirs.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert inception_score(logits, 10) == pytest.approx(tuple(expected.values()), rel=1e-10)


def test_inception_score_bounds():
    assert inception_score(torch.zeros(100, 7), 10) == pytest.approx((1, 0))
    certain = 1000.0 * F.one_hot(torch.arange(100) % 10).float()
    assert inception_score(certain, 10) == pytest.approx((10, 0))
    with pytest.raises(utils.UserError, match="10 splits"):
        inception_score(torch.zeros(9, 7), 10)


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
            moments, score = RunningMoments(), inception_utils.RunningInceptionScore(4)
            for part in (slice(0, 12), slice(12, 20)):
                moments.update(features[part])
                score.update(logits[part], torch.arange(20)[part] // 5)
            assert score.scores().device.type == "cuda"
            distance = inception_utils.frechet_tensor(*moments.finalize(), *moments.finalize())
            assert distance.device.type == "cuda" and distance.shape == ()
            with pytest.raises(RuntimeError):
                network(torch.empty(20, 3, 32, 32, dtype=torch.uint8, device="cpu"))


# --- reference statistics --------------------------------------------------------------------------------------------


def test_reference_round_trip(tmp_path):
    network = small_network()
    reference = made_reference(network)
    path = inception_utils.reference_path(tmp_path, "toy", network.name, network.resize)
    assert path.name == "toy_classifier_native_reference.npz"
    reference.save(path)
    loaded = inception_utils.load_reference(path, network)
    for key, value in vars(reference).items():
        same = getattr(loaded, key)
        assert torch.equal(same, value) and same.dtype == value.dtype if torch.is_tensor(value) else same == value
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reference_of_something_else_is_refused(tmp_path):
    network = small_network()
    path = inception_utils.reference_path(tmp_path, "toy", network.name, network.resize)
    with pytest.raises(utils.UserError, match=r"no reference statistics .*toy.* --dataset toy .*classifier"):
        inception_utils.load_reference(path, network)
    made_reference(network).save(path)
    with pytest.raises(utils.UserError, match="other classifier weights"):
        inception_utils.load_reference(path, small_network(hash_="b" * 64))
    with pytest.raises(utils.UserError, match="--feature_network classifier"):
        inception_utils.load_reference(path, small_network("inception"))
    other_rule = small_network()
    other_rule.resize = "tf1"
    with pytest.raises(utils.UserError, match="--resize native"):
        inception_utils.load_reference(path, other_rule)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="not a readable npz"):
        inception_utils.load_reference(path, network)
    np.savez(path, reference=json.dumps({}))
    with pytest.raises(utils.UserError, match="make it again"):
        inception_utils.load_reference(path, network)


# `strip("_hdf5")` would eat letters of these names
@pytest.mark.parametrize("dataset, family", [("faded5", "faded5"), ("ILSVRC64", "I64")])
def test_files_of_the_family_load(tmp_path, capsys, dataset, family):
    network = small_network("inception")
    made = made_reference(network)
    np.savez(tmp_path / f"{family}_inception_moments.npz", mu=made.mu.numpy(), sigma=made.sigma.numpy())
    path = inception_utils.reference_path(tmp_path, dataset, network.name, network.resize)
    reference = inception_utils.load_reference(path, network)
    printed = capsys.readouterr().out
    assert reference.real_features is None and reference.protocol["assumed"]
    assert printed.count("assumed") == 1 and "no precision" in printed
    np.savez(tmp_path / f"{family}_inception_activations.npz", real_features=made.real_features.numpy())
    for source in (path, tmp_path / f"{family}_inception_moments.npz"):
        reference = inception_utils.load_reference(source, network)
        assert torch.equal(reference.mu, made.mu) and torch.equal(reference.real_features, made.real_features)
        assert capsys.readouterr().out.count("assumed") == 1
    with pytest.raises(utils.UserError, match="does not hold"):
        inception_utils.load_reference(tmp_path / f"{family}_inception_activations.npz", network)
    with pytest.raises(utils.UserError, match="no reference statistics"):
        inception_utils.load_reference(tmp_path / f"{dataset}_classifier_native_reference.npz", small_network())


# --- the metrics of generated images ---------------------------------------------------------------------------------


def test_compute_metrics(tmp_path):
    network = small_network()
    reference = made_reference(network)
    features, labels = reference.real_features[torch.randperm(200)], torch.arange(200) % 3
    logits = 10.0 * F.one_hot(labels, 3)
    metrics = inception_utils.compute_metrics(features, logits, labels, network, reference)
    keys = ["fd", "is_mean", "is_std", "precision", "recall", "density", "coverage", "accuracy"]
    assert list(metrics) == keys and all(type(value) is float for value in metrics.values())
    assert metrics["fd"] < 1e-6 * reference.sigma.trace() and metrics["accuracy"] == 1
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1
    collapsed = features[:1] + 0.01 * torch.randn(200, 128)
    metrics = inception_utils.compute_metrics(collapsed, logits, None, network, reference, splits=5, k=3)
    assert metrics["precision"] == 1 and metrics["recall"] < 0.05 and "accuracy" not in metrics
    line = inception_utils.summary(metrics)
    assert line.startswith("FD ") and "precision 1.000" in line and "\n" not in line

    with pytest.warns(UserWarning, match="too few"):
        few = inception_utils.compute_metrics(features[:50], logits[:50], labels[:50], network, reference)
    assert few["fd"] > 0

    about = {"num_fake": 200, "ema": True, "bn_mode": "running", "seed": 0}
    about |= {"truncation": None, "truncation_kind": "truncated_normal"}
    protocol = inception_utils.protocol(network, reference, **about)
    assert protocol["prdc_num"] == 200 and protocol["reference"] == "toy" and protocol["truncation_kind"] is None
    torch.save({"metrics": metrics, "protocol": protocol}, tmp_path / "m.pth")
    assert torch.load(tmp_path / "m.pth", weights_only=True)["protocol"] == json.loads(json.dumps(protocol))


def test_inception_is_reported_as_fid():
    network = small_network("inception")
    reference = made_reference(network)
    features = reference.real_features
    metrics = inception_utils.compute_metrics(
        features, torch.randn(200, 3), torch.zeros(200, dtype=torch.int64), network, reference
    )
    assert "fid" in metrics and "fd" not in metrics and "accuracy" not in metrics
