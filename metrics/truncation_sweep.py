"""Metrics against truncation: fidelity is traded for variety (Brock et al. 2019, section 3.1 and appendix D)."""

import argparse
import math
from pathlib import Path

import utils

MAX_POINTS = 1000
KEY = "truncation_sweep"


def add_sweep_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("truncation sweep")
    group.add_argument(
        "--truncation_sweep", nargs=3, type=_positive, metavar=("FROM", "TO", "STEP"),
        help="evaluate a checkpoint at each of these truncations, with the same seeds: 0.2 1.0 0.1",
    )  # fmt: skip
    group.add_argument("--out", help="folder for plot and numbers; None: samples/ in the checkpoint's run folder")


def _positive(text):
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def limits(start: float, stop: float, step: float) -> list[float]:
    """The truncations from start to stop, both included where the step meets it. Raises: utils.UserError."""
    flag = f"--truncation_sweep {start:g} {stop:g} {step:g}"
    if start > stop:
        raise utils.UserError(f"{flag}: goes from low to high")
    count = math.floor((stop - start) / step + 1e-6) + 1
    if count > MAX_POINTS:
        raise utils.UserError(f"{flag}: {count} evaluations are too many")
    return [round(start + i * step, 10) for i in range(count)]


def plot(sweep: list[dict], path: Path) -> None:
    """Draw three panels: Frechet distance and IS, precision and recall against truncation, and IS against distance.

    sweep: metrics with their protocol, by increasing truncation; IS, precision and recall may be missing.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    truncations = [metrics["protocol"]["truncation"] for metrics in sweep]
    key = "fid" if "fid" in sweep[0] else "fd"
    distance = [metrics[key] for metrics in sweep]
    scored, supports = "is_mean" in sweep[0], "precision" in sweep[0]
    number = 1 + scored + supports
    figure = Figure(figsize=(4.5 * number + 0.5, 3.8), layout="constrained")
    both, *others = figure.subplots(1, number, squeeze=False)[0]
    both.plot(truncations, distance, marker=".", color="tab:blue")
    both.set_ylabel(key.upper(), color="tab:blue")
    both.set_title(f"{key.upper()} and Inception score" if scored else key.upper())
    if scored:
        score, trade = [metrics["is_mean"] for metrics in sweep], others.pop(0)
        right = both.twinx()
        right.plot(truncations, score, marker=".", color="tab:orange")
        right.set_ylabel("Inception score", color="tab:orange")
        _plot_trade(trade, truncations, distance, score, key)
    for axes in others:
        for name in ("precision", "recall"):
            axes.plot(truncations, [metrics[name] for metrics in sweep], marker=".", label=name)
        axes.set(ylim=(-0.02, 1.02), title="precision and recall")
        axes.legend()
    for axes in (both, *others):
        axes.set_xlabel(f"truncation of z ({sweep[0]['protocol']['truncation_kind']})")
        axes.grid(alpha=0.3)
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _plot_trade(axes, truncations, distance, score, key):
    axes.plot(distance, score, marker=".", color="tab:gray")
    every = -(-len(truncations) // 10)  # labels would overlap
    for limit, x, y in list(zip(truncations, distance, score, strict=True))[::every]:
        axes.annotate(f"{limit:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.1)  # room for the labels
    axes.set(xlabel=key.upper(), ylabel="Inception score", title="trade-off, by truncation")
    axes.grid(alpha=0.3)
