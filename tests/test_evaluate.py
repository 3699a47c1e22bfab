"""evaluate.py: metrics that depend on neither batch size, ranks nor mode, and the script with a real classifier."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sample import CLASSES, RESOLUTION, save_checkpoint, small_generator

import batch_norm_modes
import classifier
import evaluate
import feature_networks
import reference_statistics
import sample
import utils
from metrics import RunningMoments

NUM_IMAGES = 150
METRICS = {"fd", "is_mean", "is_std", "precision", "recall", "density", "coverage", "accuracy", "protocol"}


@pytest.fixture(scope="module")
def G():
    return small_generator()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, G):
    """A folder with a classifier and its reference statistics; the "real" images are G's own of another seed."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(1)
    net = classifier.Classifier(RESOLUTION, CLASSES).eval()
    path = classifier.classifier_path(folder, "small")
    classifier.save_classifier(net, path, dataset_name="small", accuracy=0.5, seed=0, epochs=0)
    network = feature_networks.load_feature_network("classifier", folder, "small")
    y = sample.balanced_labels(NUM_IMAGES, range(CLASSES))
    features, _ = network(torch.cat(list(sample.generate(G, y, seed=9, batch_size=50))))
    moments = RunningMoments()
    moments.update(features)
    protocol = reference_statistics.make_protocol(
        network, dataset="small", num_images=NUM_IMAGES, seed=9, k=5, splits=3
    )
    reference = reference_statistics.Reference(*moments.finalize(), features, 1.0, 0.0, 1.0, protocol)
    reference.save(reference_statistics.reference_path(folder, "small", "classifier", "native"))
    return folder


@pytest.fixture(scope="module")
def measure(data_root):
    network = feature_networks.load_feature_network("classifier", data_root, "small")
    path = reference_statistics.reference_path(data_root, "small", "classifier", "native")
    return network, reference_statistics.load_reference(path, network)


@pytest.fixture
def run(tmp_path, G, data_root):
    flags = {
        "dataset": "small_hdf5", "data_root": str(data_root), "feature_network": "classifier", "resize": None,
        "inception_weights": None, "num_inception_images": NUM_IMAGES, "metric_batch_size": 40, "seed": 9,
        "ema": False, "device": "nowhere", "G_ch": 4,
    }  # fmt: skip
    save_checkpoint(tmp_path / "run" / "weights" / "best_00000007.pth", G, args=flags)
    return tmp_path / "run"


def close(metrics, others):
    assert metrics.keys() == others.keys() and metrics["protocol"] == others["protocol"]
    for name in METRICS - {"protocol"}:
        assert type(metrics[name]) is float
        assert metrics[name] == pytest.approx(others[name], rel=1e-2, abs=1e-2), name


def test_metrics_do_not_depend_on_batch_size_and_are_plain(G, measure):
    metrics = evaluate.evaluate_generator(G, *measure, NUM_IMAGES, 64, 0, "cpu", ema=True)
    assert metrics.keys() == METRICS
    assert json.loads(json.dumps(metrics)) == metrics
    close(metrics, evaluate.evaluate_generator(G, *measure, NUM_IMAGES, 7, 0, "cpu", ema=True))


def test_the_seed_of_the_reference_gives_the_reference(G, measure):
    metrics = evaluate.evaluate_generator(G, *measure, NUM_IMAGES, 50, 9, "cpu", ema=True)
    assert metrics["fd"] == pytest.approx(0, abs=1e-3) and metrics["coverage"] > 0.99


def test_the_protocol_says_how_images_were_made(G, measure):
    protocol = evaluate.evaluate_generator(G, *measure, 130, 60, 3, "cpu", sample.Truncation(0.5), ema=False)[
        "protocol"
    ]
    expected = {"fake_num": 130, "seed": 3, "truncation": 0.5, "truncation_kind": "truncated_normal", "ema": False}
    assert expected.items() <= protocol.items() and protocol["bn_mode"] == "running"


def test_the_module_and_the_random_state_are_left_alone(measure):
    G = small_generator().train()
    G.stages[0][0].bn1.eval()
    modes = [part.training for part in G.modules()]
    state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    evaluate.evaluate_generator(G, *measure, 130, 50, 0, "cpu", ema=True)
    assert [part.training for part in G.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in G.state_dict().items())
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_the_mode_comes_back_after_an_error(G):
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.ReLU().eval())
    with pytest.raises(RuntimeError), batch_norm_modes.evaluating(module):
        assert not module[0].training
        raise RuntimeError
    assert [part.training for part in module.modules()] == [True, True, False]


def test_no_accuracy_for_a_generator_of_other_classes(measure):
    metrics = evaluate.evaluate_generator(small_generator(n_classes=1), *measure, 130, 50, 0, "cpu", ema=True)
    assert metrics.keys() == METRICS - {"accuracy"}


@pytest.mark.parametrize("num_images", [5, 6, 1])
def test_parts_of_ranks_join_to_the_whole(G, measure, num_images):
    network, _ = measure
    y = sample.balanced_labels(num_images, range(CLASSES))
    whole = evaluate._features_of_part(G, network, y, 2, 0, "cpu", None, 0, 1)
    parts = [evaluate._features_of_part(G, network, y, 2, 0, "cpu", None, rank, 3) for rank in range(3)]
    for tensor, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert len({piece.shape for piece in pieces}) == 1  # what gathering needs
        assert torch.allclose(torch.cat(pieces)[:num_images], tensor, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_script_takes_the_flags_of_the_run(run, capsys):
    evaluate.main([str(run), "--json", "--device", "cpu"])
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == METRICS | {"checkpoint", "step"} and printed["step"] == 7
    assert printed["protocol"]["ema"] and printed["protocol"]["seed"] == 9 and printed["coverage"] > 0.99

    evaluate.main([str(run), "--seed", "1", "--num_inception_images", "140", "--truncation", "2", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert "best_00000007.pth" in lines[0]
    assert len({line.rindex(".") for line in lines[1 : len(METRICS)]}) == 1  # aligned at the point
    shown = dict(line.split(maxsplit=1) for line in lines[1:] if line)
    assert shown["fake_num"] == "140" and shown["seed"] == "1" and shown["truncation"] == "2.0"


def test_ranks_give_the_metrics_of_one_process(run, capsys):
    flags = [str(run), "--json", "--device", "cpu", "--num_inception_images", "149"]
    evaluate.main(flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "evaluate.py"]
    folder = Path(evaluate.__file__).parent
    ranks = subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True)
    assert ranks.returncode == 0, ranks.stderr
    close(json.loads(capsys.readouterr().out), json.loads(ranks.stdout))


@pytest.mark.filterwarnings("ignore:fd of 2 images")
def test_bad_input_is_one_line(run, tmp_path, G, capsys):
    nameless = save_checkpoint(tmp_path / "nameless.pth", G, args={})
    for arguments, words in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([nameless], "--dataset"),
        ([run, "--dataset", "other"], "calculate_inception_moments.py --dataset other"),
        ([run, "--data_root", tmp_path], "calculate_inception_moments.py"),
        ([run, "--num_inception_images", "2"], "2"),
    ):
        with pytest.raises(utils.UserError, match=words) as caught:
            evaluate.main([*map(str, arguments), "--device", "cpu"])
        assert "\n" not in str(caught.value)
    for flags in ("--truncation -1", "--num_inception_images 0", "--dataste x"):
        with pytest.raises(SystemExit) as caught:
            evaluate.main([str(run), *flags.split()])
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
