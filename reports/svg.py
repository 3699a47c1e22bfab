"""Curves as inline SVG of a page, drawn here; page.js only tells the values under the pointer.

Symbols: x and y are places in the drawing, in units of its width.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from reports.events import Mark

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22  # margins
STYLES = {"solid": "", "dashed": "6 3", "dotted": "2 3"}  # in grey, what colours tell apart: CSS and SVG dashes
NUM_COLOURS = 7  # of page.css
MOST_POINTS = 500  # of a curve: a pixel has no more


class Series(NamedTuple):
    """A curve by its name: (step, value) points, and their spread where there is one, at the same places."""

    name: str
    points: list[tuple[int, float]]
    spread: list[float] | None = None


class Panel(NamedTuple):
    """A title and what is drawn; real: (name, value) lines across."""

    title: str
    series: list[Series]
    marks: Sequence[Mark] = ()
    real: Sequence[tuple[str, float]] = ()
    logarithmic: bool = False


def thinned(series: Series) -> Series:
    """At most about MOST_POINTS points, evenly chosen, the last among them; without values that are not finite."""
    spread = series.spread or [None] * len(series.points)
    finite = [(p, s) for p, s in zip(series.points, spread, strict=True) if math.isfinite(p[1])]
    every = math.ceil(len(finite) / MOST_POINTS) or 1
    kept = finite[::-1][::every][::-1]
    return Series(series.name, [p for p, _ in kept], [s for _, s in kept] if series.spread else None)


def look(number: int) -> tuple[str, str]:
    """Colour and CSS style of the curve of a number."""
    return f"var(--c{number % NUM_COLOURS})", list(STYLES)[number // NUM_COLOURS % 3 if number > 2 else number]


class Axes:
    """From steps and values to places in the drawing."""

    def __init__(self, panel: Panel):
        points = [(step, value, s or 0) for series in panel.series for (step, value), s in _with_spread(series)]
        steps = [step for step, *_ in points]
        lows = [value - s for _, value, s in points] + [value for _, value in panel.real]
        highs = [value + s for _, value, s in points] + [value for _, value in panel.real]
        self.steps = min(steps), max(steps)
        low, high = min(lows), max(highs)
        self.logarithmic = panel.logarithmic and high > 5 * min(value for _, value, _ in points) > 0 and low > 0
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1
        self.values = low - margin, high + margin

    def x(self, step: float) -> float:
        first, last = self.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        value = math.log10(value) if self.logarithmic else value
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def value_ticks(self) -> list[float]:
        low, high = self.values
        if not self.logarithmic:
            return ticks(low, high, 6)
        decades = range(math.floor(low), math.ceil(high) + 1)
        factors = (1,) if high - low > 3 else (1, 2, 5)
        return [f * 10.0**e for e in decades for f in factors if low <= math.log10(f * 10.0**e) <= high]


def _with_spread(series):
    return zip(series.points, series.spread or [None] * len(series.points), strict=True)


def ticks(low: float, high: float, number: int) -> list[float]:
    """About so many round numbers of an interval."""
    size = 10.0 ** math.floor(math.log10((high - low) / number))
    step = next(f * size for f in (1, 2, 5, 10) if (high - low) / (f * size) <= number)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(number: float) -> str:
    """A number at an axis: 1M, 200k, 0.05."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(number) >= size and number % (size / 10) == 0 and (size > 1e3 or abs(number) >= 1e4):
            return f"{number / size:g}{unit}"
    return f"{number:.4g}"


def draw(panel: Panel, number: int) -> tuple[str, list[dict]]:
    """A panel as an SVG element that is the page's `number`th, and its series for page.js."""
    panel = panel._replace(series=[thinned(series) for series in panel.series])
    panel = panel._replace(series=[series for series in panel.series if series.points])
    axes = Axes(panel)
    parts = []
    for value in axes.value_ticks():
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{short(value)}</text>')
    first, last = axes.steps
    for step in ticks(first, last, 5) if last > first else [first]:
        if step == int(step):
            x = axes.x(step)
            anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{short(step)}</text>')
    for step, text, alarm in panel.marks:
        if first <= step <= last:
            x = axes.x(step)
            kind = "mark alarm" if alarm else "mark"
            line = f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            parts.append(f"{line}<title>{html.escape(text)}</title></line>")
    for name, value in panel.real:
        y = axes.y(value)
        parts.append(f'<line class="real" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y - 3:.1f}" text-anchor="end">{html.escape(name)}</text>')
    data = []
    for i, series in enumerate(panel.series):
        colour, style = look(i)
        places = [(step, value, round(axes.x(step), 1), round(axes.y(value), 1)) for step, value in series.points]
        if series.spread:
            upper = [f"{axes.x(step):.1f},{axes.y(value + s):.1f}" for (step, value), s in _with_spread(series)]
            lower = [f"{axes.x(step):.1f},{axes.y(value - s):.1f}" for (step, value), s in _with_spread(series)]
            parts.append(f'<polygon class="band" fill="{colour}" points="{" ".join(upper + lower[::-1])}"/>')
        corners = " ".join(f"{x},{y}" for *_, x, y in places)
        dashes = f' stroke-dasharray="{STYLES[style]}"' if STYLES[style] else ""
        parts.append(f'<polyline class="curve" stroke="{colour}"{dashes} points="{corners}"/>')
        if len(places) < 40:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.2" fill="{colour}"/>' for *_, x, y in places]
        data.append({"name": series.name, "colour": colour, "style": style, "points": places})
    cursor = f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" data-panel="{number}" role="img">'
    return f"{head}<title>{html.escape(panel.title)}</title>{''.join(parts)}{cursor}</svg>", data
