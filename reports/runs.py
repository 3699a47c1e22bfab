"""Curves of several runs in one figure: the mean over the seeds of a name, and how far these lie apart.

Symbols: n runs of a name, X places on the axis.
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from reports import curves
from reports.events import curve, training_seconds

SEED = re.compile(r"[_.-]?seed[_-]?\d+", re.IGNORECASE)  # of a run's name: what its seeds do not share
AXES = {
    "steps": "generator step",
    "images": "real images seen by D",
    "seconds": "seconds of training (without evaluations and pauses)",
}


@dataclass(frozen=True)
class RunCurves:
    """A run by its name, that of its seeds, and its log."""

    name: str
    path: Path
    events: list[dict]

    def at(self, metric: str, against: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric's places on an axis of AXES, and its values, float64 (X,) each."""
        points = np.array(curve(self.events, metric), dtype=np.float64).reshape(-1, 2)
        points = points[np.isfinite(points[:, 1])]
        if against == "steps":
            return points[:, 0], points[:, 1]
        steps, seconds, images = np.array(training_seconds(self.events), dtype=np.float64).T
        known = points[:, 0] <= steps[-1]  # what is after the last logged step is not known
        return np.interp(points[known, 0], steps, seconds if against == "seconds" else images), points[known, 1]


class Curve(NamedTuple):
    """Of one name: places (X,), mean and standard deviation (n - 1; 0 of one run) of the runs that reach, how many."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    n: np.ndarray


def name_of(folder: str) -> str:
    """A run's name without its seed, which is what its seeds have in common."""
    return SEED.sub("", folder).strip("_.-") or "seeds"


def metrics_of(events: Sequence[dict]) -> list[str]:
    """Names of the numbers of evaluations in a log, or where there are none of its losses; in the panels' order.

    Numbers that are nowhere finite are none: no picture can show them.
    """
    names = [name for names in curves.PANELS.values() for name in names]
    known = [name for name in names if any(math.isfinite(value) for _, value in curve(events, name))]
    evaluated = {name for event in events if event["event"] == "eval" for name in event}
    return [name for name in known if name in evaluated] or known


def averaged(runs: Sequence[RunCurves], metric: str, against: str) -> Curve | None:
    """Over the runs of one name, at all places of any of them; None where none has the metric.

    Between its own places a run is on the straight line; beyond its ends it does not count.
    """
    parts = [part for run in runs if len((part := run.at(metric, against))[0])]
    if not parts:
        return None
    x = np.unique(np.concatenate([places for places, _ in parts]))
    values = np.stack([np.interp(x, *part, left=np.nan, right=np.nan) for part in parts])  # (n,X)
    n = np.isfinite(values).sum(axis=0)
    mean = np.nansum(values, axis=0) / n
    square = np.nansum((values - mean) ** 2, axis=0)
    return Curve(x, mean, np.sqrt(square / np.maximum(n - 1, 1)), n)


def compared(runs: Sequence[RunCurves], metrics: Sequence[str], against: str) -> dict[str, dict[str, Curve]]:
    """By metric and name, in their order; without metrics that no run has."""
    names = list(dict.fromkeys(run.name for run in runs))
    found = {}
    for metric in metrics:
        lines = {name: averaged([run for run in runs if run.name == name], metric, against) for name in names}
        if lines := {name: line for name, line in lines.items() if line is not None}:
            found[metric] = lines
    return found


def draw(panels: dict[str, dict[str, Curve]], against: str, path: Path) -> None:
    """One panel a metric, one line a name, with a band of one standard deviation where it has several runs.

    The file's format follows its suffix. Names are at the lines' ends and in the first panel's legend.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure, every = curves.panel_figure(len(panels))
    for axes, (metric, lines) in zip(every, panels.items(), strict=True):
        for name, line in lines.items():
            number = names.index(name)
            most = int(line.n.max())
            label = f"{name} (mean of {most})" if most > 1 else name
            curves.draw_curve(axes, utils.printable(label), line.x, line.mean, number)
            if most > 1:
                colour = curves.COLOURS[number % len(curves.COLOURS)]
                low, high = line.mean - line.std, line.mean + line.std
                axes.fill_between(line.x, low, high, alpha=0.2, color=colour, linewidth=0)
        curves.set_ticks(axes, logarithmic=metric in curves.FALLING)
        curves.finish_panel(axes, metric, AXES[against])
        axes.legend(fontsize=7)
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def write_csv(panels: dict[str, dict[str, Curve]], against: str, path: Path) -> None:
    """A line for each point: metric, name, place, mean, std, number of runs; numbers in full."""
    with utils.atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "name", against, "mean", "std", "runs"])
        for metric, lines in panels.items():
            for name, line in lines.items():
                for x, mean, std, n in zip(*(column.tolist() for column in line), strict=True):
                    writer.writerow([metric, name, f"{x:.10g}", repr(mean), repr(std), n])
