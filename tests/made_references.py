"""A small feature network and reference statistics of it, for the tests."""

import torch

from metrics import classifier, networks
from metrics.functional import RunningMoments
from metrics.networks import FeatureNetwork
from metrics.reference import Reference, ReferenceProtocol


def small_network(name="classifier", hash_="a" * 64, resolution=16, num_classes=3):
    torch.manual_seed(0)
    net = classifier.Classifier(resolution, num_classes)
    resize = networks.NETWORK_RESIZE[name][0]
    return FeatureNetwork(net, name=name, resize=resize, weights_hash=hash_, resolution=resolution)


def made_reference(network, n=200, assumed=False):
    g = torch.Generator().manual_seed(1)
    features = torch.randn(n, network.feature_dim, generator=g)
    moments = RunningMoments()
    moments.update(features)
    protocol = ReferenceProtocol.of(network, dataset="toy", num_images=n, seed=0, k=5, splits=10)
    return Reference(*moments.finalize(), features, 2.5, 0.1, 0.9, protocol)
