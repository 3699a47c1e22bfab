"""A small data set `toy` of striped images, its classifier and its statistics, for the tests.

conftest.py makes the fixture known to all tests.
"""

import h5py
import numpy as np
import pytest

import calculate_inception_moments
import utils
from metrics.networks import load_feature_network
from metrics.protocol import MetricOptions
from metrics.reference import load_reference, reference_path


def write_dataset(path, per_class=40, num_classes=3, resolution=16):
    """Stripes whose period is the class, in random phase and colour; the file is sorted by class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    phase = rng.uniform(0, 1, (len(labels), 1))
    wave = np.sin(2 * np.pi * (np.arange(resolution) / resolution * (1 + 2 * labels[:, None]) + phase))  # (N,R)
    colour = rng.uniform(60, 127, (len(labels), 3, 1, 1))
    noise = rng.normal(0, 8, (len(labels), 3, resolution, resolution))
    images = (127.5 + colour * wave[:, None, None, :] + noise).clip(0, 255).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["imgs"], file["labels"] = images, labels.astype(np.int64)
    return images, labels


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with the data set `toy`, its classifier and its statistics."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "toy.hdf5")
    run(root)
    return root


def run(root, *flags, dataset="toy"):
    command = ["--dataset", dataset, "--data_root", str(root), "--feature_network", "classifier", "--device", "cpu"]
    calculate_inception_moments.main([*command, "--classifier_epochs", "6", *flags])


def metric_options(*flags):
    parser = utils.ArgumentParser()
    MetricOptions.add_to(parser)
    return MetricOptions.of(parser.parse_args(["--feature_network", "classifier", *flags]))


def load(root):
    network = load_feature_network("classifier", root, "toy")
    path = reference_path(root, "toy", network.name, network.resize)
    return network, load_reference(path, network), path
