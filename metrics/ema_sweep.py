"""Metrics against the length of G's moving average, chosen after training (Karras et al. 2024, section 3.2)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import utils
from torch_utils import power_law

WIDTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)  # those of the flag alone
KEY = "ema_sweep"
LARGE = 0.1  # a fit_error that makes it another average than the one asked for


def add_sweep_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sweep of moving averages")
    group.add_argument(
        "--ema_sweep", nargs="*", type=power_law.widths, metavar="X",
        help="evaluate power-law averages of these relative widths, as 0.05 0.1 0.2, made of those that --ema_power "
        f"has stored in a run folder; without any: {' '.join(map(str, WIDTHS))}",
    )  # fmt: skip
    group.add_argument(
        "--ema_out", metavar="FILE", help="write the best of them, by FID or FD, as a checkpoint for sample.py"
    )


def chosen_widths(values: Sequence[Sequence[float]]) -> list[float]:
    """The widths that --ema_sweep names, from the shortest average on."""
    return sorted({width for part in values for width in part}) or list(WIDTHS)


def distance(point: dict) -> float:
    """What the best is chosen by: the Frechet distance of a point's metrics."""
    return point["fid" if "fid" in point else "fd"]


def best(points: Sequence[dict]) -> int:
    """Which of the points is the best."""
    return min(range(len(points)), key=lambda i: distance(points[i]))


def verdict(points: Sequence[dict]) -> str:
    """One line on the best of the points."""
    i = best(points)
    at_end = len(points) > 1 and i in (0, len(points) - 1)
    more = "; it is the last of the list: others beyond may be better" if at_end else ""
    if points[i]["fit_error"] > LARGE:
        more += f"; fit_error {points[i]['fit_error']:.2f}: averages stored more often come closer"
    key = "FID" if "fid" in points[i] else "FD"
    return f"best: relative width {points[i]['protocol']['ema_power']:g}, {key} {distance(points[i]):.4f}{more}"


def plot(points: Sequence[dict], path: Path) -> None:
    """Draw the Frechet distance against the relative width of the average, to a PNG."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["protocol"]["ema_power"] for point in points], list(map(distance, points)), marker=".")
    axes.set(xlabel="relative width of the average", ylabel="FID" if "fid" in points[0] else "FD")
    axes.grid(alpha=0.3)
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
