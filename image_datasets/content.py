"""The content hash of a data set: the same for any file that holds these pixels and labels, whatever its layout.

All that is derived from a data set (statistics, classifier, scores, checkpoints) is kept with it.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

import utils


def image_hashes(images: np.ndarray) -> np.ndarray:
    """sha256 of each image: uint8 (b,3,R,R) to uint8 (b,32).

    SHA-256 is the fastest sound hash of hashlib on CPUs that compute it in hardware (1.5 GB/s on a core, BLAKE2b 0.9),
    and lets other threads run meanwhile.
    """
    hashes = b"".join(hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images)
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 32)


def content_hash(hashes: np.ndarray, labels: ArrayLike, resolution: int) -> str:
    """64 hex digits of a whole data set. Args: hashes: uint8 (N,32), in the order of the file; labels: ints (N,)."""
    digest = hashlib.sha256(f"{len(hashes)} images {resolution}x{resolution}".encode())
    digest.update(np.ascontiguousarray(hashes))
    digest.update(label_bytes(labels))
    return digest.hexdigest()


def label_bytes(labels: ArrayLike) -> bytes:
    """Labels as they are hashed, the same on any machine."""
    return np.ascontiguousarray(labels, dtype="<i8").tobytes()


def check_content(made: str | None, now: str, path: str | Path, images: str | Path, remedy: str) -> None:
    """Raise UserError where what lies at `path` was made of other images than the file `images` holds now.

    Args: made, now: content hashes, None where it was not recorded; remedy: a command.
    """
    if made not in (None, now):
        raise utils.UserError(
            f"{path} was made of other images (content {made[:8]}) than {images} holds now ({now[:8]}); make it again: "
            f"{remedy}"
        )
