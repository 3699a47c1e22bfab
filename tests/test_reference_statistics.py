"""Files of reference statistics: ours, the family's, and those of something else."""

import json

import numpy as np
import pytest
import torch

import classifier
import feature_networks
import reference_statistics
import utils
from feature_networks import FeatureNetwork
from metrics import RunningMoments


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
    protocol = reference_statistics.make_protocol(network, dataset="toy", num_images=n, seed=0, k=5, splits=10)
    return reference_statistics.Reference(*moments.finalize(), features, 2.5, 0.1, 0.9, protocol)


def test_reference_round_trip(tmp_path):
    network = small_network()
    reference = made_reference(network)
    path = reference_statistics.reference_path(tmp_path, "toy", network.name, network.resize)
    assert path.name == "toy_classifier_native_reference.npz"
    reference.save(path)
    loaded = reference_statistics.load_reference(path, network)
    for key, value in vars(reference).items():
        same = getattr(loaded, key)
        assert torch.equal(same, value) and same.dtype == value.dtype if torch.is_tensor(value) else same == value
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reference_of_something_else_is_refused(tmp_path):
    network = small_network()
    path = reference_statistics.reference_path(tmp_path, "toy", network.name, network.resize)
    with pytest.raises(utils.UserError, match=r"no reference statistics .*toy.* --dataset toy .*classifier"):
        reference_statistics.load_reference(path, network)
    made_reference(network).save(path)
    with pytest.raises(utils.UserError, match="other classifier weights"):
        reference_statistics.load_reference(path, small_network(hash_="b" * 64))
    with pytest.raises(utils.UserError, match="--feature_network classifier"):
        reference_statistics.load_reference(path, small_network("inception"))
    other_rule = small_network()
    other_rule.resize = "tf1"
    with pytest.raises(utils.UserError, match="--resize native"):
        reference_statistics.load_reference(path, other_rule)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="not a readable npz"):
        reference_statistics.load_reference(path, network)
    np.savez(path, reference=json.dumps({}))
    with pytest.raises(utils.UserError, match="make it again"):
        reference_statistics.load_reference(path, network)


# `strip("_hdf5")` would eat letters of these names
@pytest.mark.parametrize("dataset, family", [("faded5", "faded5"), ("ILSVRC64", "I64")])
def test_files_of_the_family_load(tmp_path, capsys, dataset, family):
    network = small_network("inception")
    made = made_reference(network)
    np.savez(tmp_path / f"{family}_inception_moments.npz", mu=made.mu.numpy(), sigma=made.sigma.numpy())
    path = reference_statistics.reference_path(tmp_path, dataset, network.name, network.resize)
    reference = reference_statistics.load_reference(path, network)
    printed = capsys.readouterr().out
    assert reference.real_features is None and reference.protocol["assumed"]
    assert printed.count("assumed") == 1 and "no KID" in printed
    np.savez(tmp_path / f"{family}_inception_activations.npz", real_features=made.real_features.numpy())
    for source in (path, tmp_path / f"{family}_inception_moments.npz"):
        reference = reference_statistics.load_reference(source, network)
        assert torch.equal(reference.mu, made.mu) and torch.equal(reference.real_features, made.real_features)
        assert capsys.readouterr().out.count("assumed") == 1
    with pytest.raises(utils.UserError, match="does not hold"):
        reference_statistics.load_reference(tmp_path / f"{family}_inception_activations.npz", network)
    with pytest.raises(utils.UserError, match="no reference statistics"):
        reference_statistics.load_reference(tmp_path / f"{dataset}_classifier_native_reference.npz", small_network())
