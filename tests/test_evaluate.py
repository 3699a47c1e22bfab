"""evaluate.py: metrics that depend on neither batch size nor ranks, of checkpoints and of files."""

import json
import shutil
from unittest import mock

import clean_forks
import numpy as np
import pytest
import torch
from evaluation_fixtures import METRICS, MODES, NUM_IMAGES, ONE, close, evaluated, fast
from small_models import CLASSES, save_checkpoint, small_generator

import evaluate
import train
import utils
from image_datasets.image_sets import ImageSet
from inception_utils import Measure, evaluate_generator, evaluate_images
from metrics import functional, networks
from metrics.features import _part, check_classes
from metrics.images import GeneratedImages, Source
from metrics.reference import load_reference
from sampling.generate import generate
from sampling.latents import Truncation, balanced_labels
from torch_utils import checkpoints
from training import intervals

# ---------------------------------------------------------------------------------------------------------------------
# A generator


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.bn_mode)
def test_metrics_do_not_depend_on_the_batch_size_and_are_plain(G, measure, mode):
    values = evaluate_generator(G, measure(64), NUM_IMAGES, 0, ema=True, mode=mode)
    assert values.keys() == METRICS
    assert json.loads(json.dumps(values)) == values
    close(values, evaluate_generator(G, measure(7), NUM_IMAGES, 0, ema=True, mode=mode))


def test_the_seed_of_the_reference_gives_the_reference(G, measure):
    values = evaluate_generator(G, measure(50), NUM_IMAGES, 9, ema=True)
    assert values["fd"] == pytest.approx(0, abs=1e-3) and values["coverage"] > 0.99


def test_the_protocol_says_how_images_were_made(G, measure):
    def protocol(*arguments, **options):
        return evaluate_generator(G, measure(), 130, 3, *arguments, ema=False, **options)["protocol"]

    expected = {"fake_num": 130, "seed": 3, "truncation": 0.5, "truncation_kind": "truncated_normal", "ema": False}
    assert (expected | {"bn_mode": "running"}).items() <= protocol(Truncation(0.5)).items()
    batch = {"bn_mode": "batch", "bn_batch_size": 32}
    assert batch.items() <= protocol(mode=MODES[1]).items() and "bn_batch_size" not in protocol()
    standing = {"bn_mode": "standing", "bn_batch_size": 32, "num_standing_accumulations": 2}
    assert standing.items() <= protocol(mode=MODES[2]).items()


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.bn_mode)
def test_each_mode_gives_numbers_of_its_own(G, measure, mode):
    common = (G, measure(), NUM_IMAGES, 0)
    running, other = (evaluate_generator(*common, ema=True, mode=m)["fd"] for m in (MODES[0], mode))
    assert abs(running - other) > 1e-3


def test_no_accuracy_for_a_generator_of_other_classes(measure):
    values = evaluate_generator(small_generator(n_classes=1), measure(), 130, 0, ema=True)
    assert values.keys() == METRICS - {"accuracy"}


@pytest.mark.parametrize("num_images", [5, 6, 1])
def test_parts_of_ranks_join_to_the_whole(G, measure, num_images):
    images = GeneratedImages(G, num_images, 0, MODES[0])

    def part(rank, world_size):
        n = -(-num_images // world_size)
        indices = np.arange(num_images)[rank * n : (rank + 1) * n]
        return _part(measure().network, images, indices, n, "cpu", 2)

    for tensor, pieces in zip(part(0, 1), zip(*(part(rank, 3) for rank in range(3)), strict=True), strict=True):
        assert len({piece.shape for piece in pieces}) == 1  # what gathering needs
        assert torch.allclose(torch.cat(pieces)[:num_images], tensor, atol=1e-5)


def test_intra_class_distance_is_the_mean_over_classes(G, measure, data_root):
    real = Source.at(data_root / "small.hdf5").open()
    values = evaluate_generator(G, measure(real_images=real), 60, 0, ema=True)
    network = measure().network
    y = balanced_labels(60, range(CLASSES))
    fake = network(torch.cat(list(generate(G, y, 0, 60))))[0]
    features = network(real.read(np.arange(150)))[0]
    by_class = {}
    for c in range(CLASSES):
        moments = (functional.moments_of(x).finalize() for x in (fake[y == c], features[real.labels == c]))
        by_class[str(c)] = functional.frechet_distance(*next(moments), *next(moments))
    assert values["intra_fd"] == pytest.approx(np.mean(list(by_class.values())), rel=1e-4)
    assert values["intra_fd_per_class"] == pytest.approx(by_class, rel=1e-4)
    with pytest.raises(
        utils.UserError, match=r"class 1 \('dog/wolf'\) has 1 image among the 4 evaluated ones.* --num_inception"
    ):
        evaluate_generator(G, measure(real_images=real), 4, 0, ema=True)


class Labelled(ImageSet):
    """Labels alone."""

    def __init__(self, labels, class_names=("all",)):
        super().__init__("x.hdf5", "x", 16, np.array(labels), class_names)


def test_intra_class_distances_say_what_is_wrong_with_a_class():
    numbers, twice = [str(i) for i in range(3)], [0, 0, 1, 1, 2, 2]

    def refused(words, fakes, reals, names=numbers):
        with pytest.raises(utils.UserError, match=f"--intra_fid: {words}"):
            check_classes(Labelled(fakes), np.arange(len(fakes)), Labelled(reals, names))

    from_one, named = [1, 1, 1, 2, 2, 2], ["a", "cat", "b"]
    refused("x.hdf5: 1 of 3 classes have no images: '0'; class ids start at 0, are these counted", twice, from_one)
    refused("x.hdf5: 1 of 3 classes have no images: 'cat'.*--class_sampling data", twice, [0, 0, 2, 2], named)
    refused(r"class 1 \('cat'\) has 1 image in x.hdf5", [0, *twice[2:]], [0, 0, 1, 2, 2], named)
    refused("class 2 has 0 images among the 4 evaluated ones", twice[:4], twice)
    refused("class 3 is none of the 3 classes of x.hdf5, which are 0 to 2", [*twice, 3], twice)
    check_classes(Labelled([1, 1, 2, 2]), np.arange(4), Labelled([1, 1, 2, 2], numbers))  # class 0 is nobody's


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.slow
def test_evaluating_never_changes_training(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "plot_curves", lambda *paths: None)  # takes longer than the rest
    model = "--G_ch 4 --D_ch 4 --G_ch_mult 2-2-1 --D_ch_mult 1-2 --G_attn 0 --D_attn 0 --dim_z 6 --G_param SN"
    steps = "--batch_size 4 --num_D_steps 1 --num_iters 2 --log_every 1 --num_inception_images 130 --device cpu"
    modes = [f"--test_every 1 --sample_every 1 --bn_batch_size 8 --bn_mode {mode.bn_mode}" for mode in MODES]
    runs = []
    for i, reports in enumerate(["--test_every 0 --sample_every 9", *modes]):
        where = f"--dataset small --data_root {data_root} --runs_root {tmp_path} --experiment_name {i}"
        flags = f"{model} {steps} {where} {reports} --kid_subsets 5 --feature_network classifier --which_best FD"
        train.main(flags.split())
        lines = [json.loads(line) for line in (tmp_path / str(i) / "log.jsonl").read_text().splitlines()]
        assert len([line for line in lines if line["event"] == "eval"]) == (2 if i else 0)
        losses = [{k: v for k, v in line.items() if "loss" in k} for line in lines if line["event"] == "train"]
        runs.append((losses, torch.load(tmp_path / str(i) / "weights" / "ckpt_00000002.pth", weights_only=True)))
    assert len(runs[0][0]) == 2
    for losses, checkpoint in runs[1:]:
        assert losses == runs[0][0]
        for name in ("G", "D"):
            assert all(torch.equal(tensor, checkpoint[name][key]) for key, tensor in runs[0][1][name].items())


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_files_give_the_metrics_of_the_checkpoint_that_made_them(run, samples, files, capsys):
    own = evaluated(capsys, run, "--seed", 3)
    archive, folder = (evaluated(capsys, samples / name, *files) for name in ("samples.npz", "images"))
    assert archive["images"] == str(samples / "samples.npz")
    assert archive["protocol"]["bn_mode"] is None and archive["protocol"]["fake_num"] == NUM_IMAGES
    for values in (archive, folder):
        assert values["fd"] == pytest.approx(own["fd"], rel=1e-4)
        assert values["coverage"] == pytest.approx(own["coverage"])
        assert values["is_mean"] == pytest.approx(own["is_mean"], rel=0.1)  # its splits are others
    assert archive["accuracy"] == pytest.approx(own["accuracy"]) == pytest.approx(folder["accuracy"])
    close(evaluated(capsys, samples / "images", *files, "--metric_batch_size", 7), folder)
    intra = evaluated(capsys, samples / "images", *files, "--intra_fid")
    assert intra["intra_fd"] == pytest.approx(evaluated(capsys, run, "--seed", 3, "--intra_fid")["intra_fd"], rel=1e-3)


def test_order_and_choice_do_not_follow_the_class(data_root, files, samples, capsys, tmp_path):
    """Sorted by class, 150 images give every split of IS and every part of them all classes."""
    images, y = (np.load(samples / "samples.npz")[name] for name in ("arr_0", "arr_1"))
    order = np.argsort(y, kind="stable")
    np.savez(tmp_path / "sorted.npz", images[order], y[order])
    mixed, by_class = (evaluated(capsys, path, *files) for path in (samples / "samples.npz", tmp_path / "sorted.npz"))
    for name in ("fd", "accuracy"):
        assert by_class[name] == pytest.approx(mixed[name], rel=1e-4)
    assert by_class["is_mean"] == pytest.approx(mixed["is_mean"], rel=0.1)
    chosen = Source.at(tmp_path / "sorted.npz").open()
    seen = []
    original, chosen.read = chosen.read, lambda indices: seen.extend(indices) or original(indices)
    network = networks.load_feature_network("classifier", data_root, "small")
    reference = load_reference(data_root / "small_classifier_native_reference.npz", network)
    values = evaluate_images(chosen, Measure(network, reference, fast(16), ONE), 60, seed=0)
    assert len(set(seen)) == 60 and min(np.bincount(y[order][seen])) > 10 and values["protocol"]["fake_num"] == 60


def test_one_source_against_another(run, samples, data_root, files, capsys):
    npz, real = samples / "samples.npz", data_root / "small.hdf5"
    own, other = (evaluated(capsys, npz, *second, *files) for second in ([], [real]))
    for name in ("fd", "precision", "coverage"):
        assert other[name] == pytest.approx(own[name], rel=1e-4)  # the data set itself, and its statistics
    same = evaluated(capsys, npz, samples / "images", *files, "--prdc_k", 3)
    assert same["fd"] == pytest.approx(0, abs=1e-3) and same["recall"] > 0.99 and same["protocol"]["k"] == 3
    assert same["protocol"]["reference"] == "images" and same["protocol"]["reference_num"] == NUM_IMAGES
    statistics = evaluated(capsys, npz, data_root / "small_classifier_native_reference.npz", *files)
    assert statistics["fd"] == own["fd"]
    against_run = evaluated(capsys, npz, run, *files)
    assert 0 < against_run["fd"] < 1 and against_run["protocol"]["reference"].endswith("best_00000007.pth")
    intra = evaluated(capsys, npz, real, *files, "--intra_fid")
    assert intra["intra_fd"] == pytest.approx(np.mean(list(intra["intra_fd_per_class"].values())))


def test_an_npz_of_images_and_of_the_whole_sets_moments(samples, data_root, files, tmp_path, capsys):
    """As ADM publishes references: mu and sigma of the whole set count for FD, the sample of images for the rest."""
    npz, statistics = samples / "samples.npz", data_root / "small_classifier_native_reference.npz"
    images = np.load(npz)["arr_0"]
    with np.load(statistics) as whole:
        np.savez(tmp_path / "adm.npz", images[:60], mu=whole["mu"], sigma=whole["sigma"], mu_s=np.zeros(7))
    np.savez(tmp_path / "few.npz", images[:60])
    np.savez(tmp_path / "other.npz", images[:60], mu=np.zeros(9), sigma=np.eye(9))
    capsys.readouterr()
    results = {}
    for name in ("adm.npz", "few.npz", "other.npz"):
        evaluate.main([str(npz), str(tmp_path / name), *files, "--json"])
        out, err = capsys.readouterr()
        results[name] = json.loads(out)
        told = f"{tmp_path / name}: its mu and sigma"
        words = {"adm.npz": "count for the Frechet distance, its 60 images for the rest", "other.npz": "are not of 128"}
        assert (f"{told} {words[name]}" in err) if name in words else "its mu and sigma" not in err
    adm, few = results["adm.npz"], results["few.npz"]
    assert adm["fd"] == evaluated(capsys, npz, statistics, *files)["fd"] != few["fd"]
    assert {name: adm[name] for name in ("precision", "kid_mean")} == {
        name: few[name] for name in ("precision", "kid_mean")
    }
    assert "of the file" in adm["protocol"]["reference_moments"] and "reference_moments" not in few["protocol"]
    assert results["other.npz"]["fd"] == few["fd"]


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_the_script_takes_the_flags_of_the_run(run, capsys):
    printed = evaluated(capsys, run)
    assert printed.keys() == METRICS | {"checkpoint", "step"} and printed["step"] == 7
    assert printed["protocol"]["ema"] and printed["protocol"]["seed"] == 9 and printed["coverage"] > 0.99

    evaluate.main([str(run), "--seed", "1", "--num_inception_images", "140", "--truncation", "2", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert "best_00000007.pth" in lines[0] and "batch norm uses standing statistics" in lines[1]
    assert len({line.rindex(".") for line in lines[2 : len(METRICS) + 1]}) == 1  # aligned at the point
    shown = dict(line.split(maxsplit=1) for line in lines[1:] if line)
    assert shown["fake_num"] == "140" and shown["seed"] == "1" and shown["truncation"] == "2.0"


def test_flags_of_another_network_or_data_set_are_not_taken_over(run, G, capsys, tmp_path):
    trained = checkpoints.load(run / "weights" / "best_00000007.pth")["args"]
    network = {"feature_network": "inception", "inception_weights": "gone.pth", "resize": "tf1"}
    save_checkpoint(tmp_path / "inception.pth", G, args=trained | network | {"reference_file": "gone.npz"})
    assert evaluated(capsys, tmp_path / "inception.pth", "--feature_network", "classifier")["coverage"] > 0.99
    with pytest.raises(utils.UserError, match="gone.pth"):  # its own network
        evaluated(capsys, tmp_path / "inception.pth", "--feature_network", "inceptionv3")
    save_checkpoint(tmp_path / "cropped.pth", G, args=trained | {"crop_size": 8})
    with pytest.raises(utils.UserError, match="crop8"):  # its own data set
        evaluated(capsys, tmp_path / "cropped.pth", "--dataset", trained["dataset"])
    assert evaluated(capsys, tmp_path / "cropped.pth", "--dataset", "small")["coverage"] > 0.99


# Evaluates each of the command lines in sys.argv[1], a JSON list, in one process group, and prints a JSON list.
@pytest.mark.slow
def test_ranks_give_the_metrics_of_one_process(run, samples, files, tmp_path, capsys):
    """Two processes, batches of 7 and 64: running, batch and standing statistics, a folder, a reference from files."""
    npz, folder = str(samples / "samples.npz"), str(samples / "images")
    checkpoint = [str(run), "--seed", "0", "--bn_batch_size", "20"]
    commands = [[*checkpoint, "--num_inception_images", "149", "--bn_mode", mode.bn_mode] for mode in MODES]
    commands += [[folder, *files], [npz, folder, *files, "--num_inception_images", "121"]]
    commands += [[*checkpoint, "--intra_fid"]]
    single = [evaluated(capsys, *command, "--metric_batch_size", 64) for command in commands]
    of_ranks = [[*command, "--metric_batch_size", "7", "--device", "cpu"] for command in commands]
    clean_forks.run_ranks(tmp_path, "evaluate_on_ranks", "evaluate_all", of_ranks, str(tmp_path / "results.json"))
    for one, two in zip(single, json.loads((tmp_path / "results.json").read_text()), strict=True):
        close(one, two, without=() if "accuracy" in one else ("accuracy",))
        assert one.get("intra_fd_per_class", {}) == pytest.approx(two.get("intra_fd_per_class", {}), rel=1e-4)


@pytest.mark.filterwarnings("ignore:fd of 2 images")
def test_bad_input_is_one_line(run, samples, data_root, files, tmp_path, G, capsys):
    nameless = save_checkpoint(tmp_path / "nameless.pth", G, args={})
    npz, statistics = samples / "samples.npz", data_root / "small_classifier_native_reference.npz"
    np.savez(tmp_path / "wide.npz", np.zeros((20, 16, 32, 3), dtype=np.uint8))
    (tmp_path / "torn.npz").write_bytes(npz.read_bytes()[:2000])
    shutil.copytree(samples / "images", tmp_path / "images")
    next((tmp_path / "images").rglob("*.png")).write_bytes(b"torn")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    for file in (samples / "images").rglob("*.png"):
        shutil.copy(file, tmp_path / "flat")
    for arguments, words in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([nameless], "--dataset"),
        ([run, "--dataset", "other"], "calculate_inception_moments.py --dataset other"),
        ([run, "--data_root", tmp_path], "calculate_inception_moments.py"),
        ([run, "--num_inception_images", "2"], "2"),
        ([npz], "name a --dataset"),
        ([npz, data_root / "small.hdf5", "--feature_network", "classifier"], "name a --dataset"),
        ([npz, *files, "--num_inception_images", "151"], "150 images"),
        ([npz, *files, "--truncation_sweep", "0.5", "1", "0.1"], "no checkpoint"),
        ([npz, "nowhere", *files], "nowhere"),
        ([npz, tmp_path / "wide.npz", *files], "16x16"),
        ([tmp_path / "wide.npz", *files], "16x16"),
        ([statistics, *files], "second SOURCE"),
        ([tmp_path / "torn.npz", *files], "torn.npz"),
        ([tmp_path / "images", *files], "cannot be read as an image"),
        ([tmp_path / "empty", *files], "no images"),
        ([tmp_path / "flat", *files, "--intra_fid"], "does not say which class"),
        ([npz, tmp_path / "flat", *files, "--intra_fid"], "does not say which class"),
        ([npz, samples / "images", *files, "--reference_num", "50"], "--reference_num: .*images is what to compare"),
        ([run, npz, "--reference_file", statistics], "--reference_file: .*samples.npz is what to compare"),
        ([npz, *files, "--truncation", "0.5"], "--truncation: .*samples.npz is no checkpoint"),
        ([npz, statistics, *files, "--kid_subset_size", "1"], "--kid_subset_size 1"),
        ([npz, statistics, *files, "--prdc_memory_mb", "1"], "PRDC of .* features needs"),
        ([npz, samples / "images", *files, "--num_inception_images", "3"], "at least 10"),
        ([run, "--intra_fid", "--dataset", "other"], "other.hdf5"),
        ([run, "--truncation", "-1"], "--truncation -1.0: must be positive"),
    ):
        with pytest.raises(utils.UserError, match=words) as caught:
            evaluate.main([*map(str, arguments), "--device", "cpu"])
        assert "\n" not in str(caught.value)
    wrong = ["--truncation x", "--num_inception_images 0", "--dataste x", "--truncation_sweep 1 x 2", "--bn_mode none"]
    capsys.readouterr()
    for flags in [f"{run} {flags}" for flags in wrong] + ["--json", "a b c"]:
        with pytest.raises(SystemExit) as caught:
            evaluate.main(flags.split())
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_names_no_file_that_is_run(G, data_root, tmp_path):
    """TorchScript runs its code on loading: only a file that the user has named may be one."""

    class Network(torch.nn.Module):
        def forward(self, x):
            return x

    torch.jit.save(torch.jit.script(Network()), str(tmp_path / "network.pt"))
    flags = {"dataset": "small", "data_root": str(data_root), "feature_network": "inception_tf"}
    flags["inception_weights"] = str(tmp_path / "network.pt")
    save_checkpoint(tmp_path / "best_00000001.pth", G, args=flags)
    with mock.patch("torch.jit.load", side_effect=AssertionError("was run")):
        words = "best_00000001.pth takes the feature network from .*network.pt.* name it with --inception_weights"
        with pytest.raises(utils.UserError, match=words):
            evaluate.main([str(tmp_path / "best_00000001.pth"), "--device", "cpu"])
        with pytest.raises(AssertionError, match="was run"):
            evaluate.main([str(tmp_path / "best_00000001.pth"), *"--device cpu --inception_weights".split(),
                           flags["inception_weights"]])  # fmt: skip
