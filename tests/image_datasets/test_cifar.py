"""CIFAR's files in both versions, as folders and as archives; here with a few images per file instead of thousands."""

import dataclasses
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from cifar_files import PART, make_files, pickled

import utils
from image_datasets import cifar


def test_sizes_of_the_real_files():
    sizes = {
        (dataset, split): len(parts) * layout.part_images[split]
        for dataset, layout in cifar.LAYOUTS.items()
        for split, parts in layout.parts.items()
    }
    assert sizes == {("C10", "train"): 50000, ("C100", "train"): 50000, ("C10", "test"): 10000, ("C100", "test"): 10000}


@pytest.fixture
def few_images(monkeypatch):
    for dataset, layout in cifar.LAYOUTS.items():
        small = dataclasses.replace(layout, part_images={"train": PART, "test": PART})
        monkeypatch.setitem(cifar.LAYOUTS, dataset, small)


def refused(message, *args):
    with pytest.raises(utils.UserError, match=message) as error:
        cifar.cifar_source(*args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("archives", [False, True])
@pytest.mark.parametrize("dataset", ["C10", "C100"])
def test_both_versions_hold_the_same(few_images, tmp_path, dataset, archives):
    pixels, labels = make_files(tmp_path, dataset, archives)
    layout = cifar.LAYOUTS[dataset]
    python, binary = [(layout.python_folder, layout.binary_folder), (layout.python_archive, layout.binary_archive)][
        archives
    ]
    sources = [
        cifar.cifar_source(dataset, where, "train") for where in (tmp_path, tmp_path / python, tmp_path / binary)
    ]
    shutil.rmtree(tmp_path / python) if not archives else (tmp_path / python).unlink()
    sources.append(cifar.cifar_source(dataset, tmp_path, "train"))  # only the binary version is left
    for source in sources:
        assert np.array_equal(np.stack(list(source.images)).transpose(0, 3, 1, 2), pixels)
        assert source.labels.tolist() == labels.tolist() and source.labels.dtype == np.int64
        assert source.class_names == [f"class_{y}" for y in range(layout.num_classes)]
        assert source.description == sources[0].description
    assert f"{layout.title} train: {len(pixels)} images" in sources[0].description
    test = cifar.cifar_source(dataset, tmp_path, "test")
    assert len(test.images) == PART and test.description != sources[0].description


def test_pickles_of_python_3(few_images, tmp_path):
    pixels, labels = make_files(tmp_path, "C100")
    folder = tmp_path / "cifar-100-python"
    for protocol in (2, 4):
        with open(folder / "train", "wb") as file:
            pickle.dump({b"data": pixels.reshape(-1, 3072), b"fine_labels": labels.tolist()}, file, protocol)
        source = cifar.cifar_source("C100", tmp_path, "train")
        assert np.array_equal(source.images.transpose(0, 3, 1, 2), pixels) and source.labels.tolist() == labels.tolist()


def test_a_pickle_runs_nothing(few_images, tmp_path):
    make_files(tmp_path, "C10")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    refused("data_batch_2 is damaged or no CIFAR file .it asks for os.system", "C10", tmp_path, "train")
    assert not (tmp_path / "ran").exists()


def test_missing_files(few_images, tmp_path):
    refused("holds neither cifar-10-batches-py nor .*cifar-10-binary.tar.gz; .*--images", "C10", tmp_path, "train")
    make_files(tmp_path, "C10")
    refused("holds neither cifar-100-python", "C100", tmp_path, "train")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    refused("cannot read .*data_batch_3: No such file", "C10", tmp_path, "train")
    assert len(cifar.cifar_source("C10", tmp_path, "test").images) == PART
    (tmp_path / "other.tar.gz").write_bytes(b"")
    refused("other.tar.gz is none of", "C10", tmp_path / "other.tar.gz", "train")


def test_damaged_archives(few_images, tmp_path):
    make_files(tmp_path, "C10", archives=True)
    for name in ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"):
        archive = tmp_path / name
        content = archive.read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"no archive", content[:5000] + b"\0" * 9 + content[5009:]):
            archive.write_bytes(damaged)
            refused(f"{name} is damaged or truncated", "C10", archive, "train")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(__file__, "cifar-10-batches-py/data_batch_1")
        refused(f"{name} has no ", "C10", archive, "train")


@pytest.mark.parametrize("dataset", ["C10", "C100"])
def test_files_of_wrong_length_or_content(few_images, tmp_path, dataset):
    make_files(tmp_path, dataset)
    layout = cifar.LAYOUTS[dataset]
    last = layout.parts["train"][-1]
    python = tmp_path / layout.python_folder / last
    rows, labels = np.zeros((PART, 3072), np.uint8), [0] * PART
    for bad in (-1, 2**32 - 1, 2**70, 1.5, None, [1, 2], "cat", True):
        pickled({"data": rows, layout.labels_key: [*labels[1:], bad]}, python)
        refused(f"{last}: labels must lie in 0..{layout.num_classes - 1}", dataset, tmp_path, "train")
    for message, batch in {
        "labels must lie in": {"data": rows, layout.labels_key: [*labels[1:], layout.num_classes]},
        "holds 19 images instead of 20": {"data": rows[1:], layout.labels_key: labels[1:]},
        "a row for each label": {"data": rows[1:], layout.labels_key: labels},
        "'data' must be uint8": {"data": rows.astype(np.float32), layout.labels_key: labels},
        f"has no 'data' and '{layout.labels_key}'": {"data": rows, "other_labels": labels},
        "is damaged or no CIFAR file": [1, 2],
    }.items():
        pickled(batch, python)
        refused(f"{last}.*{message}", dataset, tmp_path, "train")
    python.write_bytes(python.read_bytes()[:-3])
    refused(f"{last} is damaged", dataset, tmp_path, "train")
    shutil.rmtree(tmp_path / layout.python_folder)
    binary = tmp_path / layout.binary_folder / f"{last}.bin"
    content = binary.read_bytes()
    binary.write_bytes(content[:-1])
    refused(f"{last}.bin is truncated", dataset, tmp_path, "train")
    binary.write_bytes(content[: len(content) // 2])
    refused(f"{last}.bin holds 10 images instead of 20", dataset, tmp_path, "train")
    binary.write_bytes(content)
    (tmp_path / layout.binary_folder / layout.binary_meta).write_text("a\nb\n")
    refused("names 2 classes", dataset, tmp_path, "train")
