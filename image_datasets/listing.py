"""Which files a folder or a zip holds: those that are images, the folders, and what is left out and why.

Nothing is decoded here, and nothing is known of classes; see `sources.py` for these.
"""

import collections
import dataclasses
import itertools
import os
import re
import struct
import typing
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import utils

IMAGE_SUFFIXES = set(
    ".apng .avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pcx .pgm .png .pnm .ppm "
    ".qoi .tga .tif .tiff .webp".split()
)
# Formats of images that are not read here: their suffixes, and what would turn them into such that are.
OTHER_FORMATS = {
    "HEIF": (".heic .heif .heics .heifs .hif", "heif-convert, ImageMagick or Pillow with pillow-heif"),
    "JPEG XL": (".jxl", "djxl of libjxl"),
    "JPEG XR": (".jxr .wdp", "JxrDecApp"),
    "a camera's raw data": (".arw .cr2 .cr3 .crw .dng .nef .orf .pef .raf .raw .rw2 .srw", "dcraw or rawpy"),
    "DICOM": (".dcm .dicom", "dcm2img of DCMTK or pydicom"),
    "NIfTI": (".nii .mha .mhd .nrrd", "med2image or SimpleITK"),
    "OpenEXR, HDR": (".exr .hdr .pfm", "ImageMagick"),
    "FITS": (".fit .fits .fts", "astropy"),
    "arrays": (".npy .npz .mat .h5 .hdf5", "a few lines of Python with Pillow's Image.fromarray"),
    "drawings and pages": (".ai .eps .pdf .ps .svg .svgz", "rsvg-convert, pdftoppm or ImageMagick"),
    "layers, icons, textures": (".dds .icns .ico .kra .psb .psd .sgi .xcf .xpm", "ImageMagick"),
    "films": (".avi .m4v .mkv .mov .mp4 .mpg .webm .wmv", "ffmpeg -i FILM %06d.png"),
    "archives": (".7z .bz2 .gz .lmdb .mdb .rar .tar .tfrecord .tfrecords .tgz .xz .zip .zst", "unpacking them"),
}
FORMAT_OF = {suffix: name for name, (suffixes, _) in OTHER_FORMATS.items() for suffix in suffixes.split()}
MOST_SUFFIXES = 6  # that are counted apart in a line
# What systems put beside files of the user's: macOS's archives, Synology, Windows, ext4.
SYSTEM_NAMES = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
UNIX_SYSTEMS = (3, 19)  # numbers in a zip's entries for Unix and macOS, where a backslash is a letter like another


class Listing(typing.NamedTuple):
    """What a folder holds: paths, each list sorted by name. Hidden files, and those of a system's own, are left out."""

    images: list[str]
    folders: list[str]
    others: list[str]


def is_hidden(name: str) -> bool:
    """Whether a name is of no file of the user's: `.name`, macOS's `._name` and `__MACOSX`, and the like."""
    return name.startswith(".") or name in SYSTEM_NAMES


def is_image(name: str | Path) -> bool:
    """Whether a file counts as an image, by its suffix."""
    return suffix(name) in IMAGE_SUFFIXES


def suffix(name: str | Path) -> str:
    """The lower-case suffix of a file's name; a .gz behind another does not count: .nii of a.nii.gz."""
    stem, last = os.path.splitext(os.path.basename(name).lower())
    inner = os.path.splitext(stem)[1]
    return inner if last == ".gz" and inner in FORMAT_OF else last


def counted(paths: Iterable[str | Path]) -> str:
    """Files in words: how many of which suffix, and what would make such images of them as are read here.

    "" where there are none.
    """
    found = collections.Counter(suffix(path) for path in paths)
    counts = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count} {_suffix_text(end)}" for end, count in counts[:MOST_SUFFIXES]]
    if others := sum(count for _, count in counts[MOST_SUFFIXES:]):
        named.append(f"{others} others")
    text = ", ".join(named)
    if formats := {FORMAT_OF[end]: None for end, _ in counts if end in FORMAT_OF}:
        tools = "; ".join(f"{name}: {OTHER_FORMATS[name][1]}" for name in formats)
        text += f"; convert them to PNG or JPEG ({tools})"
    return text


def _suffix_text(end):
    return end.encode(errors="backslashreplace").decode() if end else "without suffix"


@dataclasses.dataclass(frozen=True)
class DiskTree:
    """The files below a folder on disk; all paths begin with `root`."""

    root: str
    kind = "folder"

    def text(self, name: str) -> str:
        """A name of the system's as text that is the same under any locale."""
        return os.fsencode(name).decode(errors="surrogateescape")

    def name(self, path: str) -> str:
        """The path of a file or folder below the root, as such text."""
        return self.text(relative(path, self.root))

    def list(self, folder: str) -> Listing:
        return list_folder(folder)

    def item(self, file: str) -> str:
        """What stands for a file in `Source.images`."""
        return file

    def stat(self, file: str) -> tuple[int, int]:
        """Size in bytes, and what is another number once the file has been written again: its modification time (ns).

        Both are 0 where they cannot be told (a dangling link, no permission): that is said when it is to be decoded.
        """
        try:
            status = os.stat(file)
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def read(self, file: str) -> bytes:
        """The content of a file. Raises: OSError."""
        return Path(file).read_bytes()


@dataclasses.dataclass(frozen=True)
class ZipTree:
    """The files below a folder of a zip, behind the interface of `DiskTree`."""

    root: str
    listings: dict[str, Listing]
    members: dict[str, "ZipMember"]
    kind = "zip"

    def text(self, name: str) -> str:
        return name

    def name(self, path: str) -> str:
        return relative(path, self.root)

    def list(self, folder: str) -> Listing:
        return self.listings[folder]

    def item(self, file: str) -> "ZipMember":
        return self.members[file]

    def stat(self, file: str) -> tuple[int, int]:
        """Size in bytes, unpacked, and the checksum of the content."""
        return self.members[file].size, self.members[file].crc

    def read(self, file: str) -> bytes:
        """The content of a file. Raises: OSError, ValueError or zlib.error if the archive is damaged there."""
        return self.members[file].read()


def open_tree(path: str | Path) -> DiskTree | ZipTree:
    """What is below a path: a folder, a zip file, or a folder within one (photos.zip/train).

    Raises: UserError if the zip cannot be read, or holds no such folder.
    """
    if archive := _archive_of(Path(path)):
        listings, members = read_zip(archive)
        return ZipTree(_root_in_zip(Path(path), archive, listings), listings, members)
    return DiskTree(str(path))


def files_below(tree: DiskTree | ZipTree) -> tuple[list[str], list[str]]:
    """Paths of all images below a tree's root, in the order of their paths, and of all other files."""
    images, others, folders = [], [], [tree.root]
    while folders:
        listing = tree.list(folders.pop())
        images += listing.images
        others += listing.others
        folders += listing.folders
    return sorted(images, key=tree.name), sorted(others)


def relative(file: str, root: str) -> str:
    """The path of a file below a root, its parts separated by slashes."""
    return file.removeprefix(root).lstrip("/")


def list_folder(folder: str | Path) -> Listing:
    """What a folder on disk holds. Raises: UserError if it cannot be read."""
    images, folders, others = [], [], []
    try:
        entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except FileNotFoundError:
        raise utils.UserError(f"--images {folder}: there is no such folder or zip file") from None
    except NotADirectoryError:
        raise utils.UserError(f"--images {folder} is neither a folder nor a zip file") from None
    except OSError as error:
        raise utils.UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in sorted(entries, key=lambda entry: entry.name):
        # A link that leads nowhere or to itself makes DirEntry.is_dir raise, and os.path.isdir False.
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            loops = entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())
            (others if loops else folders).append(entry.path)
        else:
            (images if is_image(entry.name) else others).append(entry.path)
    return Listing(images, folders, others)


@dataclasses.dataclass(frozen=True, slots=True)
class ZipMember:
    """A file within a zip, by its place in it, so that any process can read it without reading the table of contents.

    header: byte at which its local header begins; packed_size and size: bytes stored and unpacked.
    """

    archive: str
    name: str
    header: int
    packed_size: int
    size: int
    method: int
    crc: int

    def __str__(self):
        return os.path.join(self.archive, self.name)

    def read(self) -> bytes:
        """Its content. Raises: OSError, ValueError or zlib.error if the archive is damaged there."""
        with open(self.archive, "rb") as file:
            file.seek(self.header)
            local = file.read(30)  # the fixed part of a local header, which ends in the lengths of two fields after it
            if len(local) < 30 or local[:4] != b"PK\3\4":
                raise ValueError("the zip is damaged here")
            file.seek(sum(struct.unpack("<HH", local[26:])), os.SEEK_CUR)
            content = file.read(self.packed_size)
        if self.method == zipfile.ZIP_DEFLATED:
            content = zlib.decompress(content, wbits=-zlib.MAX_WBITS)
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("the zip is damaged here: wrong checksum")
        return content


def read_zip(archive: str | Path) -> tuple[dict[str, Listing], dict[str, ZipMember]]:
    """The table of contents of a zip: its folders and its files by path.

    All paths begin with that of the archive, whose own entry is its root.
    Raises: UserError if it is damaged, encrypted, or packed in a way other than stored and deflated.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise utils.UserError(f"{archive} is not a readable zip file ({error}); copy or make it again") from error
    root = str(archive)
    content, members = {root: (set(), set())}, {}  # per folder: paths of its folders, of its files
    for entry, name in zip(entries, _names(entries), strict=True):
        is_folder = name.endswith("/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or any(map(is_hidden, parts)):
            continue
        folders = [os.path.join(root, *parts[:depth]) for depth in range(len(parts) + is_folder)]
        for outer, inner in itertools.pairwise(folders):
            content[outer][0].add(inner)
            content.setdefault(inner, (set(), set()))
        if not is_folder:
            member = _member(root, "/".join(parts), entry)
            members[str(member)] = member
            content[folders[-1]][1].add(str(member))
    listings = {}
    for folder, (folders, files) in content.items():
        files = sorted(files)
        images, others = ([file for file in files if is_image(file) == wanted] for wanted in (True, False))
        listings[folder] = Listing(images, sorted(folders), others)
    return listings, members


def _names(entries):
    """The paths of a zip's entries with slashes between their parts, those of folders with one at the end.

    Some programs on Windows write backslashes. They are parts of names only in what a Unix system has packed, and
    there only where others of the archive's paths do have slashes.
    """
    names = [_name(entry) for entry in entries]
    slashes = any("/" in name for name in names)
    for i, entry in enumerate(entries):
        if "\\" in names[i] and not (slashes and entry.create_system in UNIX_SYSTEMS):
            names[i] = re.sub(r"^[A-Za-z]:", "", names[i]).replace("\\", "/")
    return names


def _name(entry):
    if entry.flag_bits & 0x800:  # marked as UTF-8
        return entry.filename
    try:  # zipfile has taken it for code page 437
        stored = entry.orig_filename.encode("cp437")
    except UnicodeError:
        return entry.filename
    try:  # many tools write UTF-8 without saying so
        return _unicode_name(entry.extra, stored) or stored.decode()
    except UnicodeError:
        return entry.filename


def _unicode_name(extra, stored):
    """The name that Info-ZIP and WinZip put beside one in a system's own code page, None if there is none."""
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag == 0x7075 and len(field) > 5 and struct.unpack_from("<BI", field) == (1, zlib.crc32(stored)):
            return field[5:].decode()
    return None


def _member(archive, name, entry):
    if entry.flag_bits & 0x1:
        raise utils.UserError(f"{archive} is encrypted ({name}); unpack it and use --images FOLDER")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise utils.UserError(
            f"{archive} is packed by method {entry.compress_type} ({name}), only stored and deflated files can be read "
            "here; unpack it and use --images FOLDER"
        )
    sizes = entry.compress_size, entry.file_size
    return ZipMember(archive, name, entry.header_offset, *sizes, entry.compress_type, entry.CRC)


def _archive_of(path):
    """The zip file that `path` is, or lies in; None for a path on disk."""
    candidates = [path, *path.parents]
    return next((part for part in candidates if part.suffix.lower() == ".zip" and os.path.isfile(part)), None)


def _root_in_zip(path, archive, listings):
    """The folder of the archive that `path` names; the root's only folder instead if that is what holds the folders."""
    if path != archive:
        if str(path) not in listings:
            raise utils.UserError(f"--images {path}: there is no such folder in {archive}")
        return str(path)
    images, folders, _ = listings[str(archive)]
    if len(folders) == 1 and not images:  # zip tools pack the folder itself
        inner = listings[folders[0]]
        if inner.folders and not inner.images:
            return folders[0]
    return str(archive)
