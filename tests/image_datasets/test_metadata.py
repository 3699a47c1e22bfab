"""Broken metadata of good images: the pixels count, for make_hdf5.py and for the folders of evaluate.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import decoding, metadata
from metrics.images import FolderImages

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
SIX = (0x0112, 3, 1, b"\0\x06\0\0")  # orientation 6 as an entry of an Exif block: tag, type, number, value


def encoded(format, **options):
    file = io.BytesIO()
    IMAGE.save(file, format, **options)
    return file.getvalue()


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(*chunks, last=False):
    """A PNG with some chunks more, before or after its pixels."""
    content, place = encoded("png"), -12 if last else 33
    return content[:place] + b"".join(chunks) + content[place:]


def exif(*entries):
    directory = struct.pack(">H", len(entries)) + b"".join(
        struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries
    )
    return b"Exif\0\0MM\0*\0\0\0\x08" + directory + b"\0\0\0\0"


def jpeg(*segments):
    content = encoded("jpeg", quality=95)
    return content[:2] + b"".join(segments) + content[2:]


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


TEXT = zlib.compress(b"a" * 3_000_000)  # more than Pillow unpacks
GOOD = {
    "exif of three bytes": png(chunk(b"eXIf", b"abc")),
    "exif that ends early": png(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff")),
    "exif after the pixels": png(chunk(b"eXIf", b"abc"), last=True),
    "exif of a wrong checksum": png(chunk(b"eXIf", b"MM\0*", 1)),
    "exif as text": png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 10\nzzzz"))),
    "zTXt of 3 MB": png(chunk(b"zTXt", b"k\0\0" + TEXT)),
    "zTXt of 3 MB after the pixels": png(chunk(b"zTXt", b"k\0\0" + TEXT), last=True),
    "iTXt of 3 MB": png(chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT)),
    "profile of 3 MB": png(chunk(b"iCCP", b"k\0\0" + TEXT)),
    "text of 70 MB": png(*(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(10**6))) for i in range(70))),
    "profile of an unknown method": png(chunk(b"iCCP", b"k\0\7junk")),
    "text of a wrong checksum": png(chunk(b"tEXt", b"k\0abc", 1)),
    "pHYs of two bytes": png(chunk(b"pHYs", b"ab")),
    "webp": encoded("webp", lossless=True, exif=b"abc"),
}
GOOD_JPEGS = {
    "short JFIF": jpeg(segment(0xE0, b"JFIF\0")),
    "short Adobe": jpeg(segment(0xEE, b"Adobe")),
    "Photoshop": jpeg(segment(0xED, b"Photoshop 3.0\0008BIM\0")),
    "profile": jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "Exif": jpeg(segment(0xE1, b"Exif\0\0abc")),
}


def both(path):
    """The pixels that make_hdf5.py and evaluate.py see: uint8 (H,W,3) both."""
    ours = np.asarray(decoding.read_rgb(path))
    (theirs,) = FolderImages(path.parent).read(np.array([0])).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ours, theirs)
    return ours


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_pixels_count(tmp_path, name):
    path = tmp_path / f"a.{'webp' if name == 'webp' else 'png'}"
    path.write_bytes(GOOD[name])
    assert np.array_equal(both(path), PIXELS)


@pytest.mark.parametrize("name", GOOD_JPEGS)
def test_pixels_of_a_jpeg_count(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(GOOD_JPEGS[name])
    assert np.array_equal(both(tmp_path / "a.jpg"), np.asarray(Image.open(io.BytesIO(encoded("jpeg", quality=95)))))


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(
    "other",
    [
        (0x011A, 2, 4, b"abc\0"),  # a resolution that is text
        (0x010F, 3, 1, b"\0\1\0\0"),  # a maker that is a number
        (0x8769, 2, 4, b"abc\0"),  # a directory that is text
        (0x8769, 4, 1, b"\xff\xff\xff\xff"),  # ... or outside of the file
        (0x9C9B, 99, 4, b"abc\0"),  # of no known type
    ],
)
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated)")
def test_rotation_is_obeyed_beside_tags_of_a_wrong_type(tmp_path, format, other):
    path = tmp_path / f"a.{format}"
    options = {"lossless": True} if format == "webp" else {"quality": 95} if format == "jpeg" else {}
    for tags in ((SIX, other), (other, SIX)):
        path.write_bytes(encoded(format, exif=exif(*tags), **options))
        stored = np.asarray(Image.open(io.BytesIO(encoded(format, **options))).convert("RGB"))
        assert np.array_equal(both(path), np.rot90(stored, -1))  # (24,16,3)


def test_rotation_is_obeyed_where_other_metadata_are_dropped(tmp_path):
    turned = encoded("png", exif=exif(SIX))
    (tmp_path / "a.png").write_bytes(turned[:33] + chunk(b"zTXt", b"k\0\0" + TEXT) + turned[33:])
    assert np.array_equal(both(tmp_path / "a.png"), np.rot90(PIXELS, -1))
    content = encoded("jpeg", exif=exif(SIX), quality=95)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment(0xE0, b"JFIF\0") + content[2:])
    assert both(tmp_path / "a.jpg").shape == (24, 16, 3)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0", "(HEIF), whatever its name; heif-convert"),
        (b"\xff\x0a\xfa", "(JPEG XL)"),
        (bytes(128) + b"DICM", "(DICOM)"),
        (b'<?xml version="1.0"?>\n<svg>', "rsvg-convert"),
        (b"<!DOCTYPE html><html>", "a web page, not an image; download"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "empty"),
        (b"no image", "not an image, or of an unknown format"),
    ],
)
def test_what_goes_by_the_name_of_an_image_is_told_for_what_it_is(tmp_path, start, words):
    (tmp_path / "a.jpg").write_bytes(start)
    for file in (tmp_path / "a.jpg", start):
        with pytest.raises(Exception) as error, metadata.opened(file):
            pass
        assert words in decoding.reason(error.value)
    with pytest.raises(utils.UserError) as error:
        FolderImages(tmp_path)
    assert "a.jpg" in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "tag",
    [
        (700, 2, 4, b"<x>\0"),  # XMP that is text
        (700, 4, 2, b"\0\0\0\x08"),
        (271, 4, 2**31, b"\xff\xff\xff\x7f"),  # a maker outside of the file
        (274, 9, 1, b"\0\0\0\x06"),  # an orientation of a wrong type
        (34675, 99, 3, b"abc\0"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tags_of_a_tiff(tmp_path, order, tag):
    data, size = PIXELS.tobytes(), PIXELS.nbytes
    tags = [(256, 4, 1, 24), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 3), (278, 4, 1, 16), (279, 4, 1, size), (284, 3, 1, 1)]
    forms = {3: "Hxx", 4: "I"}
    values = [(*about, struct.pack(order + forms[about[1]], value)) for *about, value in tags]
    entries = b"".join(struct.pack(f"{order}HHI", *t[:3]) + t[3] for t in sorted([*values, tag]))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + size)
    content = head + data + struct.pack(f"{order}H", len(tags) + 1) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    turned = tag[:2] == (274, 9) and order == ">"  # Pillow takes it for what it means
    assert np.array_equal(both(tmp_path / "a.tif"), np.rot90(PIXELS, -1) if turned else PIXELS)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_turned_tiff(tmp_path, compression):
    IMAGE.save(tmp_path / "a.tif", compression=compression, tiffinfo={274: 6})
    assert np.array_equal(both(tmp_path / "a.tif"), np.rot90(PIXELS, -1))


def test_damaged_pixels_are_still_damaged():
    for content in (GOOD["zTXt of 3 MB"], GOOD["text of a wrong checksum"], png()):
        pixels = content.index(b"IDAT") + 60
        for damaged in (content[:pixels], content[:pixels] + bytes([content[pixels] ^ 255]) + content[pixels + 1 :]):
            with pytest.raises(Exception), metadata.opened(damaged):  # noqa: B017  (Pillow raises nearly anything)
                pass
    assert metadata.without_metadata(png()) == png() and metadata.without_metadata(b"GIF89a") == b"GIF89a"
