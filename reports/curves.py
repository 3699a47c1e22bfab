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
MANY = 300  # points of a curve: more hide one another
ROOM = 0.05  # of a panel's width, that the number of a mark takes
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
    happened = sorted(marks(events, most=90), key=lambda mark: mark.step)
    for axes, (title, names) in zip(every, panels.items(), strict=True):
        for number, name in enumerate(names):
            steps, values = zip(*curves[name], strict=True)
            draw_curve(axes, name, steps, values, number)
            draw_band(axes, events, name, number)
            if name in (real or {}):
                axes.axhline(real[name], color="0.35", linestyle=":", linewidth=1, label=f"{name} of real images")
        set_ticks(axes, logarithmic=any(name in FALLING for name in names))
        finish_panel(axes, title, "generator step")
        draw_marks(axes, happened)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize=8)
    tell_marks(figure, happened)
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_marks(axes, happened: Sequence[Mark]) -> None:
    """A line across at each step where something happened, and above it its number, of those that `tell_marks` tells.

    Numbers for which there is no room side by side are one: 2-4.
    """
    for step, _, alarm in happened:
        axes.axvline(step, color=_mark_colour(alarm), linestyle="-" if alarm else "--", linewidth=1)
    low, high = axes.get_xlim()
    groups = []
    for number, (step, _, alarm) in enumerate(happened, 1):
        if not groups or step - groups[-1][0] > ROOM * (high - low):
            groups.append((step, []))
        groups[-1][1].append((number, alarm))
    for step, members in groups:
        (first, _), (last, _) = members[0], members[-1]
        text = f"{first}" if first == last else f"{first}-{last}"
        place = {"xycoords": axes.get_xaxis_transform(), "xytext": (0, 1), "textcoords": "offset points"}
        colour = _mark_colour(any(alarm for _, alarm in members))
        axes.annotate(text, (step, 1), **place, ha="center", va="bottom", fontsize=7, color=colour)
    if happened:
        axes.set_title(axes.get_title(), fontsize=10, pad=14)  # above the numbers


def tell_marks(figure, happened: Sequence[Mark]) -> None:
    """Below all panels a line for each mark: its number, its step, and what happened."""
    lines = [f"{i}  step {step:,}: {utils.printable(text)}" for i, (step, text, _) in enumerate(happened, 1)]
    if lines:  # a label of the whole figure, for which the layout makes room
        figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 0.15 * len(lines))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, parse_math=False)


def _mark_colour(alarm):
    return ALARM if alarm else "0.4"


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
    colour = COLOURS[number % len(COLOURS)]
    if len(points) == 1:  # of which a band would show nothing
        axes.errorbar(*points[0], capsize=3, linewidth=1, color=colour)
    elif points:
        steps, values, spreads = (np.array(column) for column in zip(*points, strict=True))
        low, high = values - spreads, values + spreads
        axes.fill_between(steps, low, high, alpha=0.2, color=colour, linewidth=0)


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
