"""Feature networks, and the metrics of generated images."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_references import made_reference, small_network
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import inception_utils
import utils
from metrics import classifier, functional, networks
from metrics.functional import RunningMoments
from metrics.networks import FeatureNetwork, InceptionV3, load_feature_network
from metrics.protocol import MetricOptions, Protocol, compare_protocols
from sampling.latents import Truncation

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


def test_names_and_resize_rules_are_checked(tmp_path):
    with pytest.raises(utils.UserError, match="--feature_network vgg"):
        load_feature_network("vgg", tmp_path, "toy")
    with pytest.raises(utils.UserError, match="--resize native"):
        load_feature_network("inception", tmp_path, "toy", resize="native")
    with pytest.raises(utils.UserError, match=r"calculate_inception_moments\.py --dataset toy"):
        load_feature_network("classifier", tmp_path, "toy")
    parser = argparse.ArgumentParser()
    MetricOptions.add_to(parser)
    args = MetricOptions.of(parser.parse_args(["--feature_network", "inceptionv3"]))
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
            resize = networks.NETWORK_RESIZE[name][0]
            network = FeatureNetwork(net, name=name, resize=resize, weights_hash="")
            features, logits = network(images)
            assert features.device.type == "cuda" and features.shape == (20, network.feature_dim)
            moments, score = RunningMoments(), functional.RunningInceptionScore(4)
            for part in (slice(0, 12), slice(12, 20)):
                moments.update(features[part])
                score.update(logits[part], torch.arange(20)[part] // 5)
            assert score.scores().device.type == "cuda"
            distance = functional.frechet_tensor(*moments.finalize(), *moments.finalize())
            assert distance.device.type == "cuda" and distance.shape == ()
            with pytest.raises(RuntimeError):
                network(torch.empty(20, 3, 32, 32, dtype=torch.uint8, device="cpu"))


# --- the metrics of generated images ---------------------------------------------------------------------------------


def protocol_of(network, reference, options=None, **about):
    about = {"fake_num": 200, "ema": True, "bn_mode": "running", "truncation": None, "seed": 0} | about
    return Protocol.of(network, reference, options or MetricOptions(), **about).to_dict()


def test_compute_metrics(tmp_path):
    network = small_network()
    reference = made_reference(network)
    features, labels = reference.real_features[torch.randperm(200)], torch.arange(200) % 3
    logits = 10.0 * F.one_hot(labels, 3)
    values = inception_utils.compute_metrics(features, logits, labels, network, reference, MetricOptions())
    keys = ["fd", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "density", "coverage", "accuracy"]
    assert list(values) == keys and all(type(value) is float for value in values.values())
    assert values["fd"] < 1e-6 * reference.sigma.trace() and values["accuracy"] == 1
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    collapsed = features[:1] + 0.01 * torch.randn(200, 128)
    mean, std = functional.kernel_distance(reference.real_features, features, 7, 20, seed=4)
    options = MetricOptions(kid_subsets=7, kid_subset_size=20)
    values = inception_utils.compute_metrics(features, logits, labels, network, reference, options, seed=4)
    assert (values["kid_mean"], values["kid_std"]) == (mean, std)
    options = MetricOptions(is_splits=5, prdc_k=3)
    values = inception_utils.compute_metrics(collapsed, logits, None, network, reference, options)
    assert values["precision"] == 1 and values["recall"] < 0.05 and "accuracy" not in values
    line = inception_utils.summary(values)
    assert line.startswith("FD ") and "precision 1.000" in line and "\n" not in line

    with pytest.warns(UserWarning, match="too few"):
        fifty = (features[:50], logits[:50], labels[:50])
        few = inception_utils.compute_metrics(*fifty, network, reference, MetricOptions())
    assert few["fd"] > 0

    protocol = protocol_of(network, reference)
    assert protocol["prdc_num"] == 200 and protocol["reference"] == "toy" and protocol["truncation_kind"] is None
    torch.save({"metrics": values, "protocol": protocol}, tmp_path / "m.pth")
    assert torch.load(tmp_path / "m.pth", weights_only=True)["protocol"] == json.loads(json.dumps(protocol))


def test_kid_of_few_images_has_a_spread():
    """Subsets that are the whole set are all the same one: 100 equal values, whose deviation of 0 says nothing."""
    network = small_network()
    reference = made_reference(network)
    features, logits = torch.randn(200, network.feature_dim), torch.randn(200, 3)
    values = inception_utils.compute_metrics(features, logits, None, network, reference, MetricOptions())
    whole = functional.polynomial_mmd(reference.real_features, features).item()
    assert values["kid_std"] > 0 and values["kid_mean"] == pytest.approx(whole, abs=3 * values["kid_std"])
    assert [functional.kid_subset_size(wanted, 200) for wanted in (199, 200, 1000)] == [199, 100, 100]
    assert [functional.kid_subset_size(1000, smallest) for smallest in (0, 2, 3)] == [0, 2, 2]


def test_inception_is_reported_as_fid():
    network = small_network("inception")
    reference = made_reference(network)
    features = reference.real_features
    values = inception_utils.compute_metrics(
        features, torch.randn(200, 3), torch.zeros(200, dtype=torch.int64), network, reference, MetricOptions()
    )
    assert "fid" in values and "fd" not in values and "accuracy" not in values


def test_flags_reach_metrics_and_protocol():
    parser = argparse.ArgumentParser()
    MetricOptions.add_to(parser)
    network = small_network()
    reference = made_reference(network)
    protocol = protocol_of(network, reference, MetricOptions.of(parser.parse_args([])))
    assert (protocol["splits"], protocol["k"], protocol["is_outputs"], protocol["kid_subsets"]) == (10, 5, 3, 100)
    assert (protocol["kid_subset_size"], protocol["kid_real_num"]) == (100, 200)  # no 1000 images as asked for: half
    flags = "--is_splits 4 --prdc_k 3 --kid_subsets 6 --kid_subset_size 30 --is_outputs 1000".split()
    options = MetricOptions.of(parser.parse_args(flags))
    features, logits = reference.real_features, torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    values = inception_utils.compute_metrics(features, logits, None, network, reference, options)
    assert (values["is_mean"], values["is_std"]) == functional.inception_score(logits, 4)
    assert values["kid_mean"] == functional.kernel_distance(features, features, 6, 30)[0]
    protocol = protocol_of(network, reference, options)
    assert [protocol[key] for key in ("splits", "k", "kid_subsets", "kid_subset_size")] == [4, 3, 6, 30]


def test_the_outputs_that_count():
    network, logits = small_network(), torch.randn(50, 1008, generator=torch.Generator().manual_seed(0))
    network.num_classes = 1008
    reference = made_reference(network)
    features = reference.real_features[:50]

    def score(is_outputs):
        with pytest.warns(UserWarning, match="too few"):
            options = MetricOptions(is_outputs=is_outputs, kid_subsets=1)
            values = inception_utils.compute_metrics(features, logits, None, network, reference, options)
        return values["is_mean"], protocol_of(network, reference, options)["is_outputs"]

    assert score(None) == score("all") == (functional.inception_score(logits)[0], 1008)
    assert score("1000") == (functional.inception_score(logits[:, 1:1001])[0], 1000)
    inception_utils.check_options(MetricOptions(is_outputs="1000"), network)
    with pytest.raises(utils.UserError, match="the classifier has 3 classes of its own"):
        inception_utils.check_options(MetricOptions(is_outputs="1000"), small_network())


def test_classes_are_known_where_they_are_the_data_sets():
    imagenet, own = small_network("inception", num_classes=1000), small_network()
    reference = made_reference(own)
    assert inception_utils.knows_classes(own, reference) and not inception_utils.knows_classes(imagenet, reference)
    assert inception_utils.metric_keys(own, reference, 3)[-1] == "accuracy"
    assert "accuracy" not in inception_utils.metric_keys(own, reference, 4)
    reference = replace(reference, protocol=replace(reference.protocol, imagenet_classes=True))
    assert inception_utils.knows_classes(imagenet, reference)
    assert not inception_utils.knows_classes(small_network("inception_tf", num_classes=1008), reference)
    labels = torch.arange(200) * 5
    logits, options = F.one_hot(labels, 1000).float(), MetricOptions(kid_subsets=1)
    values = inception_utils.compute_metrics(reference.real_features, logits, labels, imagenet, reference, options)
    assert values["accuracy"] == 1


def test_protocols_that_cannot_be_compared():
    network = small_network()
    reference = made_reference(network)
    one = protocol_of(network, reference)
    like = protocol_of(network, reference, ema=False, truncation=Truncation(0.5, "clamped_normal"), seed=3)
    assert compare_protocols(one, like) == [] and like["truncation_kind"] == "clamped_normal"
    others = {"fake_num": 50, "bn_mode": "batch", "bn_batch_size": 64}
    other = protocol_of(small_network(hash_="b" * 64), reference, MetricOptions(is_splits=3), **others)
    lines = compare_protocols(one, other)
    changed = ["weights_hash", "fake_num", "prdc_num", "kid_subset_size", "splits", "bn_mode", "bn_batch_size"]
    assert [line.split(":")[0] for line in lines] == changed
    assert "fake_num: 200 against 50" in lines and "bn_batch_size: not recorded against 64" in lines
    subset = replace(reference, protocol=replace(reference.protocol, reference_num=100, num_images=100, seed=7))
    lines = compare_protocols(one, protocol_of(network, subset))
    assert [line.split(":")[0] for line in lines] == ["reference_split", "reference_num", "reference_seed"]


@pytest.mark.slow
@torch.no_grad()
def test_scores_equal_torch_fidelity_from_the_pixels_on(inception_tf_weights):
    """One random weight file, the same images, torch-fidelity's shuffle and draws; FID in 256 of the 2048 features."""
    extractors = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    theirs = extractors.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_tf_weights)
    )
    ours = load_feature_network("inception_tf", "nowhere", "toy", inception_tf_weights)
    g = torch.Generator().manual_seed(0)
    fake = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=g)
    real = torch.randint(64, 192, (5, 3, 32, 32), dtype=torch.uint8, generator=g)
    (fake_features, fake_logits), (real_features, _) = ours(fake), ours(real)
    (their_fake, their_logits), (their_real, _) = theirs(fake), theirs(real)

    statistics = [metric_fid.fid_features_to_statistics(features[:, ::8]) for features in (their_fake, their_real)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    distance = functional.frechet_of_features(fake_features[:, ::8], real_features[:, ::8])
    assert distance == pytest.approx(expected, rel=1e-3)
    moments = (functional.moments_of(features[:, ::8]).finalize() for features in (fake_features, real_features))
    assert functional.frechet_distance(*(m for pair in moments for m in pair)) == pytest.approx(expected, rel=1e-3)

    expected = metric_kid.kid_features_to_metric(
        their_fake, their_real, kid_subsets=5, kid_subset_size=4, rng_seed=2020, verbose=False
    )
    random = np.random.RandomState(2020)
    draws = [tuple(random.choice(5, 4, replace=False) for _ in range(2)) for _ in range(5)]
    distance = functional.kernel_distance(fake_features, real_features, draws=draws)
    assert distance == pytest.approx(tuple(expected.values()), rel=1e-3)

    expected = metric_isc.isc_features_to_metric(their_logits, splits=2, shuffle=True, rng_seed=2020)
    score = functional.inception_score(fake_logits[np.random.RandomState(2020).permutation(5)], 2)
    assert score == pytest.approx(tuple(expected.values()), rel=1e-3)
