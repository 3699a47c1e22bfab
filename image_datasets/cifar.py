"""The files of CIFAR-10 and CIFAR-100, as torchvision keeps them: Python or binary batches, in folders or archives.

Format: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", https://www.cs.toronto.edu/~kriz/cifar.html.
A Python batch is a pickled dict with `data`, uint8 (n,3072), and a list of labels; a record of a binary batch is
one label byte (CIFAR-100: coarse, then fine) and 3072 bytes of pixels. Either way pixels are ordered (3,32,32).
"""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np

import utils
from image_datasets.sources import Source

PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things are in one of the versions. `parts`: split -> files of `part_images` images each, without suffix."""

    title: str
    num_classes: int
    parts: dict
    part_images: dict
    python_folder: str
    binary_folder: str
    python_meta: str
    binary_meta: str
    names_key: str
    labels_key: str
    label_bytes: int

    @property
    def python_archive(self) -> str:
        return f"{self.title.lower()}-python.tar.gz"

    @property
    def binary_archive(self) -> str:
        return f"{self.title.lower()}-binary.tar.gz"


LAYOUTS = {
    "C10": Layout(
        title="CIFAR-10",
        num_classes=10,
        parts={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        part_images={"train": 10000, "test": 10000},
        python_folder="cifar-10-batches-py",
        binary_folder="cifar-10-batches-bin",
        python_meta="batches.meta",
        binary_meta="batches.meta.txt",
        names_key="label_names",
        labels_key="labels",
        label_bytes=1,
    ),
    "C100": Layout(
        title="CIFAR-100",
        num_classes=100,
        parts={"train": ["train"], "test": ["test"]},
        part_images={"train": 50000, "test": 10000},
        python_folder="cifar-100-python",
        binary_folder="cifar-100-binary",
        python_meta="meta",
        binary_meta="fine_label_names.txt",
        names_key="fine_label_names",
        labels_key="fine_labels",
        label_bytes=2,
    ),
}


def cifar_source(dataset: str, where: str | Path, split: str) -> Source:
    """The images of CIFAR: the same from the Python and the binary version.

    Args: dataset: "C10" or "C100" (fine labels); where: folder that holds the folder or archive of one of the versions
        (torchvision's root), or that folder or archive itself; split: "train" or "test".
    Raises: UserError if there are no such files, or one of them is missing, damaged or of the wrong length.
    """
    layout = LAYOUTS[dataset]
    path, is_python = _find_files(layout, Path(where))
    suffix, meta = ("", layout.python_meta) if is_python else (".bin", layout.binary_meta)
    parts = [part + suffix for part in layout.parts[split]]
    files = (_read_folder if path.is_dir() else _read_archive)(path, [*parts, meta])
    if is_python:
        parse_part, names = _python_part, _python_names(files[meta], layout, path / meta)
    else:
        parse_part, names = _binary_part, files[meta].decode("latin1").split()
    if len(names) != layout.num_classes:
        raise utils.UserError(
            f"{path / meta} names {len(names)} classes, {layout.title} has {layout.num_classes}; download it again"
        )
    pixels, labels = zip(*(parse_part(files[part], layout, path / part) for part in parts), strict=True)
    for part, part_labels in zip(parts, labels, strict=True):
        _check_part(part_labels, layout, split, path / part)
    pixels, labels = np.concatenate(pixels), np.concatenate(labels).astype(np.int64)
    digest = hashlib.sha256(pixels)
    digest.update(labels.astype("<i8"))
    description = f"{layout.title} {split}: {len(labels)} images, sha256 {digest.hexdigest()[:16]}"
    return Source(description, names, labels, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _find_files(layout, where):
    """The folder or archive to read, and whether it is the Python version. Folders come before archives."""
    is_python = {layout.python_folder: True, layout.binary_folder: False}
    is_python |= {layout.python_archive: True, layout.binary_archive: False}
    for name in is_python:
        if where.name == name and os.path.exists(where):
            return where, is_python[name]
        if os.path.exists(where / name):
            return where / name, is_python[name]
    if os.path.isfile(where):
        raise utils.UserError(f"--images {where} is none of {', '.join(is_python)}")
    raise utils.UserError(
        f"{where} holds neither {' nor '.join(is_python)}; name the folder that holds one of them with --images "
        "(download: https://www.cs.toronto.edu/~kriz/cifar.html)"
    )


def _read_folder(folder, names):
    """The content of some files of a folder: dict of name to bytes. Raises: UserError naming one that is missing."""
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise utils.UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _read_archive(archive, names):
    """The content of some files of a .tar.gz, wherever they lie in it: dict of name to bytes.

    Raises: UserError if the archive is damaged, or naming a file that it lacks.
    """
    files = {}
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    name = Path(member.name).name
                    if member.isfile() and name in names:
                        files[name] = tar.extractfile(member).read()
            while stream.read(2**20):  # the checksum comes last
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise utils.UserError(f"{archive} is damaged or truncated ({error}); download it again") from error
    if missing := [name for name in names if name not in files]:
        raise utils.UserError(f"{archive} has no {missing[0]}; download it again")
    return files


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, containers and numpy arrays only: a pickle could otherwise run anything."""

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in a pickle that Python 2 can read
            return _encode
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            allowed = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
            if name in allowed:
                return allowed[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _encode(text, encoding):
    return text.encode(encoding)


def _unpickle(content, path):
    """A pickled dict, keys as str whichever Python wrote it. Raises: UserError naming the file."""
    try:
        batch = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    except Exception as error:  # of damaged pickles Python raises nearly anything
        reason = str(error) or type(error).__name__
        raise utils.UserError(f"{path} is damaged or no CIFAR file ({reason}); download it again") from error


def _python_part(content, layout, path):
    """Pixels uint8 (n,3072) and labels (n,) of one Python batch. Raises: UserError naming the file."""
    batch = _unpickle(content, path)
    pixels, labels = batch.get("data"), batch.get(layout.labels_key)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        raise utils.UserError(f"{path} has no 'data' and '{layout.labels_key}', so it is not of {layout.title}")
    # As Python's numbers, which may be of any kind and size.
    if any(type(y) is not int or not 0 <= y < layout.num_classes for y in labels):
        raise _bad_labels(layout, path)
    labels = np.array(labels, dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (labels.size, PIXELS):
        raise utils.UserError(
            f"{path}: 'data' must be uint8 ({labels.size},{PIXELS}), a row for each label, "
            f"not {pixels.dtype} {pixels.shape}; download it again"
        )
    return pixels, labels


def _python_names(content, layout, path):
    names = _unpickle(content, path).get(layout.names_key) or []
    return [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]


def _binary_part(content, layout, path):
    """Pixels uint8 (n,3072) and labels (n,) of one binary batch. Raises: UserError naming the file."""
    record = layout.label_bytes + PIXELS
    if len(content) % record:
        raise utils.UserError(f"{path} is truncated: {len(content)} bytes, no multiple of {record}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _check_part(labels, layout, split, path):
    wanted = layout.part_images[split]
    if len(labels) != wanted:
        raise utils.UserError(f"{path} holds {len(labels)} images instead of {wanted}; download it again")
    if labels.min() < 0 or labels.max() >= layout.num_classes:
        raise _bad_labels(layout, path)


def _bad_labels(layout, path):
    return utils.UserError(f"{path}: labels must lie in 0..{layout.num_classes - 1}; download it again")
