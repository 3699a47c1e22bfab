"""Nearest training images and AuthPct: against plain arithmetic, and that copies are found."""

import numpy as np
import pytest
import torch
from small_models import save_checkpoint, small_generator

import explain
import utils
from metrics import images
from reports.memorisation import authenticity, nearest
from sampling import sheets


def plain(points, train):
    """Distances of each point to all training images, and of these to one another, float64."""
    points, train = points.double(), train.double()
    to = torch.stack([(p - train).square().sum(1).sqrt() for p in points])
    own = torch.stack([(t - train).square().sum(1).sqrt() for t in train])
    return to, own.fill_diagonal_(torch.inf)


@pytest.mark.parametrize("offset", [0, 1000])
def test_nearest_are_those_of_plain_arithmetic(offset):
    torch.manual_seed(0)
    train, points = torch.randn(2100, 7) + offset, torch.randn(40, 7) + offset
    to, own = plain(points, train)
    found = nearest(points, train, 3)
    expected = to.topk(3, largest=False)
    torch.testing.assert_close(found.distance, expected.values)
    assert torch.equal(found.index, expected.indices)
    some = torch.tensor([5, 1500, 2099])
    torch.testing.assert_close(nearest(train[some], train, 1, itself=some).distance[:, 0], own[some].amin(1))


def test_authenticity_is_the_share_that_lies_farther_than_training_images_from_each_other():
    torch.manual_seed(0)
    train, fresh = torch.randn(500, 4), torch.randn(60, 4)
    to, own = plain(fresh, train)
    expected = [to[i].min() > own[to[i].argmin()].min() for i in range(60)]
    found = authenticity(fresh, train)
    assert found.percent == pytest.approx(100 * np.mean(expected)) and 20 < found.percent < 80
    copies = authenticity(torch.cat([train[:30] + 1e-4, fresh[:30]]), train)
    assert set(copies.ratio.argsort()[:30].tolist()) == set(range(30))  # copies are the most suspicious
    assert authenticity(train[:30], train).percent == 0


def test_two_equal_training_images_break_nothing():
    train = torch.tensor([[0.0], [0.0], [5.0]])
    found = authenticity(torch.tensor([[0.0], [0.1]]), train)
    assert found.percent == 50 and found.ratio.isfinite().all()


def explained(tmp_path, data_root, *flags):
    path = save_checkpoint(tmp_path / "G.pth", small_generator())
    common = ["--only", "memorisation", "--device", "cpu", "--out", str(tmp_path), "--num_compared", "20"]
    explain.main([str(path), *common, "--data_root", str(data_root), "--feature_network", "classifier", *flags])


def test_the_script_compares_with_the_data(tmp_path, data_root, capsys):
    explained(tmp_path, data_root, "--dataset", "small", "--held_out", "small", "--seed", "9")
    out = capsys.readouterr().out
    assert "AuthPct 0.0 of 20 samples (nearest of 150 training images by classifier)" in out  # its own images
    assert "AuthPct 0.0 of 20 real images" in out and (tmp_path / "memorisation.png").exists()
    explained(tmp_path, data_root, "--dataset", "small", "--num_train", "40")
    assert "nearest of 40 training images" in capsys.readouterr().out


def test_samples_are_made_few_at_a_time(tmp_path, data_root, monkeypatch):
    made, make = [], images.make_images
    monkeypatch.setattr(sheets, "SHEET_PIXELS", 3 * 16**2)
    monkeypatch.setattr(images, "make_images", lambda G, z, y: made.append(len(z)) or make(G, z, y))
    explained(tmp_path, data_root, "--dataset", "small")
    assert sum(made) == 20 + 12 and max(made) == 3  # all, and once more those that are shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [("", "name its --dataset"), ("--dataset none", "none"), ("--dataset small --held_out nothing", "nothing.hdf5")],
)
def test_errors_are_one_line(tmp_path, data_root, flags, said):
    with pytest.raises(utils.UserError, match=said):
        explained(tmp_path, data_root, *flags.split())
