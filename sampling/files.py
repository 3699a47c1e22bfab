"""Many images in files: one npz, or a PNG each.

A writer is a context manager that gives a function, to be called with each batch, uint8 (b,3,R,R), of the images in
their order. What it writes appears when all is written, or not at all.
Symbols: N images, resolution R.
"""

import contextlib
import os
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import utils

MAX_NAME_BYTES = 100  # of a class's name in the name of a folder; some file systems take no more than 143 in all


@contextlib.contextmanager
def npz_writer(path: str | Path, y: torch.Tensor, resolution: int) -> Iterator[Callable]:
    """Write images with class ids y (N,) to an npz file in the layout of guided-diffusion (ADM).

    The file holds `arr_0` uint8 (N,R,R,3) and `arr_1` int64 (N,), uncompressed; only a batch is ever in memory.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(y), resolution, resolution, 3)}
    with utils.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, y.numpy(), allow_pickle=False)
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield lambda images: member.write(images.permute(0, 2, 3, 1).contiguous().numpy())


@contextlib.contextmanager
def png_writer(folder: str | Path, y: torch.Tensor, class_names: list[str]) -> Iterator[Callable]:
    """Write images with class ids y (N,) as `folder/<class>/<number of the image>.png`.

    The class folders are named by id and name, so that they sort as the ids do. `folder` must not exist or be empty.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    class_folders = [temporary / name for name in _class_folders(class_names)]
    numbered = enumerate(y.tolist())

    def write(images):
        for image, (i, c) in zip(images.permute(0, 2, 3, 1).numpy(), numbered, strict=False):
            Image.fromarray(image).save(class_folders[c] / f"{i:06d}.png")

    try:
        for c in y.unique().tolist():
            class_folders[c].mkdir(parents=True)
        yield write
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _class_folders(class_names):
    """A folder name for each class that every file system takes, whatever the class's name: bytes of any locale, short
    enough, without what Windows forbids; the id tells apart what is the same afterwards."""
    digits = len(str(len(class_names) - 1))
    folders = []
    for i, name in enumerate(class_names):
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", utils.printable(name)))
        safe = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip(".")
        folder = f"{i:0{digits}}" if safe in ("", str(i)) else f"{i:0{digits}}_{safe}"
        folders.append(os.fsdecode(folder.encode()))  # UTF-8, also where the locale has no such letters
    return folders
