"""The page of a run: one HTML file that needs nothing but itself, opens without a server and asks nobody."""

import base64
import html
import io
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

import utils
from reports import svg
from reports.curves import FALLING, PANELS, SPREADS
from reports.events import NUMBERS, curve, event_text, marks, shown
from reports.svg import Panel, Series
from torch_utils.checkpoints import step_of

HERE = Path(__file__).parent
SHEETS_BYTES = 6_000_000  # of all sheets in the page, before base64
MOST_SHEETS = 40
SHEET_SIDE = 900  # pixels of a sheet that is too large as it is
# The browser itself holds the page to asking nobody.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """What the page of a run says.

    folder: of the run, with its samples/ and weights/; end: the step it ends at; flags: {name: (value, default)} of
    those that differ; environment: by name; real: what real images score, by the name of a metric.
    """

    folder: Path
    events: list[dict]
    end: int
    flags: dict[str, tuple] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)


def write_page(report: Report, path: Path) -> None:
    """Raises: utils.UserError where the file cannot be written."""
    text = page(report)
    with utils.atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def page(report: Report) -> str:
    """The page as text."""
    events = report.events
    panels = run_panels(events, report.real)
    drawn = [svg.draw(panel, i) for i, panel in enumerate(panels)]
    sheets = embedded_sheets(report.folder / "samples")
    data = {"width": svg.WIDTH, "panels": [series for _, series in drawn], "sheets": sheets}
    name = _text(report.folder.resolve().name)
    figures = [_figure(panel.title, *drawing) for panel, drawing in zip(panels, drawn, strict=True)]
    flags = _section("Flags that differ from their defaults", _flags(report.flags))
    about = _section("Environment", _pairs(report.environment)) + _section("Files", _files(report.folder))
    sections = [
        _section("Curves", f'<div class="panels">{"".join(figures)}</div>' if figures else ""),
        _section("The fixed sheet over time", _slider(sheets)),
        _section("Evaluations", _evaluations(events)),
        _section("What happened", _news(events)),
        _section("Largest singular values", _singular_values(events)),
        f'<div class="columns"><div>{flags}</div><div>{about}</div></div>',
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>\n{(HERE / 'page.css').read_text()}</style></head>\n<body>\n<h1>{name}</h1>\n{_status(report)}\n"
        f"{''.join(sections)}\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{(HERE / 'page.js').read_text()}</script>\n</body></html>\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# What stands on top


def seconds_left(events: Sequence[dict], end: int) -> float | None:
    """Until step `end`, by the clock between the newest logged lines, evaluations included; None where unknown.

    The time between two commands, which is far longer than between other lines, does not count.
    """
    logged = [(event["step"], event["time"]) for event in events if event["step"] and "time" in event][-200:]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(logged) if b[1] >= a[1]]
    usual = sorted(seconds for number, seconds in steps if number)
    if not usual:
        return None
    pause = max(600, 20 * usual[len(usual) // 2])
    steps = [(number, seconds) for number, seconds in steps if seconds <= pause]
    number = sum(number for number, _ in steps)
    return (end - logged[-1][0]) * sum(seconds for _, seconds in steps) / number if number > 0 else None


def _status(report):
    step = max((event["step"] for event in report.events), default=0)
    now = time.time()
    if step >= report.end:
        what = f"complete at step {step:,}"
    else:
        left = seconds_left(report.events, report.end)
        time_left = f", about {utils.duration(left)} left" if left else ""
        what = f"step {step:,} of {report.end:,} ({step / report.end:.0%}){time_left}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    latest = next((e for e in reversed(report.events) if e["event"] == "eval"), None)
    numbers = f"step {latest['step']:,}: {_summary(latest)}" if latest else "not evaluated yet"
    return (
        f'<p class="status"><b>{what}</b> <span class="faint" id="written" data-time="{now:.0f}">written {when}</span>'
        f'</p>\n<progress max="{report.end}" value="{min(step, report.end)}"></progress>\n<p>{_text(numbers)}</p>'
    )


def _summary(event):
    keys = [key for names in PANELS.values() for key in names if key in event]
    return ", ".join(f"{key} {event[key]:.4g}" for key in keys)


# ---------------------------------------------------------------------------------------------------------------------
# Curves and sheets


def run_panels(events: Sequence[dict], real: dict[str, float]) -> list[Panel]:
    """The panels of a run: those of curves.png, the speed's, and the singular values'."""
    happened = marks(events)
    panels = []
    for title, names in {**PANELS, "images per second": ("images_per_s",)}.items():
        series = [_series(events, name) for name in names]
        if series := [one for one in series if any(math.isfinite(value) for _, value in one.points)]:
            lines = [(f"{name} of real images", real[name]) for name in names if name in real]
            panels.append(Panel(title, series, happened, lines, logarithmic=any(name in FALLING for name in names)))
    layers = {name: None for e in events if e["event"] == "singular_values" for name in e if "/" in name}
    for network in "GD":
        series = [_series(events, name) for name in layers if name.startswith(f"{network}/")]
        if series:
            panels.append(Panel(f"largest singular values of {network}'s layers", series, happened, logarithmic=True))
    return panels


def _series(events, name):
    points, spread = curve(events, name), SPREADS.get(name)
    spreads = dict(curve(events, spread)) if spread else {}
    return Series(name, points, [spreads.get(step, 0.0) for step, _ in points] if spreads else None)


def _figure(title, drawing, series):
    keys = "".join(
        f'<span><i class="key" style="border-top: 3px {one["style"]} {one["colour"]}"></i>{_text(one["name"])}</span>'
        for one in series
    )
    return f'<figure><figcaption>{_text(title)}</figcaption>{drawing}<div class="readout">{keys}</div></figure>'


def embedded_sheets(folder: Path) -> list[dict]:
    """The sheets step_*.png of a folder, `step` and `src` as a data URI; evenly chosen where they would be too many.

    Those that are too large as they are become JPEG. Together at most SHEETS_BYTES before base64; a damaged one is left
    out.
    """
    paths = sorted(folder.glob(f"step_{'[0-9]' * 8}.png"))
    number = min(len(paths), MOST_SHEETS)
    while number:
        chosen = [paths[round(i * (len(paths) - 1) / max(1, number - 1))] for i in range(number)]
        if number == 1:
            chosen = paths[-1:]
        found = [(path, content) for path in chosen if (content := _sheet(path, SHEETS_BYTES // number))]
        if sum(len(content) for _, (_, content) in found) <= SHEETS_BYTES:
            return [
                {"step": step_of(path), "src": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"}
                for path, (kind, content) in found
            ]
        number //= 2
    return []


def _sheet(path, most):
    """Format and bytes of a sheet, as it is where it has no more than `most`; None of a damaged one."""
    try:
        content = path.read_bytes()
        if len(content) <= most:
            return "png", content
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
    except (OSError, SyntaxError):  # what Pillow makes of damaged files
        return None
    for side, quality in ((SHEET_SIDE, 85), (SHEET_SIDE * 2 // 3, 75)):
        small = picture.copy()
        small.thumbnail((side, side * 4))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=quality)
        if buffer.tell() <= most:
            break
    return "jpeg", buffer.getvalue()


def _slider(sheets):
    if not sheets:
        return ""
    last = len(sheets) - 1
    about = 'id="slider" aria-label="step of the sheet"'
    return (
        f'<p><input type="range" {about} min="0" max="{last}" value="{last}" step="1"> <b id="sheet_step"></b></p>'
        f'\n<img id="sheet" alt="sample sheet: a class a column">'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _evaluations(events):
    found = [event for event in events if event["event"] == "eval"]
    if not found:
        return ""
    keys = [key for key in dict.fromkeys(k for e in found for k in e) if _all_numbers(found, key)]
    protocols = []
    rows = []
    for event in found:
        protocol = event.get("protocol") or {}
        if protocol not in protocols:
            protocols.append(protocol)
        cells = [f"{event['step']:,}", *(_number(event.get(key)) for key in keys), str(protocols.index(protocol) + 1)]
        rows.append("".join(f'<td class="n">{cell}</td>' for cell in cells))
    head = "".join(f'<th class="n">{_text(name)}</th>' for name in ("step", *keys, "protocol"))
    body = "".join(f"<tr>{row}</tr>" for row in reversed(rows))
    table = f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    about = "".join(
        f"<details><summary>protocol {i + 1}</summary>{_pairs(protocol)}</details>"
        for i, protocol in enumerate(protocols)
        if protocol
    )
    return table + about


def _all_numbers(events, key):
    return key not in ("step", "time") and all(isinstance(e.get(key, 0.0), (int, float)) for e in events)


def _number(value):
    return "-" if value is None else f"{value:.5g}"


def _news(events):
    found = [event for event in events if event["event"] not in NUMBERS]
    newest = found[-200:]
    rows = _rows(((f"{e['step']:,}", _clock(e), _text(event_text(e))) for e in reversed(newest)), right=(0,))
    older = f'<p class="faint">and {len(found) - len(newest):,} before</p>' if len(found) > len(newest) else ""
    return f'<div class="scroll"><table>{rows}</table></div>{older}' if rows else ""


def _clock(event):
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(event["time"])) if "time" in event else ""


def _singular_values(events):
    found = [event for event in events if event["event"] == "singular_values"]
    if not found:
        return ""
    first, last = found[0], found[-1]
    layers = sorted((name for name in last if "/" in name), key=lambda name: -last[name])
    rows = _rows(((_text(name), _number(first.get(name)), _number(last[name])) for name in layers), right=(1, 2))
    head = f'<tr><th>layer</th><th class="n">step {first["step"]:,}</th><th class="n">step {last["step"]:,}</th></tr>'
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def _flags(flags):
    rows = _rows((f"--{_text(name)}", _value(value), _value(default)) for name, (value, default) in flags.items())
    return f'<table><tr><th></th><th></th><th class="faint">default</th></tr>{rows}</table>' if rows else ""


def _pairs(values):
    rows = _rows((_text(name), _value(value)) for name, value in values.items())
    return f"<table>{rows}</table>" if rows else ""


def _files(folder):
    """Links to the run's own files: relative, so that they hold wherever the folder is taken to."""
    weights = sorted((folder / "weights").glob("*.pth"), reverse=True)
    files = [*weights, *(folder / name for name in ("curves.png", "config.json", "log.jsonl"))]
    links = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files if path.is_file()}
    rows = ((f'<a href="{quote(name)}">{_text(name)}</a>', f"{size / 1e6:,.1f} MB") for name, size in links.items())
    return f"<table>{_rows(rows, right=(1,))}</table>" if links else ""


# ---------------------------------------------------------------------------------------------------------------------
# Text


def _section(title, content):
    """Nothing, where there is nothing to show."""
    return f"<h2>{_text(title)}</h2>\n{content}\n" if content else ""


def _rows(rows, right=()):
    """Rows of a table, of cells that are HTML already; right: the columns of numbers."""
    kinds = [' class="n"' if i in right else "" for i in range(9)]
    cells = ("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=False)) for row in rows)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def _value(value):
    if isinstance(value, (list, tuple)):
        value = "_".join(map(str, value)) or "-"
    return _text("-" if value is None or value == "" else shown(value))


def _text(value):
    return html.escape(utils.printable(str(value)))


def _json(data):
    """JSON that no text in it can end the script element of."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
