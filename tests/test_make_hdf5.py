"""From images of any kind to an HDF5 file: pixels, folders, refusals, and what a failure leaves behind."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import make_hdf5
import utils


@pytest.fixture
def photos(tmp_path):
    """Two classes of three plain images each; class c, image i has grey level 50c + 10i everywhere."""
    root = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 10), (50 * c + 10 * i,) * 3).save(root / name / f"{i}.png")
    return root


def make(images, out, *flags, resolution=8):
    command = ["--dataset", "folder", "--images", images, "--resolution", resolution, "--out", out, "--num_workers", 2]
    make_hdf5.main([str(word) for word in [*command, *flags]])
    return datasets.HDF5Dataset(out)


def refused(message, *args, **kwargs):
    with pytest.raises(utils.UserError, match=message) as error:
        make(*args, **kwargs)
    assert "\n" not in str(error.value)


# Pixels


def test_crop_is_central_and_resizing_antialiased():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    square = Image.fromarray(array[:, 8:40])
    for resolution in (8, 32, 64):
        pixels = make_hdf5.crop_resize(Image.fromarray(array), resolution)
        assert pixels.shape == (3, resolution, resolution) and pixels.dtype == np.uint8
        expected = np.asarray(square.resize((resolution, resolution), Image.Resampling.BICUBIC))
        assert np.array_equal(pixels.transpose(1, 2, 0), expected)
    checkers = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert abs(make_hdf5.crop_resize(checkers, 8).astype(int) - 127).max() <= 2  # aliasing would give 0 or 255
    assert np.array_equal(make_hdf5.crop_resize(square, 32), np.asarray(square).transpose(2, 0, 1))


RGB = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8))
GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_opaque_modes_convert_as_pillow_does(mode):
    image = RGB.convert(mode) if mode != "LAB" else Image.merge("LAB", RGB.split())
    assert np.array_equal(np.asarray(make_hdf5.to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_transparency_is_laid_over_white(mode):
    image = Image.merge("RGBA", [Image.new("L", (3, 1), 100)] * 3 + [Image.fromarray(np.uint8([[0, 128, 255]]))])
    pixels = np.asarray(make_hdf5.to_rgb(image.convert(mode))).astype(int)
    assert abs(pixels - np.array([[[255] * 3, [177] * 3, [100] * 3]])).max() <= 1


def test_transparent_entry_of_a_palette_is_white(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1], [1, 0]]), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=0)
        pixels = make_hdf5.read_pixels(tmp_path / name, 2)
        assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(make_hdf5.read_pixels(tmp_path / name, 4), np.stack([GREY] * 3))


@pytest.mark.parametrize("dtype", [np.dtype("<u2"), np.dtype(">u2"), np.int32])
def test_16_bit_modes(dtype):
    image = Image.fromarray((GREY.astype(np.int32) * 257).astype(dtype))
    assert image.mode.startswith("I")
    assert np.array_equal(np.asarray(make_hdf5.to_rgb(image))[..., 0], GREY)


def test_float_grey(tmp_path):
    for scale in (1, 255):
        Image.fromarray(GREY / np.float32(255) * np.float32(scale)).save(tmp_path / "a.tiff")
        assert np.array_equal(make_hdf5.read_pixels(tmp_path / "a.tiff", 4)[0], GREY)
    for bad in (-1, 256, np.nan):
        Image.fromarray(np.full((4, 4), bad, np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(utils.UserError, match=r"a.tiff .*outside of 0..255"):
            make_hdf5.read_pixels(tmp_path / "a.tiff", 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = Image.fromarray(np.kron(np.uint8([[0, 90], [180, 255]]), np.ones((16, 16), np.uint8)))
    methods = Image.Transpose
    stored = {  # what a camera held that way records
        2: methods.FLIP_LEFT_RIGHT,
        3: methods.ROTATE_180,
        4: methods.FLIP_TOP_BOTTOM,
        5: methods.TRANSPOSE,
        6: methods.ROTATE_90,
        7: methods.TRANSVERSE,
        8: methods.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    image.save(tmp_path / "a.jpg", quality=100, exif=exif)
    pixels = make_hdf5.read_pixels(tmp_path / "a.jpg", 32)
    assert abs(pixels[0].astype(int) - np.asarray(upright)).max() < 5


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert abs(make_hdf5.read_pixels(tmp_path / "a.jpg", 4)[:, 0, 0].astype(int) - [255, 0, 0]).max() < 5


# Files


def test_digits(tmp_path, capsys):
    out = tmp_path / "data" / "digits.hdf5"
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent)])
    digits = datasets.open_dataset("digits_hdf5", out.parent)
    assert isinstance(digits.images, np.ndarray) and digits.images.shape == (1797, 3, 32, 32)
    assert digits.labels.dtype == np.int64 and np.bincount(digits.labels).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    assert digits.images.min() == 0 and digits.images.max() == 255
    assert "CC BY 4.0" in digits.source and "32x32" in digits.crop_resize
    original = np.load(make_hdf5.DIGITS_FILE)["images"] * (255 / 16)
    blocks = digits.images[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.99
    capsys.readouterr()
    before = out.read_bytes()
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent)])
    assert "already there, nothing to do" in capsys.readouterr().out
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent), "--overwrite"])
    assert out.read_bytes() == before


def test_folder(photos, tmp_path):
    dataset = make(photos, tmp_path / "a.hdf5")
    assert dataset.class_names == ["cat", "dog"] and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 10, 20, 50, 60, 70]
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert bool(file.attrs["complete"]) and file["imgs"].chunks is None and file["labels"].dtype == np.int64
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "a.hdf5", "a_doctor.json", "a_doctor.png"}


def test_order_and_file_do_not_depend_on_threads(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(150):
        folder = tmp_path / "images" / f"{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    make(tmp_path / "images", tmp_path / "a.hdf5")
    shutil.move(tmp_path / "images", tmp_path / "elsewhere" / "images")
    make(tmp_path / "elsewhere" / "images", tmp_path / "b.hdf5", "--num_workers", 5)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_odd_names_links_and_strangers_among_the_images(photos, tmp_path, capsys):
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
    dataset = make(photos, tmp_path / "a.hdf5")
    assert dataset.class_names == ["Großer Käter 猫", "dog", "linked"]
    assert dataset.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert "ignored 8 file(s) that are not images: readme.md, up, " in capsys.readouterr().out


def test_file_names_that_are_not_utf8(photos, tmp_path):
    (photos / "cat").rename(photos / "caf\udce9")
    assert make(photos, tmp_path / "a.hdf5").class_names == ["caf\udce9", "dog"]


def test_imagenet(photos, tmp_path):
    flags = ["--images", str(photos), "--data_root", str(tmp_path / "data"), "--batch_size", "256"]
    with pytest.raises(utils.UserError, match="'cat' is not a WordNet id"):
        make_hdf5.main(["--dataset", "I64", *flags])
    (photos / "cat").rename(photos / "n02000002")
    (photos / "dog").rename(photos / "n01000001")
    make_hdf5.main(["--dataset", "I64", *flags])
    dataset = datasets.open_dataset("I64_hdf5", tmp_path / "data")
    assert dataset.path.name == "ILSVRC64.hdf5" and dataset.resolution == 64
    assert dataset.class_names == ["n01000001", "n02000002"] and dataset.images[0, 0, 0, 0] == 50


def test_images_without_classes(photos, tmp_path):
    refused("no class folders; .*--unconditional", photos / "cat", tmp_path / "a.hdf5")
    direct = make(photos / "cat", tmp_path / "a.hdf5", "--unconditional")
    refused("holds 2 folders", photos, tmp_path / "b.hdf5", "--unconditional")
    shutil.rmtree(photos / "dog")
    refused("--unconditional", photos, tmp_path / "b.hdf5")
    single = make(photos, tmp_path / "b.hdf5", "--unconditional")
    for dataset in (direct, single):
        assert (dataset.num_classes, dataset.class_names, len(dataset)) == (1, ["cat"], 3)
    assert torch.equal(direct.read(range(3)), single.read(range(3)))


def test_badly_laid_out_folders_are_refused(photos, tmp_path):
    out = tmp_path / "a.hdf5"
    refused("there is no such folder", tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    refused("neither class folders nor images", tmp_path / "empty", out)
    (photos / "ant").mkdir()
    refused("class folder .*ant holds no images", photos, out)
    (photos / "ant").rmdir()
    Image.new("L", (4, 4)).save(photos / "cover.png")
    refused("beside folders", photos, out)
    (photos / "cover.png").unlink()
    (tmp_path / "deep").mkdir()
    photos.rename(tmp_path / "deep" / "train")
    refused("use --images .*deep/train", tmp_path / "deep", out)  # one class folder, that holds the classes
    shutil.copytree(tmp_path / "deep" / "train", tmp_path / "deep" / "val")
    refused("use --images .*deep/train", tmp_path / "deep", out)
    (tmp_path / "deep" / "train" / "cat" / "more").mkdir()
    refused("cat holds the folder more among its images", tmp_path / "deep" / "train", out)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["truncated.jpg", "truncated.png", "text.png", "empty.jpg", "dangling.png"])
def test_unreadable_images_are_named_and_nothing_is_lost(photos, tmp_path, damage):
    out = tmp_path / "a.hdf5"
    make(photos, out)
    before = out.read_bytes()
    bad = photos / "dog" / damage
    if damage.startswith("truncated"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad)
        bad.write_bytes(bad.read_bytes()[:2000])
    elif damage.startswith("dangling"):
        bad.symlink_to("nowhere.png")
    else:
        bad.write_text("no image" if damage.startswith("text") else "")
    refused(damage, photos, out, "--overwrite")
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "a.hdf5", "a_doctor.json", "a_doctor.png"}


def test_existing_output_is_kept_unless_it_is_the_same(photos, tmp_path, capsys):
    out = tmp_path / "a.hdf5"
    make(photos, out)
    make(photos, out)
    assert "nothing to do" in capsys.readouterr().out
    refused("--overwrite", photos, out, resolution=16)
    Image.new("RGB", (9, 9)).save(photos / "cat" / "new.png")
    refused("made from folder photos: 6 images.*--overwrite", photos, out)
    assert len(make(photos, out, "--overwrite")) == 7
    out.write_text("mine")
    refused("not an HDF5 file; --overwrite", photos, out)
    assert out.read_text() == "mine"


def test_bad_outputs_are_refused(photos, tmp_path, monkeypatch):
    refused("must end in .hdf5", photos, tmp_path / "a.npz")
    (tmp_path / "a.hdf5").mkdir()
    refused("is a folder", photos, tmp_path / "a.hdf5")
    (tmp_path / "file").write_text("")
    refused("cannot write", photos, tmp_path / "file" / "a.hdf5")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    refused("needs 0.00 GB and .* 0.00 GB free", photos, tmp_path / "new" / "a.hdf5")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset folder --images .",
        "--dataset folder --resolution 32",
        "--dataset digits --images .",
        "--dataset I64 --resolution 32",
        "--dataset birds",
        "--dataset folder --images . --resolution 0",
    ],
)
def test_contradicting_flags_end_in_one_line(flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        make_hdf5.main(flags.split())
    assert exit_info.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_fewer_images_than_labels_leave_no_file(tmp_path):
    images = np.zeros((3, 3, 4, 4), np.uint8)
    for count in (0, 2):
        with pytest.raises(ValueError, match="images"):
            make_hdf5.write_hdf5(tmp_path / "a.hdf5", iter(images[:count]), [0, 0, 0], ["a"], "", "")
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time, make_hdf5, utils
real = make_hdf5.read_pixels
def slow(image, resolution):
    print("reading", flush=True)
    time.sleep(0.2)
    return real(image, resolution)
make_hdf5.read_pixels = slow
utils.run_main(make_hdf5.main)
"""


def test_interrupt_leaves_nothing_behind(photos, tmp_path):
    command = [sys.executable, "-c", SLOW, "--dataset", "folder", "--images", str(photos), "--resolution", "8"]
    command += ["--out", str(tmp_path / "out" / "a.hdf5"), "--num_workers", "1"]
    root = Path(make_hdf5.__file__).parent
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in errors and "interrupted" in errors
    assert list((tmp_path / "out").iterdir()) == []
