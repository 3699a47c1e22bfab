"""Instance selection: what is kept, the stored scores, the script, training and statistics on the kept images."""

import json
import multiprocessing
import os
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import calculate_inception_moments
import dataset_doctor
import evaluate
import instance_selection
import train
import utils
from image_datasets import doctor, loading, writing
from image_datasets.image_sets import Subset
from metrics import resizing
from metrics.reference import read_reference, reference_path
from selection import measures
from selection import scores as density_scores
from selection.scores import (
    SelectionOptions,
    class_indices,
    compute_scores,
    keep,
    load_embedding,
    load_scores,
    save_scores,
    scores_key,
)
from selection.selection import make_selection, report, score_sheet
from torch_utils import distributed
from torch_utils.images import to_uint8
from training import run_folder
from training.batches import Batches

CPU = ["--device", "cpu"]
MODEL = "--G_ch 4 --D_ch 4 --G_ch_mult 2-1-1 --D_ch_mult 1-2-2 --G_attn 0 --D_attn 0 --dim_z 8".split()
STEPS = "--device cpu --batch_size 8 --num_D_steps 1 --num_inception_images 40 --test_every 0 --sample_every 0".split()
SELECT = ["--embedding", "classifier", "--density_measure", "gaussian"]
RANKS = distributed.Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """60 images of 3 classes of noise (20 each, of which one is much brighter), the classifier and full statistics."""
    root = tmp_path_factory.mktemp("data")
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 60, (60, 3, 16, 16)) + 40 * labels[:, None, None, None]
    images[30:33] = 255 - images[30:33]
    writing.write_hdf5(root / "made.hdf5", images.astype(np.uint8), labels, ["a", "b", "c"], "made", "none")
    flags = ["--dataset", "made", "--data_root", str(root), "--feature_network", "classifier", *CPU]
    calculate_inception_moments.main([*flags, "--classifier_epochs", "1"])
    return root


@pytest.fixture
def script(data_root, tmp_path, capsys):
    """Runs instance_selection.py; the data and its classifier are links in a folder of the test's own."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("made.hdf5", "made_classifier.pth", "made_classifier_native_reference.npz"):
        os.link(data_root / name, root / name)

    def run(*flags):
        instance_selection.main(["--dataset", "made", "--data_root", str(root), *CPU, *SELECT, *flags])
        return capsys.readouterr().out

    run.root = root
    return run


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def test_keeps_what_lies_above_the_percentile_of_its_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    scores = rng.standard_normal(300) + 10 * labels
    for ratio in (1, 33.3, 50, 90):
        kept = keep(scores, labels, ratio)
        for c in range(4):
            own = scores[labels == c]
            assert np.array_equal(kept[labels == c], own > np.percentile(own, 100 - ratio))
    assert keep(scores, labels, 100).all() and keep(scores, labels, 90).sum() < 300


def test_no_class_becomes_empty():
    labels = np.array([0, 0, 0, 2, 3, 3, 3])
    scores = np.array([1.0, 1.0, 0.0, -5.0, 7.0, 7.0, 7.0])
    assert keep(scores, labels, 50).tolist() == [True, True, False, True, True, True, True]


def test_classes_need_not_be_sorted_nor_complete():
    groups = class_indices(np.array([4, 1, 4, 1, 1]))
    assert [group.tolist() for group in groups] == [[1, 3, 4], [0, 2]]


def test_a_subset_reads_as_the_data_set_does(data_root):
    whole = loading.open_dataset("made", data_root)
    part = Subset(whole, np.array([3, 4, 59]))
    assert len(part) == 3 and part.labels.tolist() == [0, 1, 2] and part.class_names == whole.class_names
    assert torch.equal(part.read([2, 0]), whole.read([59, 3])) and part.labels_at([2, 0]).tolist() == [2, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_scores_are_those_of_each_class_alone(data_root):
    dataset = loading.open_dataset("made", data_root)
    network = load_embedding("classifier", data_root, "made")
    scores = compute_scores(dataset, network, "gaussian", 7, RANKS)
    for c in range(3):
        own = np.flatnonzero(dataset.labels == c)
        expected = measures.gaussian_scores(network(dataset.read(own))[0])
        np.testing.assert_allclose(scores[own], expected.numpy(), rtol=1e-4)
        assert own[scores[own].argmin()] in (30, 31, 32)


def test_unusable_features_are_one_line(data_root):
    dataset = loading.open_dataset("made", data_root)
    network = load_embedding("classifier", data_root, "made")
    for scale, words in ((torch.nan, "not finite"), (1e20, "too large for --density_measure gaussian")):
        network.net.forward = lambda x, scale=scale: (scale * x[:, 0, :, 0].repeat(1, 8), None)
        with pytest.raises(utils.UserError, match=f"class a: its features are {words}"):
            compute_scores(dataset, network, "gaussian", 64, RANKS)


@pytest.mark.slow
def test_the_published_embedding_is_torchvisions(tmp_path, monkeypatch):
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    theirs = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    theirs.fc = torch.nn.Identity()
    args = [tmp_path, "made", tmp_path / "weights.pth"]
    ours, metric = (load_embedding(name, *args) for name in ("inceptionv3", "inception"))
    images = torch.randint(0, 256, (1, 3, 80, 80), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(resizing.bilinear_corners(images))
    torch.testing.assert_close(ours(images)[0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(metric(images)[0], expected, rtol=1e-2)
    assert ours.resize != metric.resize and ours.weights_hash == metric.weights_hash


def test_scores_are_computed_once(script, monkeypatch):
    first = script("--retention_ratio", "50")
    assert "keeps 30 of 60 images (classifier, gaussian); 10 to 10 a class" in first
    with monkeypatch.context() as without:
        without.delattr(density_scores, "compute_scores")
        assert first[first.index("instance selection") :] in script("--retention_ratio", "50")
        assert "keeps 15 of 60" in script("--retention_ratio", "25")

    path = script.root / "made_classifier_gaussian_scores.npz"
    before = path.read_bytes()
    path.write_bytes(before[:200])
    assert "is not a readable file of scores" in script() and path.read_bytes() == before
    network = load_embedding("classifier", script.root, "made")
    content = doctor.examine(loading.open_dataset("made", script.root))["content"]
    key = scores_key(content, network, "gaussian")
    save_scores(path, np.zeros(60), key | {"content": "", "weights_hash": ""})
    assert "made with another content, weights_hash" in script() and path.read_bytes() == before


def test_the_doctor_says_what_is_kept(script, capsys):
    flags = ["--dataset", "made", "--data_root", str(script.root), *SELECT, "--retention_ratio", "25"]
    with pytest.raises(utils.UserError, match="no scores of these images in .* python instance_selection.py --dataset"):
        dataset_doctor.main(flags)
    script()
    dataset_doctor.main(flags)
    assert "keeps 15 of 60 images; 5 to 5 a class" in capsys.readouterr().out
    dataset_doctor.main([*flags, "--json"])
    assert json.loads(capsys.readouterr().out)["kept"] == [5, 5, 5]


def test_the_script_shows_and_tells(script, capsys):
    table = json.loads(script("--retention_ratio", "25", "--json"))
    assert table["kept"] == 15 and [row["kept"] for row in table["classes"]] == [5, 5, 5]
    with np.load(script.root / "made_classifier_gaussian_scores.npz") as file:
        scores = file["scores"]
    dataset = loading.open_dataset("made", script.root)
    with Image.open(script.root / "made_classifier_gaussian_scores.png") as sheet:
        picture = np.asarray(sheet)
    scale, pad, header = 4, 2, 16  # of torch_utils.images.image_grid at 16x16
    left = picture.shape[1] - 11 * (16 * scale + pad) - pad
    assert left > 8 and (picture[:, :left] < 100).any()  # names of the rows
    for column, rank in ((0, -1), (10, 0)):  # of class a: the densest image, and the sparsest
        own = np.flatnonzero(dataset.labels == 0)
        image = dataset.images[own[np.argsort(scores[own])[rank]]]
        x = left + column * (16 * scale + pad) + pad
        tile = picture[header + pad : header + pad + 16 * scale : scale, x : x + 16 * scale : scale]
        assert np.array_equal(tile.transpose(2, 0, 1), image)


def test_any_class_name_is_told_and_shown(data_root):
    dataset = loading.open_dataset("made", data_root)
    scores = np.random.default_rng(0).random(len(dataset))
    plain, _ = score_sheet(dataset, scores)
    dataset.class_names = ["caf\udce9", "two\nlines", "\u732b" * 85]
    selection = make_selection(SelectionOptions(retention_ratio=50, embedding="classifier"), dataset, scores, {})
    assert report(selection).encode().decode().splitlines()[1].startswith(r"fewest of class caf\udce9 (10 of 20)")
    named, classes = score_sheet(dataset, scores)
    assert classes == [0, 1, 2] and named.height == plain.height and named.width > plain.width
    images = 11 * 66 + 2  # pixels of a row, the same in both
    assert np.array_equal(np.asarray(named)[:, -images:], np.asarray(plain)[:, -images:])


def test_the_kept_images_as_a_data_set(script, capsys):
    out = script.root / "kept.hdf5"
    script("--retention_ratio", "50", "--out", str(out))
    written, whole = loading.HDF5Dataset(out), loading.open_dataset("made", script.root)
    with np.load(script.root / "made_classifier_gaussian_scores.npz") as file:
        kept = keep(file["scores"], whole.labels, 50)
    assert np.array_equal(written.images, whole.images[kept]) and np.array_equal(written.labels, whole.labels[kept])
    assert "keeps 30 of 60" in written.source
    with pytest.raises(utils.UserError, match="exists"):
        script("--out", str(out))
    with pytest.raises(utils.UserError, match="the data set itself"):
        script("--out", str(script.root / "made.hdf5"), "--overwrite")


def test_out_has_room_or_nothing_is_scored(script, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    monkeypatch.setattr(instance_selection, "load_scores", None)
    with pytest.raises(utils.UserError, match="out.hdf5 needs 0.00 GB and .* free; make room or change --out"):
        script("--retention_ratio", "50", "--out", str(tmp_path / "out.hdf5"))
    labels = np.array([0] * 10 + [1] * 3 + [3])
    assert SelectionOptions(retention_ratio=50.0).num_kept(labels) == 8
    assert keep(np.arange(14.0), labels, 50).sum() == 7


def test_names_that_are_no_text_are_kept(data_root, tmp_path, capsys):
    """A family file of a name, in a folder of a name, with a class of a name that are not UTF-8."""
    root = tmp_path / os.fsdecode(b"r\xe9")
    root.mkdir()
    named = os.fsdecode(b"caf\xe9")
    with h5py.File(data_root / "made.hdf5") as made, h5py.File(root / f"{named}.hdf5", "w") as file:
        file["imgs"], file["labels"] = made["imgs"][()], made["labels"][()]
        file.attrs["class_names"] = json.dumps([named, "猫" * 85, "b"])
    shutil.copy(data_root / "made_classifier.pth", root / f"{named}_classifier.pth")
    flags = ["--dataset", named, "--data_root", str(root), *CPU, *SELECT, "--retention_ratio", "50"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="backslashreplace")  # as run_main does, under a strict locale
    instance_selection.main([*flags, "--out", str(root / "out.hdf5")])
    assert (root / f"{named}_classifier_gaussian_scores.png").exists()
    kept = loading.open_dataset("out", root)
    assert kept.class_names[0] == named and kept.source.startswith("caf\\xe9; instance selection keeps")
    capsys.readouterr()
    instance_selection.main([*flags, "--json"])
    table = json.loads(capsys.readouterr().out.encode("ascii"))
    assert table["dataset"] == table["classes"][0]["class"] == named


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--retention_ratio", "0"], "percentage above 0"),
        (["--retention_ratio", "nan"], "percentage above 0"),
        (["--embedding", "swav"], "--embedding: invalid choice: 'swav'"),
        (["--density_measure", "kde"], "invalid choice"),
        (
            ["--embedding", "inceptionv3", "--embedding_weights", "nowhere.pth"],
            "--embedding_weights nowhere.pth: no such file",
        ),
        (["--embedding_weights", "some.pth"], "--embedding_weights: the classifier has weights of its own"),
        (["--retention_ration", "4"], "did you mean --retention_ratio"),
        (["--out", "kept.png"], "must end in .hdf5"),
    ],
)
def test_bad_input_is_one_line(script, capsys, flags, words):
    with pytest.raises((SystemExit, utils.UserError)) as stop:
        script(*flags)
    text = str(stop.value) if isinstance(stop.value, utils.UserError) else capsys.readouterr().err.strip()
    assert words in text and "\n" not in text
    assert not list(script.root.glob("*scores*"))


@pytest.mark.parametrize(
    ("embedding", "feature_network", "shared"),
    [
        ("inceptionv3", "inception", True),
        ("resnet50", "resnet50", True),
        ("inceptionv3", "classifier", True),
        ("inceptionv3", "inception_tf", False),
        ("inceptionv3", "resnet50", False),
        ("resnet50", "inception", False),
        ("classifier", "inception", False),
    ],
)
def test_the_metrics_weights_embed_where_they_are_of_that_network(embedding, feature_network, shared):
    def chosen(*flags):
        flags = ["--dataset", "made", "--embedding", embedding, "--feature_network", feature_network, *flags]
        options, _ = train.parse_args([*flags, "--inception_weights", "metrics.pth"])
        return options.selection.weights(options.metrics)

    assert chosen() == ("metrics.pth" if shared else None)
    assert chosen("--embedding_weights", "own.pth") == "own.pth"


def test_missing_weights_of_the_embedding_name_its_flag(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(utils.UserError, match="name it with --embedding_weights"):
        load_embedding("resnet50", tmp_path, "made")


# ---------------------------------------------------------------------------------------------------------------------
# Training and statistics


def test_training_sees_the_kept_images_alone(script, tmp_path, monkeypatch, capsys):
    flags = ["--dataset", "made", "--data_root", str(script.root), "--runs_root", str(tmp_path / "runs")]
    flags += [*MODEL, *STEPS, *SELECT, "--retention_ratio", "50", "--experiment_name", "run"]
    seen, draw = [], Batches.reals
    monkeypatch.setattr(Batches, "reals", lambda *args: seen.append(draw(*args)) or seen[-1])
    train.main([*flags, "--num_epochs", "2"])
    out = capsys.readouterr().out
    assert "keeps 30 of 60 images" in out and "from step 0 to 8 in" in out  # 2 x 30 images in batches of 8
    with np.load(script.root / "made_classifier_gaussian_scores.npz") as file:
        dataset = loading.open_dataset("made", script.root)
        kept = keep(file["scores"], dataset.labels, 50)
    shown = {to_uint8(image).numpy().tobytes() for x, _ in seen for image in x}
    assert shown == {image.tobytes() for image in dataset.images[kept]}

    about = utils.load_json(tmp_path / "runs" / "run" / "config.json")
    assert "30 images of made_rr50_classifier_gaussian, scores " in about["data"]["selection"]
    with pytest.raises(utils.UserError, match="--retention_ratio was 50.0 and is now 40.0"):
        train.main([*flags, "--num_epochs", "3", "--retention_ratio", "40"])
    monkeypatch.setattr(density_scores, "VERSION", 2)
    with pytest.raises(utils.UserError, match="the data's selection was"):
        train.main([*flags, "--num_epochs", "3"])


def test_a_checkpoint_of_before_can_be_resumed():
    about = {"args": {"seed": 0}, "model_config": {"resolution": 16, "n_classes": 3}, "data": {"num_images": 60}}
    now = about | {"data": {"num_images": 60, "selection": None}}
    run_folder.check_same_run({"step": 1, **about}, now, set())


def test_statistics_of_the_kept_images(script, tmp_path, capsys):
    network = [
        "--dataset",
        "made",
        "--data_root",
        str(script.root),
        "--device",
        "cpu",
        "--feature_network",
        "classifier",
    ]
    calculate_inception_moments.main([*network, *SELECT, "--retention_ratio", "50"])
    out = capsys.readouterr().out
    assert "keeps 30 of 60 images" in out and "made_rr50_classifier_gaussian: 30 images" in out
    name = "made_rr50_classifier_gaussian"
    path = reference_path(script.root, name, "classifier", "native")
    part = read_reference(path)
    full = read_reference(path.with_name("made_classifier_native_reference.npz"))
    assert part.protocol.num_images == 30 and full.protocol.num_images == 60
    assert "30 images of made_rr50" in part.protocol.selection and full.protocol.selection is None
    assert part.protocol.weights_hash == full.protocol.weights_hash

    runs = ["--runs_root", str(tmp_path / "runs"), *MODEL, *STEPS, "--test_every", "1", "--num_iters", "1"]
    train.main([*network, *runs, "--reference_file", str(path), "--experiment_name", "run"])
    whole = str(path.with_name("made_classifier_native_reference.npz"))
    for flags, reference in (([], name), (["--reference_file", whole], "made")):
        capsys.readouterr()
        evaluate.main([str(tmp_path / "runs" / "run"), "--json", *CPU, *flags])
        assert json.loads(capsys.readouterr().out)["protocol"]["reference"] == reference


def test_a_dry_run_computes_no_scores(script, capsys):
    flags = ["--dataset", "made", "--data_root", str(script.root), *MODEL, *STEPS, "--dry_run"]
    train.main([*flags, *SELECT, "--retention_ratio", "30"])
    assert "keeps about 18 of 60 images (classifier, gaussian)" in capsys.readouterr().out
    assert not list(script.root.glob("*scores*"))
    with pytest.raises(SystemExit):
        train.main([*flags, "--embedding", "places365", "--retention_ratio", "30"])
    assert "--embedding: invalid choice: 'places365'" in capsys.readouterr().err


def _score_as_rank(rank, root):
    os.environ |= dict.fromkeys(utils.TORCHRUN_VARIABLES, "0") | {"RANK": str(rank), "WORLD_SIZE": "2"}
    store = torch.distributed.FileStore(str(root / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    options = SelectionOptions.of(instance_selection.parse_args(["--dataset", "made", *SELECT]))
    dataset = loading.open_dataset("made", root)
    ranks = distributed.Ranks(rank, 2, torch.device("cpu"))
    content = doctor.examine(dataset)["content"]
    scores, _ = load_scores(options, root, dataset, content, ranks, weights=None, batch_size=64)
    np.save(root / f"rank{rank}.npy", scores)


def test_two_processes_score_as_one(script):
    script()
    path = script.root / "made_classifier_gaussian_scores.npz"
    alone = path.read_bytes()
    path.unlink()
    context = multiprocessing.get_context("fork")  # the imports of new processes would take many seconds
    processes = [context.Process(target=_score_as_rank, args=(rank, script.root)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert path.read_bytes() == alone
    with np.load(path) as file:
        for rank in range(2):
            assert np.array_equal(np.load(script.root / f"rank{rank}.npy"), file["scores"])
