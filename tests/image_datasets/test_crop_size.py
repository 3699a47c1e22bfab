"""--crop_size through the scripts: statistics of centre crops, training on random ones, evaluation, bad input."""

import json

import numpy as np
import pytest
import torch

import calculate_inception_moments
import evaluate
import train
import utils
from image_datasets import writing
from metrics import networks
from metrics.reference import load_reference, reference_path
from training.plan import make_plan

MODEL = "--G_ch 8 --D_ch 8 --G_ch_mult 1-1-1 --D_ch_mult 1-1-1 --G_attn 0 --D_attn 0 --dim_z 8".split()
METRICS = "--feature_network classifier --num_inception_images 140 --test_every 2 --which_best FD".split()
FLAGS = [*MODEL, *METRICS, *"--batch_size 8 --num_D_steps 1 --sample_every 0 --device cpu".split()]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """150 images of 20x20 in 3 classes, and the classifier and statistics of their centres of 16x16."""
    root = tmp_path_factory.mktemp("data")
    labels = np.arange(150) % 3
    noise = np.random.default_rng(0).integers(0, 60, (150, 3, 20, 20))
    images = (noise + 80 * labels[:, None, None, None]).astype(np.uint8)
    writing.write_hdf5(root / "made.hdf5", images, labels, ["a", "b", "c"], "made", "none")
    flags = ["--dataset", "made", "--data_root", str(root), "--crop_size", "16", "--device", "cpu"]
    calculate_inception_moments.main([*flags, "--feature_network", "classifier", "--classifier_epochs", "1"])
    return root


def cropped(data_root, runs, *flags):
    where = ["--dataset", "made", "--data_root", str(data_root), "--runs_root", str(runs), "--experiment_name", "run"]
    return [*where, "--augment", "--crop_size", "16", *FLAGS, *flags]


def test_statistics_are_those_of_the_centres(data_root):
    network = networks.load_feature_network("classifier", data_root, "made_crop16")
    path = reference_path(data_root, "made_crop16", "classifier", network.resize)
    reference = load_reference(path, network)
    assert reference.protocol.dataset == "made_crop16" and reference.protocol.num_images == 150
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 60, (150, 3, 20, 20)))
    images += 80 * (torch.arange(150) % 3)[:, None, None, None]
    features, _ = network(images[:, :, 2:18, 2:18].to(torch.uint8))
    assert torch.allclose(features.double().mean(0), reference.mu, atol=1e-4)


@pytest.mark.slow
def test_training_on_crops_is_evaluated_under_their_name(data_root, tmp_path, capsys):
    train.main(cropped(data_root, tmp_path, "--num_iters", "2"))
    assert "150 images 20x20 in random crops of 16x16" in capsys.readouterr().out
    path = tmp_path / "run" / "weights" / "ckpt_00000002.pth"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["model_config"]["resolution"] == 16
    assert checkpoint["metrics"]["protocol"]["reference"] == "made_crop16"
    evaluate.main([str(path), "--json", "--device", "cpu"])
    assert json.loads(capsys.readouterr().out)["fd"] == pytest.approx(checkpoint["metrics"]["fd"], rel=1e-5)
    train.main(cropped(data_root, tmp_path, "--num_iters", "4", "--dry_run"))
    out = capsys.readouterr().out
    assert "16x16 images, 3 classes" in out and "nothing is missing" in out


def test_statistics_of_crops_that_are_missing_are_named(data_root, tmp_path):
    flags = cropped(data_root, tmp_path, "--crop_size", "8", "--G_ch_mult", "1-1", "--D_ch_mult", "1-1")
    with pytest.raises(utils.UserError, match=r"--dataset made --crop_size 8 --data_root"):
        train.main(flags)
    command = networks.statistics_command("a_crop8", tmp_path, "inception")
    assert "--dataset a --crop_size 8" in command
    (tmp_path / "a_crop8.hdf5").touch()  # the name of a file after all
    assert "--dataset a_crop8 --data" in networks.statistics_command("a_crop8", tmp_path, "inception")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--augment"], "has images of 20x20; only 32x32"),
        (["--augment", "--crop_size", "20"], "--crop_size 20: the images of .* are 20x20"),
        (["--augment", "--crop_size", "32"], "--crop_size 32: the images of .* are 20x20"),
    ],
)
def test_what_cannot_be_cropped_is_refused_in_one_line(data_root, flags, message):
    options, _ = train.parse_args(["--dataset", "made", "--data_root", str(data_root), *FLAGS, *flags])
    with pytest.raises(utils.UserError, match=message) as error:
        make_plan(options, None)
    assert "\n" not in str(error.value)


def test_crop_size_needs_augment():
    with pytest.raises(utils.UserError, match="--crop_size goes with --augment"):
        train.parse_args(["--dataset", "made", "--crop_size", "16"])
