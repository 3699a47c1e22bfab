"""Curves of one run as a picture."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import utils
from reports.events import Mark, curve, marks

# Curves that share a panel; a panel whose numbers the run does not have is left out.
PANELS = {
    "losses": ("D_loss_real", "D_loss_fake", "D_loss", "G_loss"),
    "penalties": ("D_r1", "D_r2", "D_lecam", "D_cr", "D_bcr_real", "D_bcr_fake", "D_zcr", "G_zcr"),
    "auxiliary classifier": ("D_d2dce", "G_d2dce"),
    "strength of augmentation": ("ada_p",),
    "Frechet distance": ("fid", "fd"),
    "Inception score": ("is_mean",),
    "kernel distance": ("kid_mean",),
    "precision and recall": ("precision", "recall"),
    "density and coverage": ("density", "coverage"),
    "class accuracy": ("accuracy",),
}
SPREADS = {"is_mean": "is_std", "kid_mean": "kid_std"}  # what is drawn as a band around a curve: one to either side
FALLING = ("fid", "fd", "kid_mean")  # by orders of magnitude: on a logarithmic axis
MANY = 1000  # points of a curve: more hide one another
COLUMNS = 3  # of panels, at most
# Okabe and Ito's colours, which the colour-blind can tell apart; with the dashes they can be told apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ALARM = "#C80000"  # of what should not happen: darker than all of these
DASHES = ("-", "--", ":", "-.")


def plot_curves(events: Sequence[dict], path: Path, real: dict[str, float] | None = None) -> None:
    """Draw the curves of a log into one PNG: losses at each logged step, metrics at each evaluation.

    real: what real images score by the name of a metric, a line across its panel.
    """
    curves = {name: curve(events, name) for names in PANELS.values() for name in names}
    panels = {title: [n for n in names if curves[n]] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    figure, every = panel_figure(len(panels))
    happened = marks(events)
    for axes, (title, names) in zip(every, panels.items(), strict=True):
        for number, name in enumerate(names):
            steps, values = zip(*curves[name], strict=True)
            draw_curve(axes, name, steps, values, number)
            draw_band(axes, events, name, number)
            if name in (real or {}):
                axes.axhline(real[name], color="0.35", linestyle=":", linewidth=1, label=f"{name} of real images")
        set_ticks(axes, logarithmic=title == "Frechet distance")
        finish_panel(axes, title, "generator step")
        draw_marks(axes, happened)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize=8)
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_marks(axes, happened: Sequence[Mark]) -> None:
    """A line across at each step where something happened, and beside it what."""
    for step, text, alarm in happened:
        colour = ALARM if alarm else "0.4"
        axes.axvline(step, color=colour, linestyle="-" if alarm else "--", linewidth=1)
        place = {"xycoords": axes.get_xaxis_transform(), "xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(utils.printable(text), (step, 0.03), **place, rotation=90, fontsize=6, color=colour)


def panel_figure(number: int) -> tuple:
    """A figure of so many panels and these: rows of about as many, which fill the whole width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    rows = math.ceil(number / COLUMNS)
    bounds = [number - i * number // rows for i in range(rows, -1, -1)]  # longer rows first
    widest = max(b - a for a, b in itertools.pairwise(bounds))
    figure = Figure(figsize=(max(6, 4.6 * widest), 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    whole = math.lcm(*range(1, widest + 1))
    grid, panels = figure.add_gridspec(rows, whole), []
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        width = whole // (end - start)
        panels += [figure.add_subplot(grid[row, i * width : (i + 1) * width]) for i in range(end - start)]
    return figure, panels


def finish_panel(axes, title: str, x_name: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def draw_curve(axes, name: str, x: Sequence[float], values: Sequence[float], number: int = 0) -> None:
    """One curve; of very many points the average over a hundredth of them, and behind it, pale, the points.

    number: of the curve in its panel, by which its colour and dashes go.
    """
    look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
    (line,) = axes.plot(x, values, label=name, linewidth=1.2, marker="." if len(x) < 40 else None, **look)
    if len(x) > MANY:
        line.set(label=None, linewidth=0.5, alpha=0.2, linestyle="-")
        width = len(x) // 100
        middle = np.convolve(values, np.full(width, 1 / width), "valid")
        axes.plot(x[width // 2 :][: len(middle)], middle, label=name, linewidth=1.2, **look)


def draw_band(axes, events: Sequence[dict], name: str, number: int = 0) -> None:
    """The spread around a curve, one standard deviation to either side, where the log has one."""
    spread = SPREADS.get(name)
    points = [(e["step"], e[name], e[spread]) for e in events if spread and {name, spread} <= e.keys()]
    if points:
        steps, values, spreads = (np.array(column) for column in zip(*points, strict=True))
        low, high = values - spreads, values + spreads
        axes.fill_between(steps, low, high, alpha=0.2, color=COLOURS[number % len(COLOURS)], linewidth=0)


def set_ticks(axes, logarithmic: bool) -> None:
    """Whole steps, large ones as 200k; numbers at the other axis that can be read, also where it is logarithmic."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    if axes.dataLim.x1 >= 100_000:
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if logarithmic and high > 5 * low > 0:  # less than that has no two round numbers in it
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
