"""The drawn shapes: a pure function of seed and number, ten classes that can be told apart."""

import numpy as np
import pytest

import make_hdf5
import utils
from image_datasets import loading, shapes


def make(root, *flags):
    make_hdf5.main(["--dataset", "shapes", "--data_root", str(root), *map(str, flags)])
    return loading.open_dataset("shapes", root)


def test_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(make_hdf5.doctor, "introduce", lambda dataset: None)  # which takes longer than all else
    made = make(tmp_path, "--num_images", 45, "--num_workers", 2)
    assert made.images.shape == (45, 3, 32, 32) and made.labels.tolist() == [i % 10 for i in range(45)]
    assert made.class_names[0] == "disc" and made.class_names[-1] == "spiral" and made.num_classes == 10
    fewer, others = shapes.shapes_source(20, 0, 32), shapes.shapes_source(45, 1, 32)
    drawn = np.stack(list(fewer.images)).transpose(0, 3, 1, 2)
    assert np.array_equal(drawn, made.images[:20])  # whatever the number of images and processes
    assert others.description != made.source and not np.array_equal(others.images[0], fewer.images[0])
    assert len(np.unique(made.images.reshape(45, -1), axis=0)) == 45
    colours = [len(np.unique(image.reshape(3, -1).T, axis=0)) for image in made.images]
    assert min(colours) > 10  # anti-aliased: more than those of figure and background


def test_a_larger_image_is_the_same_picture():
    for i in range(10):
        small, large = shapes.draw(3, i, 32).astype(float), shapes.draw(3, i, 64).astype(float)
        averaged = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(averaged - small).mean() < 3


@pytest.mark.parametrize("name", shapes.CLASS_NAMES)
def test_figures_lie_within_their_circle_and_fill_some_of_it(name):
    for outline in shapes.FIGURES[name]:
        assert outline is None or name == "crescent" or np.linalg.norm(outline, axis=1).max() <= 1.001
    mask = shapes._filled(shapes.FIGURES[name], (0.5, 0.5), 0.4, 1.0, 32)
    assert 0.1 < mask.mean() / (np.pi * 0.4**2) < 0.9 and ((mask > 0) & (mask < 1)).any()


def test_covers_hide_a_part_only(monkeypatch):
    """With and without covers, the same image differs in a third of the images, and in a small part of each."""
    with_covers = [shapes.draw(0, i, 32) for i in range(60)]
    monkeypatch.setattr(shapes, "COVERED", 0)
    shares = [(shapes.draw(0, i, 32) != image).any(axis=2).mean() for i, image in enumerate(with_covers)]
    assert 10 <= np.count_nonzero(shares) <= 30 and max(shares) < 0.25


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_images", 9], "--num_images 9: choose 10"),
        (["--num_images", 10**15], "to 10,000,000"),
        (["--resolution", 8], "--resolution 8: shapes are drawn at 16 to 256"),
        (["--resolution", 1000], "--resolution 1000"),
    ],
)
def test_refusals(flags, message, tmp_path):
    with pytest.raises(utils.UserError, match=message):
        make(tmp_path, *flags)


@pytest.mark.parametrize(
    "flags",
    [["digits", "--num_images", "9"], ["C10", "--seed", "1"], ["shapes", "--images", "x"]],
)
def test_flags_of_other_data_sets(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make_hdf5.main(["--dataset", *flags, "--data_root", str(tmp_path)])
    assert stop.value.code == 2 and "shapes" in capsys.readouterr().err


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(utils.UserError, match="make_hdf5.py --dataset shapes --out"):
        loading.open_dataset("shapes", tmp_path)
    with pytest.raises(utils.UserError, match="--dataset shapes --resolution 64 --out"):
        loading.open_dataset("shapes64", tmp_path)
