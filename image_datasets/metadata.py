"""Opening images whose metadata are broken: the pixels count, and what cannot be read of the rest is left out.

Pillow refuses some images for chunks that have nothing to do with their pixels: text or a colour profile that unpacks
to more than 1 MB, a wrong checksum of a comment, Exif data that are none. Files that are no images are told for what
they are.
"""

import contextlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from image_datasets.listing import OTHER_FORMATS

ORIENTATION = 0x0112  # the Exif tag: which of these makes the image upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}  # chunks that pixels and their orientation are in
JPEG_START = b"\xff\xd8"
JPEG_PIXELS = {0xE0: (b"JFIF\0", 12), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}  # segments: start, least length
# Tags of TIFF's baseline, of its extensions for tiles, palettes and compression, and the orientation.
TIFF_PIXELS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
TIFF_PIXELS |= {332, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
SNIFFED = 200  # bytes of a file that tell its format
# How files begin that go by the name of an image: formats of listing.py, or what is wrong.
STARTS = {
    "HEIF": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "OpenEXR, HDR": rb"\x76\x2f\x31\x01|#\?RADIANCE",
    "DICOM": rb".{128}DICM",
    "arrays": rb"\x93NUMPY|\x89HDF",
    "drawings and pages": rb"%PDF|%!PS|\s*(<\?xml[^>]*>\s*)?<svg",
    "films": rb"....ftyp(mp4|isom|M4V|qt)|\x1aE\xdf\xa3",
    "archives": rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf",
    "a web page, not an image; download it again": rb"(?i)\s*<(!doctype|html)",
    "a pointer of Git LFS, not the image; git lfs pull fetches it": rb"version https://git-lfs",
    "empty; copy or download it again": rb"\Z",
}


@contextlib.contextmanager
def opened(file: str | os.PathLike | bytes, load: bool = True) -> Iterator[Image.Image]:
    """An image of a path or of a file's content; load: decode its pixels.

    Raises: of a damaged file nearly anything, as Pillow does: OSError, SyntaxError, struct.error ...
    """
    try:
        image = _open(io.BytesIO(file) if isinstance(file, bytes) else file, load)
    except Exception as error:
        image = _open_pixels(file, load)
        if image is None:
            raise _named(error, file) from None
    with image:
        yield image


def _open(file, load):
    image = Image.open(file)
    try:
        if load:
            image.load()
    except BaseException:
        image.close()
        raise
    return image


def _open_pixels(file, load):
    """What is left of an image once its metadata are gone; None where that does not help."""
    with contextlib.suppress(Exception):
        content = _read(file)
        if (pixels := without_metadata(content)) != content:
            return _open(io.BytesIO(pixels), load)
    return None


def _named(error, file):
    """The error, or for what is no image that is read here, one that says what it is and what would help."""
    if not isinstance(error, UnidentifiedImageError):
        return error
    start = _read(file, SNIFFED)
    name = next((name for name, pattern in STARTS.items() if re.match(pattern, start, re.DOTALL)), None)
    if name in OTHER_FORMATS:
        return ValueError(
            f"of a format that is not read here ({name}), whatever its name; {OTHER_FORMATS[name][1]} converts"
        )
    return ValueError(name) if name else error


def _read(file, length=None):
    """The content of a file, given as such or as a path, or its first `length` bytes."""
    if isinstance(file, bytes):
        return file[:length]
    with open(file, "rb") as opened_file:
        return opened_file.read(length)


def upright(image: Image.Image) -> Image.Image:
    """A loaded image turned as its Exif data say, where they can be read; Pillow's own way writes them again."""
    method = UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image once it is upright, from its header alone."""
    # Asked for the Exif data of a PNG without any before its pixels, Pillow would decode these to look behind them.
    # Of a TIFF it gives the size of the upright image.
    known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    turned = known and _orientation(image) in (5, 6, 7, 8)  # height and width change places
    return image.size if turned else image.size[::-1]


def _orientation(image):
    with contextlib.suppress(Exception):  # broken Exif data make Pillow raise nearly anything
        orientation = image.getexif().get(ORIENTATION)
        return orientation if isinstance(orientation, int) else None


def without_metadata(content: bytes) -> bytes:
    """A PNG, JPEG or TIFF file without the parts that say nothing of pixels; any other content as it is."""
    if content.startswith(PNG_START):
        return PNG_START + b"".join(_png_chunks(content))
    if content.startswith(JPEG_START):
        return JPEG_START + b"".join(_jpeg_segments(content))
    if content.startswith((b"II*\0", b"MM\0*")):
        return _tiff_of_pixels(content, "<" if content.startswith(b"II") else ">")
    return content


def _png_chunks(content):
    position = len(PNG_START)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        chunk = content[position:end]
        whole = end <= len(content) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if kind in PNG_PIXELS and (whole or kind != b"eXIf"):  # damaged pixels stay: they are told as such
            yield chunk
        position = end


def _jpeg_segments(content):
    position = len(JPEG_START)
    while position + 4 <= len(content):
        start, marker, length = struct.unpack_from(">BBH", content, position)
        if start != 0xFF or marker == 0xDA:  # the scan: from here on it is pixels
            break
        if marker == 0xFF:  # a byte that fills up
            position += 1
            continue
        data = content[position + 4 : position + 2 + length]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        begins, least = JPEG_PIXELS.get(marker, (b"\0", 1 << 16))
        if not is_metadata or (data.startswith(begins) and len(data) >= least):
            yield content[position : position + 2 + length]
        position += 2 + length
    yield content[position:]


def _tiff_of_pixels(content, order):
    """The file with the other tags of its first directory left out; where anything lies in it stays as it is."""
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    end = start + 2 + 12 * count
    entries = [content[place : place + 12] for place in range(start + 2, end, 12)]
    kept = [entry for entry in entries if _is_of_pixels(*struct.unpack(f"{order}HHI", entry[:8]), entry[8:])]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + content[end : end + 4]
    return content[:start] + directory.ljust(end + 4 - start, b"\0") + content[end + 4 :]


def _is_of_pixels(tag, kind, number, value):
    if tag == ORIENTATION:  # a short, as libtiff wants it
        return (kind, number) == (3, 1) and max(value[:2]) in range(1, 9)
    return tag in TIFF_PIXELS
