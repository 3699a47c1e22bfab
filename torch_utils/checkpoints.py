"""Checkpoint files: one reader and one writer of .pth files, and which file is meant by a path.

runs/<name>/weights/ckpt_<step>.pth     everything a run needs to go on, the newest few
runs/<name>/weights/best_<step>.pth     the evaluated generator alone, at its best evaluations, the newest few
"""

import re
from pathlib import Path
from typing import Any

import torch

import utils

FORMAT = 1  # of the checkpoint file
KINDS = ("best", "ckpt")


def save(obj: Any, path: str | Path) -> None:
    with utils.atomic_path(path) as temporary:
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise utils.UserError(f"cannot write {path}: is the disk full? ({str(error).splitlines()[0]})") from error


def load(path: str | Path) -> Any:
    """Tensors and plain Python values of a .pth file, on the CPU. Raises: utils.UserError naming the file."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise utils.UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # of damaged files torch raises RuntimeError, OSError, UnpicklingError ...
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise utils.UserError(
                f"{path} holds {foreign[1]}, which is not read, as reading it could run anything; convert_weights.py "
                "takes the weights alone out of another codebase's file"
            ) from error
        raise utils.UserError(f"{path} is not a readable checkpoint (damaged, truncated, or another format)") from error


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


def of_kind(weights: Path, kind: str) -> list[Path]:
    """The checkpoints 'ckpt' or 'best' of a folder, oldest first; files under a user's own names are not among them."""
    return sorted(weights.glob(f"{kind}_{'[0-9]' * 8}.pth"))


def read_model(path: str | Path, kinds: tuple[str, ...] = KINDS) -> tuple[dict, Path]:
    """A checkpoint of this project, and its path; path, kinds: as for `find_checkpoint`. Raises: utils.UserError."""
    path = find_checkpoint(path, kinds)
    checkpoint = load(path)
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint:
        raise utils.UserError(
            f"{path} is not a checkpoint of this project (it has no model_config); "
            "convert_weights.py makes one of another codebase's weights"
        )
    return checkpoint, path


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
