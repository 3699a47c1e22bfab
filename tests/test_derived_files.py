"""What is derived from a data set (statistics, classifier, scores): of its images, written where it can be, of use."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from striped_data import load, metric_options, run, write_dataset

import evaluate
import inception_utils
import instance_selection
import train
import utils
from image_datasets import doctor, loading
from metrics import classifier
from metrics.networks import load_feature_network
from torch_utils import checkpoints
from torch_utils.distributed import Ranks
from training.plan import load_measure, make_plan


def made_again(root):
    """Every image of `toy` becomes its negative: the same names, sizes and labels."""
    with h5py.File(root / "toy.hdf5") as file:
        images, labels = 255 - file["imgs"][()], file["labels"][()]
    (root / "toy.hdf5").unlink()
    with h5py.File(root / "toy.hdf5", "w") as file:
        file["imgs"], file["labels"] = images, labels


def dry_run_measure(argv):
    """What a dry run is to call as well."""
    options, source = train.parse_args(argv)
    load_measure(options, make_plan(options, source), Ranks(0, 1, torch.device("cpu")))


def test_what_was_made_of_other_images_is_made_again_or_refused(fitted, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(fitted, root)
    old, reference, _ = load(root)
    dataset = loading.open_dataset("toy", root)
    assert reference.protocol.content == old.fitted["content"] == doctor.content_hash(dataset)
    made_again(root)
    flags = ["--dataset", "toy", "--data_root", str(root), "--feature_network", "classifier", "--device", "cpu"]
    training = [*flags, "--runs_root", str(tmp_path), "--num_iters", "1", "--G_ch", "4", "--D_ch", "4"]
    training += ["--G_ch_mult", "2-2-1", "--D_ch_mult", "1-2", "--G_attn", "0", "--D_attn", "0"]
    selection = [*flags[:4], "--embedding", "classifier", "--device", "cpu"]
    for main, argv in (
        (evaluate.main, [str(root / "toy.hdf5"), *flags]),
        (evaluate.main, [str(root / "toy.hdf5"), str(root / "toy.hdf5"), *flags]),
        (train.main, [*training, "--num_inception_images", "100"]),
        (dry_run_measure, [*training, "--num_inception_images", "100"]),
        (instance_selection.main, selection),
    ):
        with pytest.raises(
            utils.UserError, match=r"made of other images \(content .*toy.hdf5 holds now.* --dataset toy"
        ):
            main(argv)
    shutil.copy(classifier.classifier_path(root, "toy"), tmp_path / "kept.pth")
    capsys.readouterr()
    run(root)
    out = capsys.readouterr().out
    assert "fitting again: " in out and "was fitted to other images" in out and "made with another" in out
    network, reference, _ = load(root)
    assert network.weights_hash != old.weights_hash
    assert (
        reference.protocol.content
        == network.fitted["content"]
        == doctor.content_hash(loading.open_dataset("toy", root))
    )
    capsys.readouterr()
    evaluate.main([str(root / "toy.hdf5"), *flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["fd"] < 1e-3 and result["coverage"] > 0.99
    assert result["protocol"]["reference_content"] == reference.protocol.content


def test_files_of_before_content_was_recorded_are_taken(fitted, tmp_path, capsys):
    shutil.copytree(fitted, tmp_path / "data")
    _, reference, path = load(tmp_path / "data")
    stored = checkpoints.load(classifier.classifier_path(tmp_path / "data", "toy"))
    stored["fitted"] = {name: stored["fitted"][name] for name in ("dataset", "accuracy", "seed", "epochs")}
    checkpoints.save(stored, classifier.classifier_path(tmp_path / "data", "toy"))
    protocol = dataclasses.replace(reference.protocol, content=None)
    dataclasses.replace(reference, protocol=protocol, class_counts=None, class_names=None, real_scores=None).save(path)
    run(tmp_path / "data")
    assert "is there already, without the counts of its classes; --overwrite" in capsys.readouterr().out
    evaluate.main([str(tmp_path / "data" / "toy.hdf5"), "--dataset", "toy", "--data_root", str(tmp_path / "data"),
                   "--feature_network", "classifier", "--device", "cpu"])  # fmt: skip
    assert "reference_content" not in capsys.readouterr().out


def test_what_cannot_be_written_is_found_before_the_pass(tmp_path, monkeypatch):
    """A file stands where the folder would be made: permissions do not hold the superuser back."""
    for module, name in ((doctor, "examine"), (classifier, "fit_classifier"), (inception_utils, "compute_reference")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("expensive"))
    write_dataset(tmp_path / "toy.hdf5")
    (tmp_path / "file").touch()
    there, nowhere = str(tmp_path / "toy.hdf5"), tmp_path / "file" / "data"
    for flags in ([], ["--overwrite"], ["--reference_num", "50"]):
        with pytest.raises(utils.UserError, match=f"cannot write {nowhere}"):
            run(nowhere, *flags, dataset=there)
    with pytest.raises(utils.UserError, match=f"cannot write {nowhere}"):
        run(tmp_path, "--export", str(nowhere / "a.npz"))
    selection = ["--dataset", there, "--embedding", "classifier", "--device", "cpu"]
    for flags in (["--data_root", str(nowhere)], ["--data_root", str(tmp_path), "--out", str(nowhere / "a.hdf5")]):
        with pytest.raises(utils.UserError, match=f"cannot write {nowhere}"):
            instance_selection.main([*selection, *flags])


def test_a_classifier_near_chance_is_warned_of(tmp_path, capsys):
    _, labels = write_dataset(tmp_path / "noise.hdf5", per_class=30, num_classes=5)
    with h5py.File(tmp_path / "noise.hdf5", "r+") as file:
        file["labels"][:] = np.random.default_rng(1).permutation(labels)
    run(tmp_path, dataset="noise")
    out, err = capsys.readouterr()
    assert "(all taken for the largest class: 20.00 %)" in out and "hardly know the classes" in err
    network = load_feature_network("classifier", tmp_path, "noise")
    inception_utils.load_evaluation(metric_options("--num_inception_images", "100"), tmp_path, "noise", "cpu")
    assert network.fitted["accuracy"] < 0.45 and "hardly know the classes" in capsys.readouterr().err
    assert classifier.warning(0.62, [60_000, 40_000]) and not classifier.warning(0.65, [60_000, 40_000])
    assert classifier.warning(0.65, [60, 40]) and not classifier.warning(0.95, [60, 40])
    assert not classifier.warning(0.9, [100] * 10) and classifier.warning(0.01, [500] * 100)
