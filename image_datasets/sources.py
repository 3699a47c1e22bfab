"""Where images come from: a folder or a zip of any known layout, ImageNet, the embedded digits.

Nothing is decoded here; see `decoding.py` for that, and `cifar.py` for the files of CIFAR-10 and CIFAR-100.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import utils
from image_datasets import layouts, listing

DIGITS_FILE = Path(__file__).parents[1] / "assets" / "digits.npz"
DIGITS_CREDIT = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0"
SAMPLED_FILES, SAMPLED_BYTES = 64, 2**18  # of which the content is in a stamp, and how much of each


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to be written, not yet read.

    images: N file paths (str), `ZipMember`s or arrays (uint8 (H,W) or (H,W,3)), in the order of the HDF5 file;
    labels: int64 (N,), indices into class_names; description: one line that is different for different images, for
    the attribute `source`; paths: of the images' files below the folder or zip, none where there are no files;
    class_order: the rule by which classes are numbered; stamp: what was compared of the files, and a digest of it.
    """

    description: str
    class_names: list[str]
    labels: np.ndarray
    images: Sequence
    paths: Sequence[str] = ()
    class_order: str = ""
    stamp: str = ""


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
    """The images of a folder or of a zip: one sub-folder per class, or any layout of `layouts.py`.

    Classes are in the order of their names, as numbers where all are, files in that of theirs. Hidden files are
    skipped, and so are, with a printed line, files that are no images and links back up the tree.

    Args: path: a folder, a zip file, or a folder within one (photos.zip/train); unconditional: take the images in
        `path` itself, or in its only sub-folder, as one class.
    Raises: UserError if the folders are not as described; nothing is guessed, as a wrong guess means wrong labels.
    """
    tree = listing.open_tree(path)
    found = layouts.find(tree, unconditional)
    _say_left_out(found.others)
    paths = [tree.name(file) for file in found.files]
    counts = f"{len(paths)} images, {len(found.class_names)} class(es)"
    if found.list_name:
        counts += f" of {found.list_name}"
    stats = [tree.stat(file) for file in found.files]
    # As text, whichever the order of the classes: files made before there was another are recognised by it.
    in_order = sorted(range(len(paths)), key=lambda i: os.path.split(paths[i]))
    labels = [f"\0{found.class_names[y]}" if found.list_name else "" for y in found.labels]
    digest = fingerprint((paths[i] + labels[i], stats[i][0]) for i in in_order)
    name = os.fsencode(layouts.folder_name(path)).decode(errors="backslashreplace")  # text, whatever its bytes are
    return Source(
        f"{tree.kind} {name}: {counts}, sha256 {digest}",
        found.class_names,
        found.labels,
        [*map(tree.item, found.files)],
        paths,
        found.order,
        _stamp(tree, [found.files[i] for i in in_order], [(paths[i], *stats[i]) for i in in_order]),
    )


def _say_left_out(files):
    if foreign := [file for file in files if listing.suffix(file) in listing.FORMAT_OF]:
        number = utils.counted(len(foreign), "file")
        print(f"left out {number} of formats that are not read: {listing.counted(foreign)}")
    if others := [file for file in files if listing.suffix(file) not in listing.FORMAT_OF]:
        names = ", ".join(os.path.basename(other) for other in others[:3]) + (", ..." if len(others) > 3 else "")
        print(f"ignored {len(others)} file(s) that are not images: {names} ({listing.counted(others)})")


def fingerprint(names_and_numbers: Iterable[tuple]) -> str:
    """16 hex digits that differ for other names or numbers (sizes in bytes, times) of the files."""
    digest = hashlib.sha256()
    for name, *numbers in names_and_numbers:
        line = "\0".join([name, *map(str, numbers)])
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _stamp(tree, files, stats):
    """A line that is another one once any of the files has been written again; it says what has been looked at.

    stats: (path, size, modification time or checksum) of each. Unpacking may give all files the same time, and copying
    may keep the old one: hence the content of some.
    """
    if tree.kind == "zip":
        return f"names, sizes and checksums: {fingerprint(stats)}"
    sampled = files[:: -(-len(files) // SAMPLED_FILES)]
    digest = hashlib.sha256(fingerprint(stats).encode())
    for file in sampled:
        try:
            with open(file, "rb") as opened:
                digest.update(opened.read(SAMPLED_BYTES))
        except OSError:  # told when it is to be decoded
            pass
    what = f"names, sizes and modification times, and the content of {len(sampled)} of {len(files)} files"
    return f"{what}: {digest.hexdigest()[:16]}"
