"""How often fakes are of each class: by default as the data where it is unbalanced, in any first part of the images."""

import numpy as np
import pytest
import torch

import utils
from sampling.class_sampling import ClassSampling, is_balanced
from sampling.latents import balanced_labels, random_labels, shuffled_labels

COUNTS = [600, 100, 50, 3, 0, 200]
IMAGENET = [1300] * 895 + [732 + 6 * i for i in range(95)] + [1200] * 10
DIGITS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def drawn(counts, n_classes=None, chosen=None):
    return ClassSampling(chosen).counts(counts, n_classes or len(counts), "the statistics")


def test_unbalanced_classes_are_drawn_as_in_the_data_and_balanced_ones_in_turns(capsys):
    for counts in (DIGITS, IMAGENET, [5, 5]):
        assert is_balanced(counts) and drawn(counts) is None
    assert capsys.readouterr().out == ""
    for counts in (COUNTS, [60, 40], [27, 1], [10, 0, 10]):
        assert not is_balanced(counts) and drawn(counts) == counts
    assert "unbalanced classes (0 to 600 images)" in capsys.readouterr().out
    assert drawn(COUNTS, chosen="uniform") is None and drawn(DIGITS, chosen="data") == DIGITS
    assert drawn([7, 7, 7], chosen="data") is None and drawn([40], 1) is None  # as before, to the last bit
    assert capsys.readouterr().out == ""


def test_counts_that_are_not_known_or_of_other_classes_are_told(capsys):
    assert drawn(None, 3) is None
    assert "the statistics: how many images each class of the data has is not recorded" in capsys.readouterr().out
    assert drawn(COUNTS, 3) is None and drawn(None, 1) is None and drawn(None, 3, "uniform") is None
    assert capsys.readouterr().out == ""
    for known, words in ((None, "not recorded"), (COUNTS, "6 classes, but the generator has 3")):
        with pytest.raises(utils.UserError, match=f"--class_sampling data: the statistics: .*{words}"):
            drawn(known, 3, "data")


def of_turns(num_images, classes, counts=None):
    return shuffled_labels(0, num_images, classes, counts)


@pytest.mark.parametrize("draw", [balanced_labels, of_turns])
def test_any_first_images_have_the_shares_of_the_counts(draw):
    shares = np.array(COUNTS) / sum(COUNTS)
    labels = draw(2000, range(6), COUNTS)
    for n in (1, 10, 77, 2000):
        assert torch.equal(draw(n, range(6), COUNTS), labels[:n])
        assert np.abs(np.bincount(labels[:n], minlength=6) - n * shares).max() <= 2
    assert draw(4, [7, 9], [0, 1]).tolist() == [9] * 4 and len(draw(0, [1], [1])) == 0


def test_equal_counts_give_the_turns_of_uniform_classes():
    assert torch.equal(balanced_labels(100, range(7), [3] * 7), balanced_labels(100, range(7)))


def test_random_classes_follow_the_counts():
    labels = random_labels(0, 3000, range(6), "standing_y", COUNTS)
    assert np.abs(np.bincount(labels, minlength=6) / 3000 - np.array(COUNTS) / sum(COUNTS)).max() < 0.03
    assert not (labels == 4).any() and torch.equal(labels[:9], random_labels(0, 9, range(6), "standing_y", COUNTS))
