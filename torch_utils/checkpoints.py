"""Checkpoint files: one reader and one writer of .pth files, and which file is meant by a path.

runs/<name>/weights/ckpt_<step>.pth     everything a run needs to go on, the newest few
runs/<name>/weights/best_<step>.pth     the evaluated generator alone, at its best evaluations, the newest few
runs/<name>/averages/average_<step>.pth power-law averages of G's weights, all that have been stored
"""

import contextlib
import hashlib
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import utils
from torch_utils import schema
from torch_utils.schema import COUNT, STATE

FORMAT = 1  # of the checkpoint file
KINDS = ("best", "ckpt")

# What a checkpoint must hold: to make images, and besides that to be resumed.
ANY = {str: object}
NETWORK = (None, STATE)
MODEL = {
    "step": COUNT,
    "images_seen?": COUNT,
    "model_config": {"resolution": COUNT, "n_classes": COUNT},
    "class_names?": (None, [str]),
    "class_counts?": (None, [COUNT]),
    "data?": ANY,
    "args?": ANY,
    "run?": ANY,
    "metrics?": (None, {"protocol?": (None, {"bn_mode": (None, str)})}),
    "best?": (None, {"step": COUNT, "metric": str, "value": float}),
    "convention?": {"truncation?": (None, float), "truncation_kind?": str},
    **dict.fromkeys(("G?", "D?", "G_ema?"), NETWORK),
}
OPTIMIZER = {"state": {int: ANY}, "param_groups": [ANY]}
FULL = {
    **MODEL,
    **{"images_seen": COUNT, "class_names": [str], "best": MODEL["best?"], "data": ANY, "args": ANY},
    **{"G": STATE, "D": STATE, "G_ema": NETWORK, "opt_G": OPTIMIZER, "opt_D": OPTIMIZER},
    **dict.fromkeys(("scaler_G?", "scaler_D?"), ANY),
    "evaluating?": bool,
    "G_power?": {str: STATE},
}
AVERAGES = {**MODEL, "averages": {str: STATE}, "buffers": STATE}  # of a file of power-law averages


class Damaged(utils.UserError):
    """A file whose bytes are not those that were written, or that hold something else than they should."""


def save(obj: Any, path: str | Path) -> None:
    """Write a .pth file that ends in its own SHA-256. Raises: utils.CannotWrite."""
    with utils.atomic_path(path) as temporary:
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise utils.CannotWrite(f"cannot write {path}: is the disk full? ({str(error).splitlines()[0]})") from error
        _append_digest(temporary)


def load(path: str | Path, mapped: bool = False) -> Any:
    """Tensors and plain Python values of a .pth file, on the CPU.

    mapped: leave tensors in the file until they are used, for who wants few of many; the file must not be rewritten in
        place meanwhile.
    Raises: Damaged where the file is not what was written, utils.UserError where it cannot be read; both name it.
    """
    path = Path(path)
    with _reading(path):
        if not path.is_file():
            raise utils.UserError(f"{path}: {_what_is_there(path)}")
        _check_bytes(path)
    try:
        mapped = mapped and zipfile.is_zipfile(path)  # files of old PyTorch's format are none, and cannot be
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError as error:
        raise utils.UserError(f"{path}: there is not enough memory to read it") from error
    except Exception as error:  # of damaged files torch raises RuntimeError, OSError, UnpicklingError ...
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise utils.UserError(
                f"{path} holds {foreign[1]}, which is not read, as reading it could run anything; convert_weights.py "
                "takes the weights alone out of another codebase's file"
            ) from error
        raise _damaged(path) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line that names the file: that is no damage."""
    try:
        yield
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror or error}") from error


def _what_is_there(path):
    return "is a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"


def _damaged(path):
    return Damaged(f"{path} is not a readable checkpoint (damaged, truncated, or another format)")


# ---------------------------------------------------------------------------------------------------------------------
# Checksums. A .pth file is a zip, whose members have CRC-32s, which torch.load does not look at, and which leave out
# headers and padding. Ours end in a comment, as zips may, with the SHA-256 of all bytes before its digits.

END = struct.Struct("<4s16xH")  # a zip's last record, up to the length of the comment that follows it
TAG = b"sha256 "
DIGITS = 64


def _append_digest(path):
    """Make the SHA-256 of a zip without a comment its comment."""
    with open(path, "r+b") as file:
        start = file.seek(-END.size, 2)
        signature, _ = END.unpack(file.read())
        assert signature == b"PK\5\6", "torch.save has written something else than a zip"
        file.seek(start + END.size - 2)
        file.write(struct.pack("<H", len(TAG) + DIGITS) + TAG)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, 2)
        file.write(digest.encode())


def _check_bytes(path):
    """Raise Damaged where a file's bytes are not those that were written, as far as it says.

    Files of before, and of others, have the CRC-32s of a zip's members alone, or nothing.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(TAG) - DIGITS))
        tail = file.read()
        if tail.startswith(TAG):
            intact = _digest(file, size - DIGITS) == tail[len(TAG) :].decode(errors="replace")
        else:
            file.seek(0)
            intact = file.read(4) != b"PK\3\4" or _members_are_intact(file)
    if not intact:
        raise _damaged(path)


def _digest(file, length):
    """The SHA-256, in digits, of the first `length` bytes."""
    file.seek(0)
    digest, block = hashlib.sha256(), memoryview(bytearray(min(2**20, length)))
    while length and (number := file.readinto(block[: min(length, len(block))])):
        digest.update(block[:number])
        length -= number
    return digest.hexdigest()


def _members_are_intact(file):
    """Whether a zip's members have their CRC-32s. A comment would be of ours, with its tag damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None and not archive.comment
    except OSError:
        raise
    except Exception:  # what zipfile makes of damage is of many kinds
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Which file is meant


def find_checkpoint(path: str | Path, kinds: tuple[str, ...] = KINDS) -> Path:
    """The checkpoint meant by `path`: a file is itself, a run folder the newest of the first of `kinds` that it has.

    Raises: utils.UserError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise utils.UserError(f"{path}: no such checkpoint or run folder")
    folder = path / "weights" if (path / "weights").is_dir() else path
    for kind in kinds:
        if found := of_kind(folder, kind):
            return found[-1]
    raise utils.UserError(f"{path}: no checkpoint in this folder ({' or '.join(f'{kind}_*.pth' for kind in kinds)})")


def averages_of(folder: Path) -> list[Path]:
    """The files of power-law averages in a run folder, oldest first."""
    return of_kind(folder / "averages", "average")


def of_kind(weights: Path, kind: str) -> list[Path]:
    """The checkpoints 'ckpt' or 'best' of a folder, oldest first; files under a user's own names are not among them."""
    return sorted(weights.glob(f"{kind}_{'[0-9]' * 8}.pth"))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint of `of_kind`, or of another file named so, as a run's sheets are."""
    return int(path.stem.rpartition("_")[2])


def read_model(path: str | Path, kinds: tuple[str, ...] = KINDS) -> tuple[dict, Path]:
    """A checkpoint of this project, and its path; path, kinds: as for `find_checkpoint`. Raises: utils.UserError.

    Its tensors stay in the file until they are used: a full one holds six times what makes images.
    """
    given, path = path, find_checkpoint(path, kinds)
    try:
        checkpoint = load(path, mapped=True)
    except Damaged as error:
        others = sorted(other.name for other in path.parent.glob("*.pth") if path not in (other, Path(given)))
        instead = f"; name another file of {path.parent}: {utils.listed(others)}" if others else ""
        raise Damaged(f"{error}{instead}") from error
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint:
        raise utils.UserError(
            f"{path} is not a checkpoint of this project (it has no model_config); "
            "convert_weights.py makes one of another codebase's weights"
        )
    if "averages" in checkpoint:
        raise utils.UserError(
            f"{path} holds power-law averages; evaluate.py {path.parent.parent} --ema_sweep --ema_out FILE makes a "
            "checkpoint of the best of them"
        )
    if wrong := problem(checkpoint, MODEL):
        raise Damaged(f"{path} is not a checkpoint as this project writes them: {wrong}")
    return checkpoint, path


def problem(checkpoint: Any, entries: dict) -> str | None:
    """What is wrong with the content of a checkpoint that must hold `entries`, MODEL or FULL; None if nothing is."""
    if wrong := schema.problem(checkpoint, entries):
        return wrong
    number = checkpoint["model_config"]["n_classes"]
    for name in ("class_names", "class_counts"):
        if checkpoint.get(name) is not None and len(checkpoint[name]) != number:
            return f"{name} are {len(checkpoint[name])}, for {utils.counted(number, 'class')}"
    return None


def check_finite(state: dict[str, torch.Tensor], path: str | Path, network: str) -> None:
    """Raise utils.UserError that names the first tensor of a state dict with a value that is not finite.

    path: of the file; network: whose weights they are.
    """
    if name := not_finite(state):
        raise utils.UserError(
            f"{path}: {name} of {network} holds values that are not finite (NaN or infinite), as a diverged run "
            "leaves them; use an earlier checkpoint"
        )


def not_finite(entry: Any, name: str = "") -> str | None:
    """The name of the first tensor with a value that is not finite, or None; within dicts and lists, joined by dots."""
    if torch.is_tensor(entry):
        return None if entry.isfinite().all() else name
    parts = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, (list, tuple)) else ()
    found = (not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((text for text in found if text), None)


def samples_folder(checkpoint: Path) -> Path:
    """Where samples of a checkpoint file go: its run's samples/, or a folder beside a file outside of a run."""
    if checkpoint.parent.name == "weights":
        return checkpoint.parent.parent / "samples"
    return checkpoint.with_name(f"{checkpoint.stem}_samples")
