"""A generator, a data set whose images are its own of another seed, its statistics, a run and samples, for the tests.

conftest.py makes the fixtures known to all tests.
"""

import json

import pytest
import torch
from small_models import CLASSES, NAMES, RESOLUTION, save_checkpoint, small_generator

import evaluate
import sample
from image_datasets import writing
from inception_utils import Measure
from metrics import classifier, functional, networks
from metrics.protocol import MetricOptions
from metrics.reference import Reference, ReferenceProtocol, load_reference, reference_path
from sampling.batch_norm import BatchNormMode
from sampling.generate import generate
from sampling.latents import balanced_labels
from torch_utils import distributed

NUM_IMAGES = 150
METRICS = {
    "fd", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "density", "coverage", "accuracy",
    "protocol",
}  # fmt: skip
ONE = distributed.Ranks(0, 1, torch.device("cpu"))
MODES = [BatchNormMode(), BatchNormMode("batch", 32), BatchNormMode("standing", 32, 2)]


def fast(batch_size):
    return MetricOptions(metric_batch_size=batch_size, kid_subsets=5)


@pytest.fixture(scope="module")
def G():
    return small_generator()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, G):
    """A data set, its classifier and reference statistics; the "real" images are G's own of another seed."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(1)
    net = classifier.Classifier(RESOLUTION, CLASSES).eval()
    path = classifier.classifier_path(folder, "small")
    classifier.save_classifier(net, path, dataset_name="small", accuracy=0.9, seed=0, epochs=0)
    network = networks.load_feature_network("classifier", folder, "small")
    y = balanced_labels(NUM_IMAGES, range(CLASSES))
    images = torch.cat(list(generate(G, y, seed=9, batch_size=50)))
    writing.write_hdf5(folder / "small.hdf5", images.numpy(), y.numpy(), NAMES, "made", "none")
    features, _ = network(images)
    moments = functional.RunningMoments()
    moments.update(features)
    protocol = ReferenceProtocol.of(network, dataset="small", num_images=NUM_IMAGES, seed=9, k=5, splits=3)
    classes = ([NUM_IMAGES // CLASSES] * CLASSES, NAMES)
    reference = Reference(*moments.finalize(), features, 1.0, 0.0, 1.0, protocol, *classes)
    reference.save(reference_path(folder, "small", "classifier", "native"))
    return folder


@pytest.fixture(scope="module")
def measure(data_root):
    """The Measure of a batch size."""
    network = networks.load_feature_network("classifier", data_root, "small")
    path = reference_path(data_root, "small", "classifier", "native")
    reference = load_reference(path, network)
    return lambda batch_size=64, **options: Measure(network, reference, fast(batch_size), ONE, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory, G, data_root):
    flags = {
        "dataset": "small_hdf5", "data_root": str(data_root), "feature_network": "classifier", "resize": None,
        "inception_weights": None, "num_inception_images": NUM_IMAGES, "metric_batch_size": 40, "seed": 9,
        "ema": False, "device": "nowhere", "G_ch": 4, "kid_subsets": 5,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_checkpoint(folder / "weights" / "best_00000007.pth", G, args=flags)
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory, run):
    """The run's images of seed 3 as files: images/ by class, samples.npz."""
    out = tmp_path_factory.mktemp("samples")
    flags = f"--num_samples {NUM_IMAGES} --format both --no-sheets --seed 3 --device cpu"
    sample.main([str(run), "--out", str(out), *flags.split()])
    return out


@pytest.fixture
def files(data_root):
    """Flags that images of files need."""
    flags = f"--dataset small --data_root {data_root} --feature_network classifier --kid_subsets 5 --device cpu"
    return flags.split()


def close(values, others, without=()):
    assert values.keys() == others.keys() and values["protocol"] == others["protocol"]
    for name in METRICS - {"protocol", *without}:
        assert type(values[name]) is float
        assert values[name] == pytest.approx(others[name], rel=1e-4, abs=1e-5), name


def evaluated(capsys, *arguments):
    """What evaluate.py --json prints on stdout."""
    capsys.readouterr()
    evaluate.main([*map(str, arguments), "--json", "--device", "cpu"])
    return json.loads(capsys.readouterr().out)
