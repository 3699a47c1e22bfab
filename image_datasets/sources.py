"""What images there are, and of which classes: a folder or a zip with a sub-folder per class, ImageNet, the digits.

Nothing is decoded here; see `decoding.py` for that, and `cifar.py` for the files of CIFAR-10 and CIFAR-100.
"""

import dataclasses
import hashlib
import itertools
import os
import re
import struct
import typing
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import utils

DIGITS_FILE = Path(__file__).parents[1] / "assets" / "digits.npz"
DIGITS_CREDIT = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0"
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
IMAGE_SUFFIXES |= {".ppm", ".tga", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to be written, not yet read.

    images: N file paths (str), `ZipMember`s or arrays (uint8 (H,W) or (H,W,3)), in the order of the HDF5 file;
    labels: int64 (N,), indices into class_names; description: one line that is different for different images, for
    the attribute `source`.
    """

    description: str
    class_names: list[str]
    labels: np.ndarray
    images: Sequence


class Listing(typing.NamedTuple):
    """What a folder holds: paths, each list sorted by name. Hidden files are left out."""

    images: list[str]
    folders: list[str]
    others: list[str]


def digits_source() -> Source:
    """The embedded UCI digits: 1,797 images of 8x8, grey levels 0..16 stretched to 0..255."""
    with np.load(DIGITS_FILE, allow_pickle=False) as digits:
        grey, labels = digits["images"], digits["labels"]
    images = np.rint(grey * (255 / 16)).astype(np.uint8)
    return Source(f"digits: {DIGITS_CREDIT}", [str(i) for i in range(10)], labels.astype(np.int64), images)


def imagenet_source(path: str | Path) -> Source:
    """An ImageNet train folder (or a zip of it): a sub-folder of images per WordNet id, in the order of the ids.

    Raises: UserError as `folder_source`, or if a class is no WordNet id: another folder under this name would mislead.
    """
    source = folder_source(path)
    if other := [name for name in source.class_names if not re.fullmatch(r"n\d{8}", name)]:
        raise utils.UserError(
            f"{path} is no ImageNet train folder: '{other[0]}' is not a WordNet id; use --dataset folder"
        )
    return source


def folder_source(path: str | Path, unconditional: bool = False) -> Source:
    """The images of a folder or of a zip, one sub-folder per class, classes and files in the order of their names.

    Hidden files are skipped, and so are, with a printed line, files that are no images and links back up the tree.

    Args: path: a folder, a zip file, or a folder within one (photos.zip/train); unconditional: take the images in
        `path` itself, or in its only sub-folder, as one class.
    Raises: UserError if the folders are not as described; nothing is guessed, as a wrong guess means wrong labels.
    """
    if archive := _archive_of(Path(path)):
        listings, members = read_zip(archive)
        root = _root_in_zip(Path(path), archive, listings)
        list_one, item, size = listings.__getitem__, members.__getitem__, lambda file: members[file].size
    else:
        root, list_one, item, size = str(path), list_folder, str, _file_size
    class_folders, files, ignored = _class_files(root, list_one, unconditional)
    if ignored:
        names = ", ".join(os.path.basename(other) for other in ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        print(f"ignored {len(ignored)} file(s) that are not images: {names}")
    paths = list(itertools.chain.from_iterable(files))
    labels = np.repeat(np.arange(len(files)), [len(class_files) for class_files in files]).astype(np.int64)
    counts = f"{len(paths)} images, {len(files)} class(es)"
    digest = fingerprint((file.removeprefix(root).lstrip("/"), size(file)) for file in paths)
    name = os.fsencode(folder_name(path)).decode(errors="backslashreplace")  # text, whatever the bytes of the name
    description = f"{'zip' if archive else 'folder'} {name}: {counts}, sha256 {digest}"
    return Source(description, [folder_name(folder) for folder in class_folders], labels, [*map(item, paths)])


def folder_name(path: str | Path) -> str:
    """The last part of a path, ".zip" excepted, links not followed; also for "." and "..", which have no name."""
    return os.path.basename(os.path.abspath(path)).removesuffix(".zip")


def fingerprint(names_and_sizes: Iterable[tuple[str, int]]) -> str:
    """16 hex digits that differ for other names or sizes (bytes) of the files."""
    digest = hashlib.sha256()
    for name, size in names_and_sizes:
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def list_folder(folder: str | Path) -> Listing:
    """What a folder on disk holds. Raises: UserError if it cannot be read."""
    images, folders, others = [], [], []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
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
            (images if _is_image(entry.name) else others).append(entry.path)
    return Listing(images, folders, others)


def _is_image(name):
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _file_size(path):
    try:
        return os.stat(path).st_size
    except OSError:  # a dangling link, no permission: told when it is to be decoded
        return 0


def _class_files(root, list_one, unconditional):
    """The folders of the classes, a list of image paths for each, and the files that are passed over.

    Args: root: path of the folder that holds the classes; list_one: path of a folder to its `Listing`.
    Raises: UserError if the folders are not one per class with images that lie flat.
    """
    images, folders, ignored = list_one(root)
    _check_layout(root, images, folders, unconditional, list_one)
    files, ignored = [], list(ignored)
    for folder in folders:
        listing = list_one(folder)
        _check_class(folder, listing)
        files.append(listing.images)
        ignored += listing.others
    return ([root], [images], ignored) if images else (folders, files, ignored)


def _check_layout(root, images, folders, unconditional, list_one):
    image, folder = (os.path.basename(paths[0]) if paths else None for paths in (images, folders))
    if not images and not folders:
        raise utils.UserError(f"--images {root} holds neither class folders nor images")
    if images and folders:
        raise utils.UserError(f"{root} holds images ({image}, ...) beside folders ({folder}, ...)")
    if unconditional and len(folders) > 1:
        raise utils.UserError(f"--unconditional: {root} holds {len(folders)} folders; name one of them as --images")
    if images and not unconditional:
        raise utils.UserError(f"{root} has no class folders; make one per class, or take all with --unconditional")
    # A single folder that holds folders is most likely one level too deep: left to _check_class to say.
    if len(folders) == 1 and not unconditional and not list_one(folders[0]).folders:
        raise utils.UserError(f"{root} has one class folder only ({folder}); use --unconditional for that")


def _check_class(folder, listing):
    if listing.folders:
        inner = os.path.basename(listing.folders[0])
        if listing.images:
            raise utils.UserError(f"{folder} holds the folder {inner} among its images; images lie flat")
        raise utils.UserError(
            f"{folder} should hold the images of one class, but holds folders ({inner}, ...); "
            f"if those are the classes, use --images {folder}"
        )
    if not listing.images:
        raise utils.UserError(f"the class folder {folder} holds no images; fill or remove it")


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
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise utils.UserError(f"{archive} is not a readable zip file ({error}); copy or make it again") from error
    root = str(archive)
    content, members = {root: (set(), set())}, {}  # per folder: paths of its folders, of its files
    for entry in entries:
        parts = [part for part in _name(entry).split("/") if part not in ("", ".")]
        if not parts or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            continue
        folders = [os.path.join(root, *parts[:depth]) for depth in range(len(parts) + entry.is_dir())]
        for outer, inner in itertools.pairwise(folders):
            content[outer][0].add(inner)
            content.setdefault(inner, (set(), set()))
        if not entry.is_dir():
            member = _member(root, "/".join(parts), entry)
            members[str(member)] = member
            content[folders[-1]][1].add(str(member))
    listings = {}
    for folder, (folders, files) in content.items():
        files = sorted(files)
        images, others = ([file for file in files if _is_image(file) == wanted] for wanted in (True, False))
        listings[folder] = Listing(images, sorted(folders), others)
    return listings, members


def _name(entry):
    if entry.flag_bits & 0x800:  # marked as UTF-8
        return entry.filename
    try:  # many tools write UTF-8 without saying so; zipfile has taken it for code page 437
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


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
