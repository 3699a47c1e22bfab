"""Fakes of unbalanced classes in statistics, evaluations, samples and training: real data scores as real data."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from evaluation_fixtures import NUM_IMAGES, evaluated
from small_models import CLASSES, NAMES, save_checkpoint

import calculate_inception_moments
import evaluate
import sample
import train
import utils
from image_datasets import writing
from metrics.reference import read_reference, reference_path
from sampling.generate import generate
from sampling.latents import balanced_labels
from torch_utils import checkpoints
from training import intervals

SKEWED = (110, 25, 15)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory, data_root, G):
    """A data set like `small` whose classes are unbalanced, and its statistics; the images are G's of seed 9."""
    folder = tmp_path_factory.mktemp("skewed")
    images = torch.cat(list(generate(G, y := balanced_labels(NUM_IMAGES, range(CLASSES), SKEWED), 9, 50)))
    writing.write_hdf5(folder / "skewed.hdf5", images.numpy(), y.numpy(), NAMES, "made", "none")
    shutil.copy(data_root / "small_classifier.pth", folder / "skewed_classifier.pth")
    flags = ["--dataset", "skewed", "--data_root", str(folder), "--feature_network", "classifier", "--device", "cpu"]
    calculate_inception_moments.main(flags)
    return ["--dataset", "skewed", "--data_root", str(folder)]


def test_fakes_are_drawn_as_the_data_and_real_images_score_as_real(run, skewed, capsys):
    default, uniform = (evaluated(capsys, run, *skewed, *flags) for flags in ([], ["--class_sampling", "uniform"]))
    assert default["protocol"]["class_sampling"] == "data" and uniform["protocol"]["class_sampling"] == "uniform"
    assert default["fd"] < 1e-6 and default["coverage"] > 0.99  # G's own images of seed 9
    assert uniform["fd"] > 100 * default["fd"] and uniform["fd"] > 1e-4
    for mode in ("batch", "standing"):
        flags = ["--bn_mode", mode, "--bn_batch_size", 50]
        values = [evaluated(capsys, run, *skewed, *flags, "--class_sampling", way)["fd"] for way in ("data", "uniform")]
        assert values[0] < values[1]


def test_statistics_know_the_classes_and_what_real_images_score(skewed, capsys):
    reference = read_reference(reference_path(skewed[-1], "skewed", "classifier", "native"))
    assert reference.class_counts == list(SKEWED) and reference.class_names == NAMES
    data, uniform = reference.real_scores["data"], reference.real_scores["uniform"]
    assert data["coverage"] == reference.coverage_ceiling > uniform["coverage"] and data["num"] == 75
    assert data["frechet"] < uniform["frechet"] and data["kid"] != uniform["kid"]
    calculate_inception_moments.main([*skewed, "--feature_network", "classifier", "--device", "cpu"])
    out = capsys.readouterr().out
    assert f"75 of the real images score FD {data['frechet']:.3f}, KID {data['kid']:.5f}" in out
    assert f"evenly over these they score FD {uniform['frechet']:.3f}" in out and "--class_sampling uniform" in out


def test_old_statistics_mean_uniform_classes_and_say_so(run, skewed, tmp_path, capsys):
    new = reference_path(skewed[-1], "skewed", "classifier", "native")
    old = dataclasses.replace(read_reference(new), class_counts=None, class_names=None, real_scores=None)
    old.save(tmp_path / "old.npz")
    flags = [*skewed, "--reference_file", tmp_path / "old.npz"]
    values = evaluated(capsys, run, *flags)
    assert values["fd"] == evaluated(capsys, run, *skewed, "--class_sampling", "uniform")["fd"]
    evaluate.main([*map(str, [run, *flags]), "--device", "cpu"])
    assert "how many images each class of the data has is not recorded" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--class_sampling data"):
        evaluated(capsys, run, *flags, "--class_sampling", "data")


def test_samples_are_drawn_as_the_data_and_even_ones_are_warned_of(G, skewed, tmp_path, capsys):
    checkpoint = save_checkpoint(tmp_path / "skewed.pth", G)
    stored = checkpoints.load(checkpoint) | {"data": {}, "class_counts": list(SKEWED)}
    checkpoints.save(stored, checkpoint)
    against = [*skewed, "--feature_network", "classifier"]
    for flags, expected in (
        ([], [110, 25, 15]),
        (["--class_sampling", "uniform"], [50, 50, 50]),
        (["--classes", "0", "2"], [75, 0, 75]),
        (["--classes", "0", "2", "--class_sampling", "data"], [132, 0, 18]),
        (["--bn_mode", "batch", "--bn_batch_size", "50"], [110, 25, 15]),
    ):
        common = ["--num_samples", "150", "--format", "npz", "--no-sheets", "--out", str(tmp_path), "--device", "cpu"]
        sample.main([str(checkpoint), *common, *flags])
        y = np.load(tmp_path / "samples.npz")["arr_1"]
        assert np.abs(np.bincount(y, minlength=3) - expected).max() <= 1
        evaluate.main([*map(str, [tmp_path / "samples.npz", *against]), "--device", "cpu"])
        assert ("as many images of each class" in capsys.readouterr().err) is (expected == [50, 50, 50])


@pytest.mark.slow
def test_training_draws_fakes_as_the_data(skewed, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "plot_curves", lambda *paths: None)  # takes longer than the rest
    model = "--G_ch 4 --D_ch 4 --G_ch_mult 2-2-1 --D_ch_mult 1-2 --G_attn 0 --D_attn 0 --dim_z 6 --G_param SN"
    steps = "--batch_size 4 --num_D_steps 1 --num_iters 1 --test_every 1 --num_inception_images 150 --device cpu"
    where = f"--runs_root {tmp_path} --experiment_name a --feature_network classifier --kid_subsets 5 --which_best FD"
    train.main([*f"{model} {steps} {where}".split(), *skewed])
    checkpoint = checkpoints.load(tmp_path / "a" / "weights" / "ckpt_00000001.pth")
    assert checkpoint["metrics"]["protocol"]["class_sampling"] == "data"
    assert checkpoint["class_counts"] == list(SKEWED) and checkpoint["args"]["class_sampling"] is None
