"""What images there are: folders and zips laid out well and badly, ImageNet, the digits."""

import os
import shutil
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import sources
from image_datasets.decoding import read_pixels


def levels(source):
    """The grey levels of plain images."""
    return [int(read_pixels(image, 2)[0, 0, 0]) for image in source.images]


def refused(message, function, *args, **kwargs):
    with pytest.raises(utils.UserError, match=message) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)


def pack(root, path, method=zipfile.ZIP_DEFLATED, within=""):
    """A zip of what is in `root`, in the order in which no tool would list it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, os.path.join(within, file.relative_to(root)))
    return path


# Folders


def test_folder(photos):
    source = sources.folder_source(photos)
    assert source.class_names == ["cat", "dog"] and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labels.dtype == np.int64 and levels(source) == [0, 10, 20, 50, 60, 70]
    assert source.description.startswith("folder photos: 6 images, 2 class(es), sha256 ")


def test_description_tells_other_images_but_not_another_place(photos, tmp_path, monkeypatch):
    description = sources.folder_source(photos).description
    shutil.move(photos, tmp_path / "elsewhere" / "photos")
    moved = tmp_path / "elsewhere" / "photos"
    assert sources.folder_source(moved).description == description
    monkeypatch.chdir(moved)
    assert sources.folder_source(".").description == description
    (moved / "cat" / "0.png").rename(moved / "cat" / "00.png")
    renamed = sources.folder_source(moved).description
    (moved / "cat" / "00.png").write_bytes(b"of another size")
    assert len({description, renamed, sources.folder_source(moved).description}) == 3


def test_odd_names_links_and_strangers_among_the_images(photos, capsys):
    (photos / "cat").rename(photos / "Großer Käter 猫")
    (photos / "dog" / "0.png").rename(photos / "dog" / "ein Bild – №1.PNG")
    (photos / "dog" / "notes.txt").write_text("?")
    (photos / "readme.md").write_text("?")
    (photos / ".hidden").mkdir()
    (photos / "dog" / "._1.png").write_text("?")
    (photos / "dog" / "loop").symlink_to(photos)
    (photos / "up").symlink_to(photos)
    (photos / "dog" / "self").symlink_to("self")
    (photos / "linked").symlink_to(photos / "dog")
    source = sources.folder_source(photos)
    assert source.class_names == ["Großer Käter 猫", "dog", "linked"]
    assert source.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and levels(source)[3:6] == [60, 70, 50]
    assert "ignored 8 file(s) that are not images: readme.md, up, " in capsys.readouterr().out


def test_file_names_that_are_not_utf8(photos):
    (photos / "cat").rename(photos / "caf\udce9")
    photos = photos.rename(photos.with_name("photos\udcff"))
    source = sources.folder_source(photos)
    assert source.class_names == ["caf\udce9", "dog"] and levels(source) == [0, 10, 20, 50, 60, 70]
    assert source.description.startswith("folder photos\\xff: 6 images")  # printable


def test_imagenet(photos):
    refused("'cat' is not a WordNet id", sources.imagenet_source, photos)
    (photos / "cat").rename(photos / "n02000002")
    (photos / "dog").rename(photos / "n01000001")
    source = sources.imagenet_source(photos)
    assert source.class_names == ["n01000001", "n02000002"] and levels(source)[0] == 50


def test_images_without_classes(photos):
    refused("no class folders; .*--unconditional", sources.folder_source, photos / "cat")
    direct = sources.folder_source(photos / "cat", unconditional=True)
    refused("holds 2 folders", sources.folder_source, photos, unconditional=True)
    shutil.rmtree(photos / "dog")
    refused("--unconditional", sources.folder_source, photos)
    single = sources.folder_source(photos, unconditional=True)
    for source in (direct, single):
        assert source.class_names == ["cat"] and source.labels.tolist() == [0, 0, 0]
        assert levels(source) == [0, 10, 20]


def test_badly_laid_out_folders_are_refused(photos, tmp_path):
    def refuse(message, root):
        refused(message, sources.folder_source, root)
        archive = pack(root, tmp_path / f"{root.name}.zip")  # the same rules there
        refused(message.replace("deep/", "deep.zip/"), sources.folder_source, archive)
        archive.unlink()

    (tmp_path / "empty").mkdir()
    refuse("neither class folders nor images", tmp_path / "empty")
    (photos / "ant").mkdir()
    refuse("class folder .*ant holds no images", photos)
    (photos / "ant").rmdir()
    Image.new("L", (4, 4)).save(photos / "cover.png")
    refuse("beside folders", photos)
    (photos / "cover.png").unlink()
    deep = tmp_path / "deep"
    deep.mkdir()
    photos.rename(deep / "train")
    refused("use --images .*deep/train", sources.folder_source, deep)  # one class, that holds the classes
    shutil.copytree(deep / "train", deep / "val")
    refuse("use --images .*deep/train", deep)
    shutil.rmtree(deep / "val")
    (deep / "train" / "cat" / "more").mkdir()
    refuse("cat holds the folder more among its images", deep / "train")


def test_paths_that_are_no_folder(tmp_path):
    refused("there is no such folder or zip file", sources.folder_source, tmp_path / "nowhere")
    refused("there is no such folder or zip file", sources.folder_source, tmp_path / "nowhere.zip")
    (tmp_path / "file").write_text("?")
    refused("neither a folder nor a zip file", sources.folder_source, tmp_path / "file")


# Zip files


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("within", ["", "photos", "./photos"])
def test_zip_of_folders_is_as_the_folder(photos, tmp_path, method, within):
    folder = sources.folder_source(photos)
    archive = pack(photos, tmp_path / "photos.zip", method, within)
    packed = sources.folder_source(archive)
    assert packed.class_names == folder.class_names and packed.labels.tolist() == folder.labels.tolist()
    assert levels(packed) == levels(folder)
    assert packed.description == folder.description.replace("folder", "zip")
    assert str(packed.images[0]) == os.path.join(archive, within.removeprefix("./"), "cat", "0.png")


def test_folder_within_a_zip(photos, tmp_path):
    archive = pack(photos, tmp_path / "photos.zip", within="data/train")
    refused(r"use --images .*photos.zip/data/train", sources.folder_source, archive)
    assert levels(sources.folder_source(archive / "data" / "train")) == [0, 10, 20, 50, 60, 70]
    single = sources.folder_source(archive / "data" / "train" / "cat", unconditional=True)
    assert levels(single) == [0, 10, 20] and single.class_names == ["cat"]
    refused("no such folder in", sources.folder_source, archive / "val")


def test_what_zip_tools_add_is_skipped(photos, tmp_path, capsys):
    archive = pack(photos, tmp_path / "photos.zip", within="photos")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/photos/cat/._0.png", "?")
        file.writestr("photos/.DS_Store", "?")
        file.writestr("photos/dog/Thumbs.db", "?")
        file.writestr("photos/cat/../../evil.png", "?")
    assert levels(sources.folder_source(archive)) == [0, 10, 20, 50, 60, 70]
    assert "ignored 1 file(s) that are not images: Thumbs.db" in capsys.readouterr().out


def test_names_in_a_zip_that_does_not_say_they_are_utf8(photos, tmp_path):
    (photos / "cat").rename(photos / "Käter")
    archive = pack(photos, tmp_path / "photos.zip")
    assert sources.folder_source(archive).class_names == ["Käter", "dog"]
    content = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # clear the bit that says UTF-8
        for place in [i for i in range(len(content)) if content[i : i + 4] == signature]:
            (value,) = struct.unpack_from("<H", content, place + flags)
            struct.pack_into("<H", content, place + flags, value & ~0x800)
    archive.write_bytes(content)
    assert sources.folder_source(archive).class_names == ["Käter", "dog"]


def test_damaged_and_foreign_zips_are_refused(photos, tmp_path):
    archive = pack(photos, tmp_path / "photos.zip")
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    refused("photos.zip is not a readable zip", sources.folder_source, archive)
    archive.write_bytes(b"")
    refused("photos.zip is not a readable zip", sources.folder_source, archive)
    pack(photos, archive, zipfile.ZIP_BZIP2)
    refused("packed by method 12.*unpack it", sources.folder_source, archive)
    encrypted = bytearray(content)
    for place in [i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"]:
        encrypted[place + 8] |= 1
    archive.write_bytes(encrypted)
    refused("photos.zip is encrypted", sources.folder_source, archive)


def test_damaged_content_of_a_zip_is_an_unreadable_image(photos, tmp_path):
    archive = pack(photos, tmp_path / "photos.zip", zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    source = sources.folder_source(archive)
    content[source.images[1].header + 30 + len("cat/1.png") + 40] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="wrong checksum"):
        source.images[1].read()
    content[source.images[2].header] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged here"):
        source.images[2].read()
    assert read_pixels(source.images[0], 2).max() == 0


# The digits


def test_digits():
    digits = sources.digits_source()
    assert digits.images.shape == (1797, 8, 8) and digits.images.dtype == np.uint8
    assert digits.images.min() == 0 and digits.images.max() == 255 and "CC BY 4.0" in digits.description
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
