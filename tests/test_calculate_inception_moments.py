"""Reference statistics of a small made data set, end to end, and the fitting of the classifier."""

import dataclasses
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from striped_data import load, metric_options, run, write_dataset
from torch.nn import functional as F

import calculate_inception_moments
import inception_utils
import utils
from image_datasets import loading
from metrics import classifier, functional
from metrics import reference as references
from metrics.networks import load_feature_network
from metrics.protocol import MetricOptions
from metrics.reference import read_reference
from torch_utils import distributed

ONE = distributed.Ranks(0, 1, torch.device("cpu"))


BAD = ("bad", None)  # what a rank tells the others of its error


def computed(dataset, network, ranks=ONE, batch_size=64):
    """Statistics with the script's defaults."""
    protocol = inception_utils.reference_protocol(dataset, network, MetricOptions().resolved(10, 5, "all"), seed=0)
    return inception_utils.compute_reference(dataset, network, protocol, ranks, batch_size)


def test_statistics_are_those_of_the_whole_set(fitted):
    network, reference, _ = load(fitted)
    dataset = loading.open_dataset("toy", fitted)
    features, logits = network(dataset.read(np.arange(120)))
    expected = np.cov(features.double().numpy(), rowvar=False)
    assert np.abs(reference.sigma.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    torch.testing.assert_close(reference.mu, features.double().mean(0), rtol=1e-5, atol=1e-6)
    # every image's features once, in a random order that the seed decides
    order = utils.rng(0, "real_features").permutation(120)
    torch.testing.assert_close(reference.real_features, features[order], rtol=1e-4, atol=1e-5)
    # random splits: those cut from a file sorted by class would each hold one class, and score about 1
    split = functional.contiguous_splits(120, 10)[utils.rng(0, "is_split").permutation(120)]
    expected = functional.inception_score(logits[split.argsort(stable=True)], 10)
    assert (reference.is_mean, reference.is_std) == pytest.approx(expected, rel=1e-4)
    assert functional.inception_score(logits, 3)[0] - 1 < 0.5 * (reference.is_mean - 1)
    assert 0.5 < reference.coverage_ceiling <= 1
    about = {"dataset": "toy", "num_images": 120, "seed": 0, "k": 5, "splits": 10, "assumed": False}
    assert about.items() <= reference.protocol.to_dict().items()


def test_statistics_do_not_depend_on_the_batch_size(fitted, monkeypatch):
    network, reference, _ = load(fitted)
    dataset = loading.open_dataset("toy", fitted)
    other = computed(dataset, network, batch_size=17)
    for key in ("mu", "sigma", "real_features"):
        torch.testing.assert_close(getattr(other, key), getattr(reference, key), rtol=1e-4, atol=1e-5)
    assert other.is_mean == pytest.approx(reference.is_mean, rel=1e-5)
    monkeypatch.setattr(references, "NUM_REAL_FEATURES", 50)
    fewer = computed(dataset, network)
    torch.testing.assert_close(fewer.real_features, reference.real_features[:50], rtol=1e-4, atol=1e-5)


def save_part_of_run(rank, world_size, root, batch_size):
    """What one of torchrun's processes does."""
    group = {"init_method": f"file://{root}/ranks", "rank": rank, "world_size": world_size}
    torch.distributed.init_process_group("gloo", **group)
    ranks = distributed.Ranks(rank, world_size, torch.device("cpu"))
    network = load_feature_network("classifier", root, "toy")
    reference = computed(loading.open_dataset("toy", root), network, ranks, batch_size)
    reference.save(root / f"rank{rank}.npz")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("batch_size", [16, 100])  # 100: one of the ranks sees no image
def test_statistics_do_not_depend_on_the_number_of_ranks(fitted, tmp_path, batch_size):
    for name in ("toy.hdf5", "toy_classifier.pth"):
        shutil.copy(fitted / name, tmp_path)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=save_part_of_run, args=(rank, 3, tmp_path, batch_size)) for rank in range(3)]
    for process in ranks:
        process.start()
    network, *_ = load(fitted)
    dataset = loading.open_dataset("toy", fitted)
    alone = computed(dataset, network, batch_size=batch_size)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(3):
        reference = read_reference(tmp_path / f"rank{rank}.npz")
        for key in ("mu", "sigma"):
            expected = getattr(alone, key)
            assert (getattr(reference, key) - expected).abs().max() <= 1e-10 * expected.abs().max()
        assert torch.equal(reference.real_features, alone.real_features)
        assert (reference.is_mean, reference.is_std) == pytest.approx((alone.is_mean, alone.is_std), rel=1e-10)
        assert (reference.coverage_ceiling, reference.protocol) == (alone.coverage_ceiling, alone.protocol)


def test_an_unreadable_image_of_any_rank_is_one_line_of_all(fitted, monkeypatch):
    """Rank 0, the one that speaks, hears of what rank 1 could not read."""
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda box, own: box.__setitem__(slice(2), [own, BAD]))
    ranks = distributed.Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(utils.UserError, match="bad"):
        computed(loading.open_dataset("toy", fitted), load(fitted)[0], ranks)


def test_a_random_subset_is_measured_on_its_own(fitted, capsys):
    _, whole, path = load(fitted)
    run(fitted, "--reference_num", "50", "--seed", "3")
    subset_path = path.with_name("toy_classifier_native_num50_reference.npz")
    assert "50 images (a random subset, seed 3)" in capsys.readouterr().out
    subset = read_reference(subset_path)
    assert subset.protocol.num_images == subset.protocol.reference_num == 50 and subset.protocol.seed == 3
    # the subset's features are 50 of the whole's, and its mean is theirs
    distances = (subset.real_features[:, None] - whole.real_features).norm(dim=2)
    nearest = distances.min(1)
    assert nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == 50
    torch.testing.assert_close(subset.mu, subset.real_features.double().mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(load(fitted)[1].mu, whole.mu)
    run(fitted, "--reference_num", "50", "--seed", "3")
    assert "there already" in capsys.readouterr().out
    run(fitted, "--reference_num", "50", "--seed", "4")
    assert "made with another seed" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match=r"--reference_num 121: .*toy\.hdf5 has 120 images"):
        run(fitted, "--reference_num", "121")

    chosen = [["--reference_num", "50"], ["--reference_file", str(subset_path)]]
    for more in chosen:
        _, reference = inception_utils.load_evaluation(metric_options(*more), fitted, "toy", "cpu")
        assert reference.protocol.num_images == 50
    for more, line in (
        (["--reference_num", "51"], "--reference_num 51"),
        (["--reference_file", "nowhere.npz"], "--reference_file nowhere.npz: no such file"),
        (["--reference_file", str(fitted)], "no such file"),
        (["--is_outputs", "1000"], "3 classes of its own"),
        (["--prdc_memory_mb", "1"], "MiB of memory, not 1"),
        (["--kid_subset_size", "1"], "--kid_subset_size 1"),
        (["--prdc_k", "120"], "--prdc_k 120: .* holds 120 real features"),
        (["--is_splits", "200", "--num_inception_images", "100"], "at least 200"),
    ):
        with pytest.raises(utils.UserError, match=line):
            inception_utils.load_evaluation(metric_options(*more), fitted, "toy", "cpu")


def test_merging_and_exporting(fitted, tmp_path, capsys):
    _, reference, path = load(fitted)
    run(fitted, "--export", str(tmp_path / "toy_inception_moments.npz"))
    assert "toy_inception_activations.npz" in capsys.readouterr().out
    with np.load(tmp_path / "toy_inception_moments.npz") as file:
        assert np.array_equal(file["mu"], reference.mu.numpy())
    dataclasses.replace(reference, mu=reference.mu + 1).save(tmp_path / "shifted.npz")
    merge = ["--dataset", "twice", "--data_root", str(tmp_path), "--merge", str(path)]
    with pytest.raises(utils.UserError, match="toy and toy share images"):
        calculate_inception_moments.main([*merge, str(path)])
    calculate_inception_moments.main([*merge, str(tmp_path / "shifted.npz")])
    merged = read_reference(tmp_path / "twice_classifier_native_reference.npz")
    expected = reference.sigma * (2 * 119 / 239) + 60 / 239
    torch.testing.assert_close(merged.sigma, expected, rtol=1e-10, atol=1e-12)
    assert "twice: 240 images" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--overwrite replaces it"):
        calculate_inception_moments.main([*merge, str(tmp_path / "shifted.npz")])
    for flags in (["--export", "moments.pt"], ["--merge", str(path), "--reference_num", "5"]):
        with pytest.raises(SystemExit) as error:
            run(fitted, *flags)
        assert error.value.code == 2


def test_imagenet_is_known_by_its_classes():
    names = [f"n{number:08d}" for number in (1440764, *range(2000000, 2000998), 15075141)]
    assert inception_utils.has_imagenet_classes(names)
    assert not inception_utils.has_imagenet_classes(names[::-1])
    assert not inception_utils.has_imagenet_classes(names[:-1])
    assert not inception_utils.has_imagenet_classes([*names[:-1], "n16000000"])
    assert not inception_utils.has_imagenet_classes([str(i) for i in range(1000)])
    assert not inception_utils.has_imagenet_classes(["cat"])


def test_running_again_reuses_what_matches(fitted, capsys):
    _, _, path = load(fitted)
    before = path.stat().st_mtime_ns
    run(fitted)
    printed = capsys.readouterr().out
    assert "is there already; --overwrite" in printed and "fitted in" not in printed
    for words in ("held-out accuracy", "IS of the real images", "coverage between two halves of 120", str(path)):
        assert words in printed
    assert path.stat().st_mtime_ns == before
    run(fitted, "--prdc_k", "4")
    assert "made with another k" in capsys.readouterr().out and load(fitted)[1].protocol.k == 4
    run(fitted, "--overwrite")
    assert "already" not in capsys.readouterr().out and load(fitted)[1].protocol.k == 5


def test_fitting_again_gives_the_same_classifier(fitted, capsys):
    network, *_ = load(fitted)
    run(fitted, "--refit_classifier")
    assert "fitted in" in capsys.readouterr().out
    again, *_ = load(fitted)
    assert again.weights_hash == network.weights_hash
    path = classifier.classifier_path(fitted, "toy")
    assert classifier.load_classifier(path)[1]["accuracy"] >= 0.9
    state = torch.random.get_rng_state()
    other, _ = classifier.fit_classifier(loading.open_dataset("toy", fitted), seed=1, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert classifier.weights_hash(other) != network.weights_hash and not other.training


def test_load_evaluation(fitted):
    about = (metric_options(), fitted)
    network, reference = inception_utils.load_evaluation(*about, "toy", "cpu", loading.open_dataset("toy", fitted))
    assert network.weights_hash == reference.protocol.weights_hash
    write_dataset(fitted / "larger.hdf5", resolution=32)
    shutil.copy(fitted / "toy_classifier.pth", fitted / "larger_classifier.pth")
    with pytest.raises(utils.UserError, match=r"3 classes at 16x16, but .*larger\.hdf5 has 3 at 32x32"):
        inception_utils.load_evaluation(*about, "larger", "cpu", loading.open_dataset("larger", fitted))


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    write_dataset(tmp_path / "single.hdf5", num_classes=1)
    with pytest.raises(utils.UserError, match="one class"):
        run(tmp_path, dataset="single")
    write_dataset(tmp_path / "tiny.hdf5", per_class=1)
    with pytest.raises(utils.UserError, match="too few"):
        run(tmp_path, dataset="tiny")
    write_dataset(tmp_path / "small.hdf5", per_class=3)
    with pytest.raises(utils.UserError, match="too few for PRDC"):
        run(tmp_path, "--classifier_epochs", "1", dataset="small")
    with pytest.raises(utils.UserError, match=r"missing"):
        run(tmp_path, dataset="missing")
    assert not list(tmp_path.glob("*.npz"))
    with pytest.raises(SystemExit) as error:
        calculate_inception_moments.main(["--dataset", "small", "--refit_classifier"])
    assert error.value.code == 2
    with pytest.raises(utils.UserError, match="--dataset is required"):
        calculate_inception_moments.main([])


def test_stratified_split():
    labels = np.array([0] * 40 + [1] * 5 + [3] * 2 + [4])
    train, held_out = classifier.stratified_split(labels, seed=0)
    assert sorted([*train, *held_out]) == list(range(48))
    assert np.bincount(labels[held_out], minlength=5).tolist() == [4, 1, 0, 1, 0]
    assert np.array_equal(held_out, classifier.stratified_split(labels, seed=0)[1])
    assert not np.array_equal(held_out, classifier.stratified_split(labels, seed=1)[1])


def test_random_shift_moves_whole_images():
    images = torch.rand(20, 3, 8, 8)
    moved = classifier.random_shift(images, np.random.default_rng(0), 2)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # (N,3,5,5,8,8)
    same = (windows == moved[:, :, None, None]).all(dim=(1, 4, 5)).flatten(1)  # (N,25)
    assert same.any(1).all() and len(set(same.int().argmax(1).tolist())) > 5


@pytest.mark.slow
def test_classifier_learns_the_digits():
    """At a quarter of the pixels and in a quarter of the time; at 32x32 the default fit passes 98 %."""
    stored = np.load(Path(__file__).parents[1] / "assets" / "digits.npz")
    images, labels = (next(stored[key] for key in stored.files if stored[key].ndim == n) for n in (3, 1))
    images = torch.from_numpy(images.astype(np.float32)) * (255 / images.max())
    images = F.interpolate(images[:, None], 16, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)

    class Digits:
        path, resolution, num_classes = "digits", 16, 10

        def __init__(self):
            self.labels = labels.astype(np.int64)

        def read(self, indices):
            return images[indices]

        def labels_at(self, indices):
            return torch.from_numpy(self.labels[indices])

    assert classifier.fit_classifier(Digits(), epochs=5)[1] >= 0.95
