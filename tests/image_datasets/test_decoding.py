"""From files to pixels: image modes, crop and resize, and the processes that do it."""

import itertools
import multiprocessing
import os
import signal
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import decoding


def test_crop_is_central_and_resizing_antialiased():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    square = Image.fromarray(array[:, 8:40])
    for resolution in (8, 32, 64):
        pixels = decoding.crop_resize(Image.fromarray(array), resolution)
        assert pixels.shape == (3, resolution, resolution) and pixels.dtype == np.uint8
        expected = np.asarray(square.resize((resolution, resolution), Image.Resampling.BICUBIC))
        assert np.array_equal(pixels.transpose(1, 2, 0), expected)
    checkers = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert abs(decoding.crop_resize(checkers, 8).astype(int) - 127).max() <= 2  # aliasing would give 0 or 255
    assert np.array_equal(decoding.crop_resize(square, 32), np.asarray(square).transpose(2, 0, 1))


RGB = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8))
GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_opaque_modes_convert_as_pillow_does(mode):
    image = RGB.convert(mode) if mode != "LAB" else Image.merge("LAB", RGB.split())
    assert np.array_equal(np.asarray(decoding.to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_transparency_is_laid_over_white(mode):
    image = Image.merge("RGBA", [Image.new("L", (3, 1), 100)] * 3 + [Image.fromarray(np.uint8([[0, 128, 255]]))])
    pixels = np.asarray(decoding.to_rgb(image.convert(mode))).astype(int)
    assert abs(pixels - np.array([[[255] * 3, [177] * 3, [100] * 3]])).max() <= 1


def test_transparent_entry_of_a_palette_is_white(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1], [1, 0]]), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=0)
        pixels = decoding.read_pixels(tmp_path / name, 2)
        assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(decoding.read_pixels(tmp_path / name, 4), np.stack([GREY] * 3))


@pytest.mark.parametrize("dtype", [np.dtype("<u2"), np.dtype(">u2"), np.int32])
def test_16_bit_modes(dtype):
    image = Image.fromarray((GREY.astype(np.int32) * 257).astype(dtype))
    assert image.mode.startswith("I")
    assert np.array_equal(np.asarray(decoding.to_rgb(image))[..., 0], GREY)


def test_float_grey(tmp_path):
    for scale in (1, 255):
        Image.fromarray(GREY / np.float32(255) * np.float32(scale)).save(tmp_path / "a.tiff")
        assert np.array_equal(decoding.read_pixels(tmp_path / "a.tiff", 4)[0], GREY)
    for bad in (-1, 256, np.nan):
        Image.fromarray(np.full((4, 4), bad, np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(ValueError, match=r"outside of 0..255"):
            decoding.read_pixels(tmp_path / "a.tiff", 4)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_of_a_range_become_0_to_255(tmp_path, dtype):
    values = np.array([[0, 100, 2000], [3000, 5000, 4095]], dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    grey = np.asarray(decoding.read_rgb(tmp_path / "a.tif", (100, 3000)))
    assert np.array_equal(
        grey, np.rint((values.astype(float).clip(100, 3000) - 100) * 255 / 2900)[..., None].repeat(3, 2)
    )


def test_a_range_of_colours_leaves_transparency_alone():
    image = Image.merge(
        "RGBA", [Image.new("L", (3, 1), 10), *[Image.new("L", (3, 1), 20)] * 2, Image.new("L", (3, 1), 128)]
    )
    assert np.asarray(decoding.to_rgb(image.convert("RGB"), (0, 20)))[0, 0].tolist() == [128, 255, 255]
    white = np.asarray(decoding.to_rgb(image, (0, 20)))[0, 0].astype(int)
    assert abs(white - [191, 255, 255]).max() <= 1
    palette = image.convert("RGB").quantize(2)
    assert np.asarray(decoding.to_rgb(palette, (0, 20)))[0, 0, 1] > 200


def test_what_cannot_be_scaled_is_said(tmp_path):
    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert decoding.read_pixels(tmp_path / "a.png", 4).max() == 0
    with pytest.raises(ValueError, match="colours of 16 bits"):
        decoding.read_pixels(tmp_path / "a.png", 4, (0, 4095))
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="NaN"):
        decoding.read_pixels(tmp_path / "a.tif", 4, (0, 1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_range_reaches_every_process(num_workers):
    pixels, _, _ = decoded(arrays(40), num_workers=num_workers, value_range=(0, 51))
    assert np.array_equal(pixels, np.stack([decoding.read_pixels(image, 4, (0, 51)) for image in arrays(40)]))


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
    pixels = decoding.read_pixels(tmp_path / "a.jpg", 32)
    assert abs(pixels[0].astype(int) - np.asarray(upright)).max() < 5


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert abs(decoding.read_pixels(tmp_path / "a.jpg", 4)[:, 0, 0].astype(int) - [255, 0, 0]).max() < 5


# Many images


def arrays(number, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (number, 6, 5, 3), dtype=np.uint8))


def decoded(images, **kwargs):
    """All pixels, (index, reason) of the unreadable, and where the blocks end."""
    blocks = [(block.pixels.copy(), block.unreadable, block.stop) for block in decoding.decode(images, 4, **kwargs)]
    pixels, unreadable, stops = zip(*blocks, strict=True)
    return np.concatenate(pixels), list(itertools.chain(*unreadable)), stops


@pytest.mark.parametrize("start", [0, 61])
def test_pixels_do_not_depend_on_the_number_of_processes(start):
    images = arrays(200)
    expected = np.stack([decoding.read_pixels(image, 4) for image in images[start:]])
    for num_workers in (1, 2, 7):
        pixels, unreadable, stops = decoded(images, num_workers=num_workers, start=start)
        assert np.array_equal(pixels, expected) and unreadable == []
        assert stops[-1] == len(images) and list(stops) == sorted(stops)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_unreadable_images_leave_no_gap(num_workers, tmp_path):
    images = arrays(100)
    (tmp_path / "text.png").write_text("no image")
    bad = {0: tmp_path / "text.png", 50: "/nowhere.png", 51: np.zeros((2, 2, 7), np.uint8), 99: tmp_path}
    mixed = [bad.get(i, image) for i, image in enumerate(images)]
    pixels, unreadable, _ = decoded(mixed, num_workers=num_workers)
    readable = [decoding.read_pixels(image, 4) for i, image in enumerate(images) if i not in bad]
    assert np.array_equal(pixels, np.stack(readable))
    reasons = dict(unreadable)
    assert list(reasons) == list(bad) and reasons[0] == "not an image, or of an unknown format"
    assert reasons[50] == "No such file or directory" and reasons[99] == "Is a directory" and reasons[51]


def test_the_work_is_done_by_other_processes(monkeypatch):
    monkeypatch.setattr(decoding, "read_pixels", lambda image, resolution: np.full((3, 4, 4), os.getpid() % 251))
    pixels, _, _ = decoded(arrays(200), num_workers=3)
    assert os.getpid() % 251 not in pixels and 1 <= len(np.unique(pixels)) <= 3


def test_a_killed_process_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(decoding, "read_pixels", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(utils.UserError, match="a decoding process was killed"):
        decoded(arrays(64), num_workers=2)


def _decode_slowly(pipe):
    decoding.read_pixels = lambda *args: pipe.send(os.getpid()) or time.sleep(60)
    decoded(arrays(64), num_workers=2)


def test_no_process_outlives_a_killed_parent():
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=_decode_slowly, args=(sender,))
    parent.start()
    children = {receiver.recv(), receiver.recv()}
    assert len(children) == 2 and parent.pid not in children
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 5
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "left behind"
        time.sleep(0.01)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
