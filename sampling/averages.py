"""Generators of a run's stored power-law averages: of any relative width, at the end of the run.

train.py --ema_power stores averages in averages/ of the run folder; a weighted sum of all of them is the average of
another width, but for what the least squares leave (torch_utils/power_law.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import BigGAN
import layers
import utils
from torch_utils import checkpoints, power_law


@dataclass(frozen=True)
class StoredAverages:
    """The stored averages of a run, oldest first. newest: the last file's content; steps: of each file."""

    paths: list[Path]
    newest: dict

    @classmethod
    def of_run(cls, folder: Path) -> "StoredAverages":
        """Raises: utils.UserError where a run folder has none, or the newest cannot be read."""
        paths = checkpoints.averages_of(folder)
        if not paths:
            where = f"{folder} is a file: name the run folder" if folder.is_file() else f"{folder}/averages holds none"
            raise utils.UserError(f"no power-law averages ({where}); train.py --ema_power 0.05_0.10 stores them")
        return cls(paths, _read(paths[-1]))

    @property
    def meta(self) -> dict:
        """What the newest file says of the run, as `BigGAN.load_generator` has it."""
        about = {name: entry for name, entry in self.newest.items() if name not in ("averages", "buffers")}
        return {**about, "path": str(self.paths[-1]), "ema": True}

    def keys(self) -> list[tuple[int, float]]:
        """(step, sigma_rel) of all averages, in the order of the files."""
        widths = [float(width) for width in self.newest["averages"]]
        return [(checkpoints.step_of(path), width) for path in self.paths for width in widths]

    def solved(
        self, widths: Sequence[float], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[BigGAN.Generator, float]]:
        """The generator of each width at the newest step, and what the sum misses of it (`power_law.coefficients`).

        Its weights are all that counts: batch norm's statistics are the raw generator's, and are to be made afresh.
        Each file is read once, so that all weights are in memory at a time. Raises: utils.UserError that names a file.
        """
        wanted = [(self.newest["step"], width) for width in widths]
        x, missing = power_law.coefficients(self.keys(), wanted)
        states = self._sums(torch.from_numpy(x).view(len(self.paths), -1, len(widths)))
        for error in missing.tolist():
            yield self._generator(states.pop(0), device), error

    def save(self, G: BigGAN.Generator, metrics: dict, path: str | Path) -> None:
        """Write a checkpoint of one of these generators alone, whose running batch-norm statistics are standing ones.

        metrics: its own, which go with its relative width under `ema_power`.
        """
        about = {name: entry for name, entry in self.meta.items() if name not in ("path", "ema")}
        width = metrics["protocol"]["ema_power"]
        chosen = {"sigma_rel": width, "of": str(self.paths[-1]), "metrics": metrics}
        checkpoints.save(about | {"ema_power": chosen, "metrics": None, "G_ema": G.state_dict()}, path)
        print(f"wrote {path}: the average of relative width {width:g}, with standing batch-norm statistics")

    def _sums(self, x):
        """State dicts of parameters, one for each column of x (files, averages of a file, sums)."""
        first = next(iter(self.newest["averages"].values()))
        sums = [{name: torch.zeros_like(tensor) for name, tensor in first.items()} for _ in range(x.shape[2])]
        for path, of_file in zip(self.paths, x, strict=True):
            content = self.newest if path == self.paths[-1] else _read(path)
            averages = content["averages"]
            if content["model_config"] != self.newest["model_config"] or [*averages] != [*self.newest["averages"]]:
                raise utils.UserError(f"{path} is of another run than {self.paths[-1]}: move it away")
            for (width, average), row in zip(averages.items(), of_file, strict=True):
                for total, factor in zip(sums, row.tolist(), strict=True):
                    self._add(total, average, factor, path, width)
        return sums

    def _add(self, total, average, factor, path, width):
        try:
            for name, tensor in total.items():
                tensor.add_(average[name], alpha=factor)
        except (KeyError, RuntimeError) as error:
            raise utils.UserError(f"{path}: its average {width} is not of the generator of its config") from error

    def _generator(self, parameters, device):
        meta = self.meta
        G = BigGAN.restore(BigGAN.Generator, parameters | self.newest["buffers"], device, meta)
        layers.settle(G.modules())  # their vectors are those of the raw weights
        return G


def _read(path):
    try:
        content = checkpoints.load(path)
    except checkpoints.Damaged as error:
        raise utils.UserError(f"{error}; without it (move it away) averages are made of the others") from error
    wrong = checkpoints.problem(content, checkpoints.AVERAGES)
    if not wrong and not _are_widths(content["averages"]):
        wrong = f"relative widths {utils.listed(list(content['averages']))}"
    if wrong:
        raise checkpoints.Damaged(f"{path} holds no averages as train.py writes them: {wrong}")
    if name := checkpoints.not_finite(content["averages"]):
        raise utils.UserError(
            f"{path}: {name} holds values that are not finite, as a diverged run leaves them; without it and later "
            "ones (move them away) averages are made of the others"
        )
    if content["step"] != checkpoints.step_of(path):  # a copy: its weights would count for another time
        raise utils.UserError(f"{path} holds averages of step {content['step']}, not of its name's: move it away")
    return content


def _are_widths(names):
    """Whether these, at least one, are what averages are named by."""
    try:
        return bool(names) and all(power_law.is_width(float(name)) for name in names)
    except ValueError:
        return False
