"""The command: from images of any kind to an HDF5 file, its refusals, and what Ctrl-C and a kill leave behind."""

import dataclasses
import os
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
from cifar_files import PART, make_files
from PIL import Image, ImageOps

import make_hdf5
import utils
from image_datasets import cifar, decoding, loading, sources, writing


def make(images, out, *flags, resolution=8):
    command = ["--dataset", "folder", "--images", images, "--resolution", resolution, "--out", out, "--num_workers", 2]
    make_hdf5.main([str(word) for word in [*command, *flags]])
    return loading.HDF5Dataset(out)


def refused(message, *args, **kwargs):
    with pytest.raises(utils.UserError, match=message) as error:
        make(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_digits(tmp_path, capsys):
    out = tmp_path / "data" / "digits.hdf5"
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent)])
    digits = loading.open_dataset("digits_hdf5", out.parent)
    assert isinstance(digits.images, np.ndarray) and digits.images.shape == (1797, 3, 32, 32)
    assert digits.labels.dtype == np.int64 and "CC BY 4.0" in digits.source and "32x32" in digits.crop_resize
    original = sources.digits_source().images
    blocks = digits.images[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.99
    capsys.readouterr()
    before = out.read_bytes()
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent)])
    assert "already there, nothing to do" in capsys.readouterr().out
    make_hdf5.main(["--dataset", "digits", "--data_root", str(out.parent), "--overwrite"])
    assert out.read_bytes() == before


def test_folder_and_zip(photos, tmp_path, capsys):
    dataset = make(photos, tmp_path / "a.hdf5")
    assert dataset.class_names == ["cat", "dog"] and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 10, 20, 50, 60, 70]
    assert "a.hdf5: 6 images of 8x8, 0.00 GB of " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "a_doctor.json", "a_doctor.png", "photos"]
    archive = shutil.make_archive(tmp_path / "photos", "zip", tmp_path, "photos")  # with photos/ as its root
    packed = make(archive, tmp_path / "b.hdf5")
    assert np.array_equal(packed.images, dataset.images) and packed.source.startswith("zip photos: 6 images")
    make_hdf5.main(
        ["--dataset", "folder", "--images", archive, "--resolution", "8", "--data_root", str(tmp_path / "d")]
    )
    assert len(loading.open_dataset("photos", tmp_path / "d")) == 6


def test_every_kind_of_careless_input_at_once(photos, tmp_path, capsys):
    """Each makes its right pixels, is passed over, or is left out and reported."""
    dog = photos / "dog"
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(dog / "3 clear.png")
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(dog / "4 palette.png")
    Image.fromarray(np.full((9, 9), 257 * 99, np.uint16)).save(dog / "5 grey16.png")
    Image.new("RGB", (9, 9), "blue").save(dog / "6 Zoë – 猫.png")
    Image.new("RGB", (9, 9), "white").save(os.fsencode(dog) + b"/7 \xe9.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name, format in (("8.jpg", "jpeg"), ("9.png", "png")):
        noise.save(dog / name, format)
        (dog / name).write_bytes((dog / name).read_bytes()[:2000])
    (dog / "a.png").write_text("no image")
    (dog / "b.jpg").write_text("")
    (dog / "c.png").symlink_to("c.png")
    (dog / "d.png").symlink_to("nowhere.png")
    (dog / "loop").symlink_to(photos)
    (dog / "e.txt").write_text("notes")
    (dog / os.fsdecode(b"f \xe9.txt")).write_text("notes")
    dataset = make(photos, tmp_path / "a.hdf5")
    assert dataset.images[6:, :, 4, 4].tolist() == [
        [255, 255, 255],
        [10, 200, 30],
        [99, 99, 99],
        [0, 0, 255],
        [255, 255, 255],
    ]
    assert dataset.labels.tolist() == [0] * 3 + [1] * 8
    out = capsys.readouterr().out
    assert "ignored 3 file(s)" in out and "left out 6 unreadable image(s), listed in" in out
    report = (tmp_path / "a.hdf5.unreadable.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in report] == ["8.jpg", "9.png", "a.png", "b.jpg", "c.png", "d.png"]
    assert "truncated" in report[0] and all(line.split("\t")[1] for line in report)
    make(photos, tmp_path / "a.hdf5")  # the same source still
    out = capsys.readouterr().out
    assert "nothing to do" in out and "6 of them could not be read then" in out
    refused(r"6 image\(s\) cannot be read, more than --max_bad 5", photos, tmp_path / "b.hdf5", "--max_bad", 5)
    assert not (tmp_path / "b.hdf5").exists()


def test_cifar(tmp_path, monkeypatch, capsys):
    pixels, labels = make_files(tmp_path / "data", "C10")
    flags = ["--data_root", str(tmp_path / "data")]
    with pytest.raises(utils.UserError, match="data_batch_1 holds 20 images instead of 10000"):
        make_hdf5.main(["--dataset", "C10", *flags])
    small = dataclasses.replace(cifar.LAYOUTS["C10"], part_images={"train": PART, "test": PART})
    monkeypatch.setitem(cifar.LAYOUTS, "C10", small)
    with pytest.raises(utils.UserError, match="make it with: python make_hdf5.py --dataset C10 --images CIFAR_FOLDER"):
        loading.open_dataset("C10", tmp_path / "data")
    make_hdf5.main(["--dataset", "C10", *flags])
    dataset = loading.open_dataset("C10", tmp_path / "data")
    assert np.array_equal(dataset.images, pixels) and dataset.labels.tolist() == labels.tolist()
    assert dataset.num_classes == 10 and dataset.class_names[9] == "class_9"
    make_hdf5.main(["--dataset", "C10", "--split", "test", "--resolution", "16", *flags])
    test = loading.open_dataset("C10_test", tmp_path / "data")
    assert (len(test), test.resolution) == (PART, 16) and test.path.name == "C10_test.hdf5"


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


def test_imagenet(photos, tmp_path):
    flags = ["--images", str(photos), "--data_root", str(tmp_path / "data"), "--batch_size", "256"]
    with pytest.raises(utils.UserError, match="'cat' is not a WordNet id"):
        make_hdf5.main(["--dataset", "I64", *flags])
    (photos / "cat").rename(photos / "n02000002")
    (photos / "dog").rename(photos / "n01000001")
    make_hdf5.main(["--dataset", "I64", *flags])
    dataset = loading.open_dataset("I64_hdf5", tmp_path / "data")
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


def repaint(photos, keep_times):
    """Make every image of a folder its negative, of the same size in bytes, at its old time or at a new one."""
    for path in photos.glob("*/*.bmp"):
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        ImageOps.invert(Image.open(path).convert("RGB")).save(path)
        os.utime(path, ns=times if keep_times else (times[0], times[1] + 1))


@pytest.mark.parametrize("keep_times", [False, True])
def test_images_that_have_changed_behind_the_same_names_and_sizes(photos, tmp_path, capsys, keep_times):
    for path in photos.glob("*/*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    archive = Path(shutil.make_archive(tmp_path / "packed", "zip", photos))
    before, zipped = make(photos, tmp_path / "a.hdf5"), make(archive, tmp_path / "z.hdf5")
    make(photos, tmp_path / "a.hdf5")
    make(archive, tmp_path / "z.hdf5")
    out = capsys.readouterr().out
    assert "compared: names, sizes and modification times, and the content of 6 of 6 files" in out
    assert "compared: names, sizes and checksums" in out
    content = before.content, zipped.content
    repaint(photos, keep_times)
    shutil.make_archive(tmp_path / "packed", "zip", photos)
    changed = (
        "a.hdf5 exists, .* have changed since .compared: names, sizes and modification.*--overwrite makes it again"
    )
    refused(changed, photos, tmp_path / "a.hdf5")
    refused("z.hdf5 exists, .* have changed since .compared: names, sizes and checksums", archive, tmp_path / "z.hdf5")
    after = make(photos, tmp_path / "a.hdf5", "--overwrite"), make(archive, tmp_path / "z.hdf5", "--overwrite")
    assert content[0] == content[1] != after[0].content == after[1].content
    assert after[0].images[0, 0, 0, 0] == 255


def test_work_on_images_that_have_changed_is_not_gone_on_with(photos, tmp_path, monkeypatch):
    real, calls = decoding.read_pixels, []
    monkeypatch.setattr(decoding, "read_pixels", lambda image, r: calls.append(image) or real(image, r))
    monkeypatch.setattr(decoding, "BLOCK_IMAGES", 1)
    monkeypatch.setattr(writing, "_write_at", lambda *args: calls[3:] and interrupt())
    out = tmp_path / "a.hdf5"
    with pytest.raises(SystemExit):
        make(photos, out)
    monkeypatch.undo()
    os.utime(photos / "cat" / "0.png")
    refused("begun from other images.*--overwrite starts anew", photos, out)
    assert len(make(photos, out, "--overwrite")) == 6


def interrupt():
    raise KeyboardInterrupt


def test_files_of_earlier_versions_are_left_alone(tmp_path, capsys):
    """No stamp, and classes in the order of their names as text."""
    for name in ("0", "1", "2", "10"):
        (tmp_path / "numbers" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 * int(name)).save(tmp_path / "numbers" / name / "a.png")
    new = make(tmp_path / "numbers", tmp_path / "new.hdf5")
    assert new.class_names == ["0", "1", "2", "10"] and new.images[:, 0, 0, 0].tolist() == [0, 10, 20, 100]
    assert new.class_order == "names of the folders as numbers"
    assert "4 classes, in the order of the names of the folders as numbers" in capsys.readouterr().out
    old = tmp_path / "old.hdf5"
    images = new.images[[0, 1, 3, 2]]
    writing.write_hdf5(old, images, [0, 1, 2, 3], ["0", "1", "10", "2"], new.source, new.crop_resize)
    with h5py.File(old, "r+") as file:
        del file.attrs["content"]
    before = old.read_bytes()
    assert make(tmp_path / "numbers", old).class_names == ["0", "1", "10", "2"] and old.read_bytes() == before
    out = capsys.readouterr().out
    assert "nothing to do" in out and "compared: names and sizes, as the file is of before" in out
    assert "classes stay in the order of their names as text, --overwrite orders them as numbers: 0, 1, 2, 10" in out


def test_range(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (2, 8, 8), dtype=np.uint16)
    for name, array in zip("ab", values, strict=True):
        (tmp_path / "deep" / name).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "deep" / name / "0.png")
    dark = make(tmp_path / "deep", tmp_path / "dark.hdf5")
    assert dark.images.max() <= 16
    scaled = make(tmp_path / "deep", tmp_path / "scaled.hdf5", "--range", 0, 4095)
    assert np.array_equal(scaled.images[:, 0], np.rint(values * (255 / 4095)).astype(np.uint8))
    assert scaled.crop_resize.endswith("; values 0 to 4095 as 0 to 255")
    refused("exists, made from .*--overwrite", tmp_path / "deep", tmp_path / "scaled.hdf5")
    make(tmp_path / "deep", tmp_path / "scaled.hdf5", "--range", -1000, 3000, "--overwrite")  # not taken for a flag


@pytest.mark.parametrize("name", ["猫" * 85, "a" * 255, "é" * 127, "\udcff" * 200])
def test_names_as_long_as_a_system_allows(tmp_path, name):
    for i in range(3):
        (tmp_path / name / name[:-1] / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "b").mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(
            tmp_path / name / name[:-1] / "images" / f"{name[: -6 if name[0] == 'a' else -2]}{i}.png"
        )
    (tmp_path / name / "b" / "broken.png").write_text("?")
    Image.new("L", (8, 8), 9).save(tmp_path / name / "b" / "0.png")
    make_hdf5.main(
        ["--dataset", "folder", "--images", str(tmp_path / name), "--resolution", "8", "--data_root", str(tmp_path)]
    )
    (out,) = tmp_path.glob("*.hdf5")
    dataset = loading.HDF5Dataset(out)
    assert sorted(dataset.class_names) == sorted([name[:-1], "b"]) and len(dataset) == 4
    assert dataset.read_paths()[-1 if name[0] > "b" else 0].startswith(f"{name[:-1]}/images/{name[:5]}")
    with pytest.raises(utils.UserError, match="its name has .* bytes; choose one of 160 at most"):
        make(tmp_path / name, tmp_path / f"{'a' * 170}.hdf5")


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
        "--dataset I64 --split test",
        "--dataset C10 --unconditional",
        "--dataset C10 --split val",
        "--dataset folder --images . --resolution 8 --max_bad -1",
        "--dataset birds",
        "--dataset digits --range 5 5",
        "--dataset digits --range 5 nan",
        "--dataset digits --range 0 inf",
        "--dataset digits --range 5",
        "--dataset folder --images . --resolution 0",
    ],
)
def test_contradicting_flags_end_in_one_line(flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        make_hdf5.main(flags.split())
    assert exit_info.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "prepare_data_cifar.sh",
            ["make_hdf5.py --dataset C10 --images {root}/data --data_root {root}/data", "--dataset C10 --data_root"],
        ),
        (
            "prepare_data_cifar.sh 100 here",
            ["make_hdf5.py --dataset C100 --images {root}/here --data_root {root}/data", "--dataset C100 --data_root"],
        ),
        (
            "prepare_data_imagenet_64.sh",
            ["--dataset I64 --images {root}/data/ImageNet --data_root {root}/data", "--dataset I64_hdf5 --data_root"],
        ),
        ("prepare_data_cifar.sh 20", "no CIFAR-20"),
        ("prepare_data_cifar.sh here there", "one folder is enough"),
        ("prepare_data_cifar.sh --dir there", "unknown flag --dir"),
        ("prepare_data_imagenet.sh here", "the first argument is the resolution"),
    ],
)
def test_preparation_scripts(command, expected, tmp_path):
    stub = tmp_path / "python"  # prints what it is called with
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    script, *arguments = command.split()
    path = Path(make_hdf5.__file__).parent / "scripts" / "utils" / script
    done = subprocess.run(
        ["bash", path, *arguments, "--data_root", str(tmp_path / "data")],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
    )
    if isinstance(expected, str):
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1
    else:
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and lines[1].startswith("calculate_inception_moments.py") and len(lines) == 2
        for line, part in zip(lines, expected, strict=True):
            assert part.format(root=tmp_path) in line


SLOW = """
import time, make_hdf5, utils
from image_datasets import decoding
real = decoding.read_pixels
decoding.read_pixels = lambda image, resolution: time.sleep(0.08) or real(image, resolution)
utils.run_main(make_hdf5.main)
"""


@pytest.mark.slow
def test_ctrl_c_and_kill(tmp_path):
    """What a user sees of both, and that the same command then goes on to the same file."""
    rng = np.random.default_rng(0)
    for i in range(300):
        folder = tmp_path / "images" / f"{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    command = [sys.executable, "-c", SLOW, "--dataset", "folder", "--images", str(tmp_path / "images")]
    command += ["--resolution", "8", "--num_workers", "2", "--out"]
    root = Path(make_hdf5.__file__).parent
    processes = {}
    for name in ("interrupted", "killed"):
        out = tmp_path / name / "a.hdf5"
        processes[out] = subprocess.Popen(
            [*command, str(out)], cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    for out, process in processes.items():
        while not Path(f"{out}.journal").exists():
            assert process.poll() is None
            time.sleep(0.01)
    time.sleep(0.2)
    interrupted, killed = processes.values()
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to the decoding processes too
    killed.kill()  # the parent alone: nobody tells the others
    for out, process in processes.items():
        _, errors = process.communicate(timeout=20)  # ends when the last process has closed its stderr
        assert "Traceback" not in errors and not out.exists() and Path(f"{out}.partial").exists()
        assert ("interrupted; the same command goes on where it was" in errors) == (process is interrupted)
    assert (interrupted.returncode, killed.returncode) == (130, -signal.SIGKILL)
    make(tmp_path / "images", tmp_path / "undisturbed.hdf5")
    for out in processes:
        make(tmp_path / "images", out)
        assert out.read_bytes() == (tmp_path / "undisturbed.hdf5").read_bytes()
        assert sorted(os.listdir(out.parent)) == ["a.hdf5", "a_doctor.json", "a_doctor.png"]
