"""Of which class an image is: StyleGAN's dataset.json, Tiny ImageNet's two layouts, folders named by numbers."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import layouts, sources
from image_datasets.decoding import read_pixels

NAMES = [f"0000{i // 3}/img{i:08}.png" for i in range(6)]  # three images in a folder
ROOT = Path(__file__).parents[2]
CLASSES = [2, 0, 0, 1, 2, 0]


def draw(root, names):
    """A plain image for each name, the i-th of grey level 10 i."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * i).save(root / name)
    return root


def levels(source):
    return [int(read_pixels(image, 2)[0, 0, 0]) for image in source.images]


def refused(words, path, **kwargs):
    with pytest.raises(utils.UserError) as error:
        sources.folder_source(path, **kwargs)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.fixture
def stylegan(tmp_path):
    """Puts a dataset.json with these labels beside the images: call it."""
    root = draw(tmp_path / "made", NAMES)

    def label(labels, content=None):
        (root / "dataset.json").write_text(json.dumps({"labels": labels}) if content is None else content)
        return root

    return label


def packed(root):
    """A zip of a folder, as StyleGAN's tools make it: dataset.json at its root."""
    return shutil.make_archive(root, "zip", root)


def test_dataset_json_labels_images_of_a_folder_and_of_a_zip(stylegan, tmp_path):
    pairs = [[name, y] for name, y in zip(NAMES, CLASSES, strict=True)][::-1]
    for labels in (pairs, dict(pairs), [[name.replace("/", "\\"), float(y)] for name, y in pairs]):
        root = stylegan(labels)
        for path in (root, packed(root)):
            source = sources.folder_source(path)
            assert source.class_names == ["0", "1", "2"] and source.labels.tolist() == CLASSES
            assert source.paths == NAMES and levels(source) == [0, 10, 20, 30, 40, 50]
            assert source.class_order == "class ids of dataset.json"
    draw(root, ["00001/img00000009.jpg"])  # a folder around everything, as zip tools pack it
    (root / "00001" / "img00000009.jpg").unlink()
    shutil.move(root, tmp_path / "outer" / "made")
    assert sources.folder_source(shutil.make_archive(tmp_path / "outer", "zip", tmp_path / "outer")).paths == NAMES


def test_other_labels_are_another_source(stylegan):
    pairs = [list(pair) for pair in zip(NAMES, CLASSES, strict=True)]
    first = sources.folder_source(stylegan(pairs)).description
    pairs[0][1] = 1
    assert sources.folder_source(stylegan(pairs)).description != first


def test_labels_that_cannot_be_right_are_one_line(stylegan):
    pairs = [list(pair) for pair in zip(NAMES, CLASSES, strict=True)]
    for labels in (None, [], {}):
        refused(["dataset.json", "no labels", "--unconditional"], stylegan(labels))
    refused(["dataset.json labels 5 of 6", NAMES[5], "--unconditional"], stylegan(pairs[:5]))
    refused(["dataset.json labels 0 of 6"], stylegan([["elsewhere.png", 0]]))
    for bad in ("cat", None, 1.5, True, [0, 1, 0]):
        refused(["dataset.json", "whole class id", json.dumps(bad), NAMES[0]], stylegan([[NAMES[0], bad], *pairs[1:]]))
    for absurd in (2**32 - 1, 2**31, 2**70, 65535):
        refused(["dataset.json", str(absurd), "no class id"], stylegan([[NAMES[0], absurd], *pairs[1:]]))
    refused(["go down to -1", "start at 0"], stylegan([[NAMES[0], -1], *pairs[1:]]))
    refused(["two classes, 2 and 1"], stylegan([*pairs, [NAMES[0], 1]]))
    for form in (7, "text", [1, 2], [[1, 2, 3]]):
        refused(["list of [file name, class id]"], stylegan(form))
    refused(["dataset.json is no readable JSON", "repair"], stylegan(None, '{"labels": [['))
    refused(["dataset.json is no readable JSON"], packed(stylegan(None, "\x00")))


def test_labels_are_not_needed_without_classes(stylegan, tmp_path):
    pairs = [list(pair) for pair in zip(NAMES, CLASSES, strict=True)]
    for labels in (None, pairs[:2], pairs):
        source = sources.folder_source(stylegan(labels), unconditional=True)
        assert source.class_names == ["made"] and source.labels.tolist() == [0] * 6 and source.paths == NAMES
    (stylegan(None) / "dataset.json").unlink()
    refused(["numbered folders", NAMES[0], "no dataset.json", "--unconditional"], tmp_path / "made")
    assert len(sources.folder_source(tmp_path / "made", unconditional=True).images) == 6


def test_a_list_of_labels_without_images(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "dataset.json").write_text('{"labels": [["0.png", 0]]}')
    for unconditional in (False, True):
        refused(["made holds no images"], tmp_path / "made", unconditional=unconditional)


def test_classes_without_images_are_said_before_anything_is_decoded(stylegan, capsys):
    stylegan_from_one = [[name, y + 1] for name, y in zip(NAMES, CLASSES, strict=True)]
    source = sources.folder_source(stylegan([*stylegan_from_one, ["gone.png", 3]]))
    out = capsys.readouterr().out
    assert source.class_names == ["0", "1", "2", "3"] and source.labels.tolist() == [y + 1 for y in CLASSES]
    assert "dataset.json: 1 of 4 classes have no images: '0'; class ids start at 0, are these counted from 1?" in out
    assert "also labels 1 that are not there" in out


def test_another_dataset_json_is_no_list_of_labels(photos, capsys):
    (photos / "dataset.json").write_text('{"name": "photos"}')
    assert sources.folder_source(photos).class_names == ["cat", "dog"]
    assert "ignored 1 file(s) that are not images: dataset.json (1 .json)" in capsys.readouterr().out


# Tiny ImageNet


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet"
    train = [f"train/{name}/images/{name}_{i}.JPEG" for name in ("n02", "n01") for i in range(2)]
    draw(root, [*train, "test/images/test_0.JPEG", *(f"val/images/val_{i}.JPEG" for i in range(3))])
    for name in ("n01", "n02"):
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    lines = [f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n" for i, name in enumerate(("n02", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn01\n")
    return root


def test_tiny_imagenet(tiny, tmp_path):
    train = sources.folder_source(tiny / "train")
    assert train.class_names == ["n01", "n02"] and train.labels.tolist() == [0, 0, 1, 1]
    assert train.paths[0] == "n01/images/n01_0.JPEG" and levels(train) == [20, 30, 0, 10]
    val = sources.folder_source(tiny / "val")
    assert val.class_names == ["n01", "n02"] and val.labels.tolist() == [1, 0, 1]
    archive = shutil.make_archive(tmp_path / "tiny-imagenet", "zip", tmp_path, "tiny-imagenet")
    for part, source in (("train", train), ("val", val)):
        zipped = sources.folder_source(f"{archive}/tiny-imagenet/{part}")
        assert zipped.labels.tolist() == source.labels.tolist() and zipped.paths == source.paths
    refused([f"use --images {tiny / 'train'}"], tiny)
    refused(["use --unconditional"], tiny / "test")
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:2]))
    refused(["val_annotations.txt labels 2 of 3 images", "val_2.JPEG"], tiny / "val")
    annotations.write_text("val_0.JPEG n01\n")
    refused(["val_annotations.txt", "a tab"], tiny / "val")


def test_a_folder_between_class_and_images(tmp_path):
    for inner in ("images", "JPEGImages", "img"):
        root = draw(tmp_path / inner, [f"{name}/{inner}/{i}.png" for name in "ab" for i in range(2)] + ["c/0.png"])
        (root / "a" / "annotations").mkdir()
        (root / "a" / "annotations" / "0.xml").write_text("?")
        assert sources.folder_source(root).labels.tolist() == [0, 0, 1, 1, 2]
    draw(tmp_path / "domains", ["photo/dog/0.png", "sketch/dog/0.png"])  # these may be the classes or not
    refused(["use --images", "photo"], tmp_path / "domains")
    draw(tmp_path / "parts", ["train/images/0.png", "val/images/0.png"])
    refused(["the parts of a data set (train, val)", "use --images", "parts/train"], tmp_path / "parts")
    refused(["--unconditional"], tmp_path / "parts" / "train")
    assert len(sources.folder_source(tmp_path / "parts" / "train", unconditional=True).images) == 1


# The order of classes


def test_numbers_are_ordered_as_numbers(tmp_path):
    root = draw(tmp_path / "numbers", [f"{name}/a.png" for name in (0, 1, 2, 10, 11)])
    source = sources.folder_source(root)
    assert source.class_names == ["0", "1", "2", "10", "11"] and levels(source) == [0, 10, 20, 30, 40]
    assert source.class_order == layouts.AS_NUMBERS and source.labels.dtype == np.int64
    assert sources.folder_source(packed(root)).class_names == source.class_names
    draw(root, ["x/a.png"])
    source = sources.folder_source(root)
    assert source.class_names == ["0", "1", "10", "11", "2", "x"] and source.class_order == layouts.AS_TEXT


@pytest.mark.slow
def test_names_do_not_depend_on_the_locale(tmp_path):
    """Neither classes, nor what a list of labels says of images of such names, nor what tells the source."""
    root = draw(tmp_path / "ünïcode", ["猫/é.png", "b\udcff/0.png"])
    listed = draw(tmp_path / "listed", ["é.png"])
    (listed / "dataset.json").write_text('{"labels": [["é.png", 0]]}', encoding="utf-8")
    code = "import sys; from image_datasets import sources\nfor s in map(sources.folder_source, sys.argv[1:]): "
    code += "print(ascii([s.description, s.class_names, s.paths, s.stamp]))"
    said = set()
    for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        command = [sys.executable, "-c", code, root, listed]
        done = subprocess.run(command, env=os.environ | locale, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    (lines,) = said
    for folder, line in zip((root, listed), lines.splitlines(), strict=True):
        assert ascii(sources.folder_source(folder).paths) in line


# What is left out, and what systems add


def test_formats_that_are_not_read_are_named_with_a_remedy(photos, capsys):
    for name in ("a.HEIC", "b.heic", "c.jxl", "d.cr2", "e.txt", "f", "g.nii.gz"):
        (photos / "cat" / name).write_text("?")
    sources.folder_source(photos)
    out = capsys.readouterr().out
    assert "left out 5 files of formats that are not read: 2 .heic, 1 .cr2, 1 .jxl, 1 .nii; convert them" in out
    assert "HEIF: heif-convert" in out and "JPEG XL: djxl" in out and "raw data: dcraw" in out and "NIfTI: " in out
    assert "ignored 2 file(s) that are not images: e.txt, f (1 without suffix, 1 .txt)" in out
    for file in photos.glob("cat/*.png"):
        file.unlink()
    refused(["cat holds no images, but 2 .heic", "heif-convert"], photos)
    refused(["neither class folders nor images, but 2 .heic"], photos / "cat")


def test_what_systems_add_is_no_class_and_no_image(photos):
    for name in ("__MACOSX/cat/._0.png", "@eaDir/x.png", "cat/__MACOSX/0.png", "cat/._1.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text("?")
    source = sources.folder_source(photos)
    assert source.class_names == ["cat", "dog"] and len(source.images) == 6


@pytest.mark.parametrize("system", [0, 3])
@pytest.mark.parametrize("prefix", ["", "C:\\photos\\", ".\\"])
def test_backslashes_in_a_zip_made_on_windows(photos, tmp_path, system, prefix):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.glob("*/*.png")):
            entry = zipfile.ZipInfo(f"{prefix}{file.parent.name}\\{file.name}")
            entry.create_system = system
            archive.writestr(entry, file.read_bytes())
        archive.writestr(f"{prefix}empty\\", b"")
    with zipfile.ZipFile(tmp_path / "photos.zip") as archive:
        assert all("/" not in name for name in archive.namelist())
    refused(["empty holds no images"], tmp_path / "photos.zip")
    with zipfile.ZipFile(tmp_path / "photos.zip", "a") as archive:
        archive.writestr(f"{prefix}empty\\0.png", (photos / "cat" / "0.png").read_bytes())
    source = sources.folder_source(tmp_path / "photos.zip")
    assert source.class_names == ["cat", "dog", "empty"] and levels(source) == [0, 10, 20, 50, 60, 70, 0]


def test_a_backslash_in_a_name_of_unix_stays(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.glob("*/*.png")):
            archive.write(file, f"{file.parent.name}/a\\{file.name}")
    assert sources.folder_source(tmp_path / "photos.zip").paths[0] == "cat/a\\0.png"


def test_names_in_unicode_beside_those_of_another_code_page(photos, tmp_path):
    """As Info-ZIP writes them: the name in the system's code page, and in an extra field the real one."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.glob("*/*.png")):
            stored, real = f"{file.parent.name}/{file.name}".encode(), f"{file.parent.name}猫/{file.name}".encode()
            entry = zipfile.ZipInfo(stored.decode())
            field = struct.pack("<BI", 1, zlib.crc32(stored)) + real
            entry.extra = struct.pack("<HH", 0x5455, 1) + b"\1" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(entry, file.read_bytes())
    source = sources.folder_source(tmp_path / "photos.zip")
    assert source.class_names == ["cat猫", "dog猫"] and levels(source) == [0, 10, 20, 50, 60, 70]


def test_names_of_code_page_437(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.glob("*/*.png")):
            archive.write(file, f"{file.parent.name.replace('cat', 'Kxter')}/{file.name}")
    content = (tmp_path / "photos.zip").read_bytes().replace(b"Kxter", "Käter".encode("cp437"))
    (tmp_path / "photos.zip").write_bytes(content)
    assert sources.folder_source(tmp_path / "photos.zip").class_names == ["Käter", "dog"]
