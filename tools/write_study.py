"""Write a page of tables, curves and conclusions from the results of tools/experiments.py.

    python tools/write_study.py runs/study docs/study.md

Every word is derived from the numbers: what can be concluded follows from the confidence intervals of paired
differences (runs of the same seed), by Student's t over the seeds. Pictures are written beside the page.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from PIL import Image, ImageDraw

import utils
from reports.curves import COLOURS, DASHES
from tools.study_numbers import (
    LEARNT,
    LEVEL,
    METRICS,
    Difference,
    Results,
    at_budget,
    at_end,
    compare,
    costs_as_much,
    metrics_of,
    ratios,
    read_results,
    total,
)
from torch_utils.text import INK

SHEET_HEIGHT = 330  # pixels of a sheet on the picture of sheets


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> list[str]:
    rule = ["---" if i < numbers_from else "--:" for i in range(len(header))]
    return ["", *(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)), ""]


def spread(values: Sequence[float], of: int) -> str:
    """Mean and standard deviation over the seeds; how many where these are not all."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "-"
    text = f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
    return text if len(values) == of else f"{text} ({len(values)})"


def configurations(results: Results, data: str) -> list[str]:
    runs, rows, timed_on = results.runs[data], results.rows(data), results.timed_on(data)
    cheapest = min(runs[row][0]["multiply_adds"] for row in rows)
    lines = []
    for row in rows:
        run = runs[row][0]
        about = results.about["rows"][row]
        flags = f"`{about['flags']}`" if about["flags"] else "those of all rows"
        flags += f", as costly as {about['equal']}" if about["equal"] else ""
        cost = f"{run['multiply_adds'] / 1e9:.3g}", f"{run['multiply_adds'] / cheapest:.2f}"
        seconds = [other["seconds"] for other in runs[row] if results.made_on(other) == timed_on]
        cost = *cost, f"{np.median(seconds):.3g}" if seconds else "-"
        lines.append([row, flags, f"{run['G_ch']:g}", f"{run['parameters']:,}", *cost, str(len(runs[row]))])
    header = [
        "row",
        "flags",
        "G_ch",
        "parameters of G and D",
        "multiply-adds an iteration, 10⁹",
        "of the cheapest row's",
        "seconds an iteration",
        "seeds",
    ]
    told = "Seconds are medians, of runs beside which others ran, where several were made at a time"
    told += "." if results.is_of_one_kind else f"; those of runs by {timed_on}."
    return [*table(header, lines, 2), told, ""]


def values_table(results: Results, data: str, equal_compute: bool) -> list[str]:
    """Mean ± standard deviation of every row; at equal compute among rows whose names begin alike."""
    runs, metrics, lines = results.runs[data], metrics_of(results.runs[data]), []
    for row in results.rows(data):
        family = [run for rows in results.families(data).values() if row in rows for it in rows for run in runs[it]]
        budget, cells = min(map(total, family)), []
        for metric in metrics:
            values = [at_budget(run, metric, budget) if equal_compute else at_end(run, metric) for run in runs[row]]
            cells.append(spread(values, len(runs[row])))
        steps = budget / runs[row][0]["multiply_adds"] if equal_compute else runs[row][0]["step"]
        lines.append([row, f"{steps:.0f}", *cells])
    return table(["row", "steps", *(METRICS[name][0] for name in metrics)], lines)


def least(results: Results, data: str) -> list[str]:
    """A line on the row of the least mean distance after all steps, beside the table's first row."""
    runs, rows, metric = results.runs[data], results.rows(data), metrics_of(results.runs[data])[0]
    means = {row: float(np.mean([at_end(run, metric) for run in runs[row]])) for row in rows}
    best, name = min(rows, key=means.get), METRICS[metric][0]
    if not METRICS[metric][1] or best == rows[0]:
        return []
    share = f"{means[best] / means[rows[0]]:.2f} of that of `{rows[0]}`"
    return [f"The least mean {name} is that of `{best}`: {means[best]:.3f}, {share}.", ""]


def comparison_table(differences: list[Difference], metrics: list[str]) -> list[str]:
    """A line for each two rows and place; a difference with its interval for each metric, and what it says."""
    cells: dict = {}
    for it in differences:
        cells.setdefault((it.one, it.other, it.where), {})[it.metric] = it
    lines = []
    for place, found in cells.items():
        most = max(it.pairs for it in found.values())
        of = {name: "" if it.pairs == most else f" ({it.pairs})" for name, it in found.items()}
        values = (f"{found[name]}{of[name]}" if name in found else "-" for name in metrics)
        lines.append([*place, str(most), *values])
    return table(["row", "beside", "at", "pairs", *(METRICS[name][0] for name in metrics)], lines, 3)


def in_words(differences: list[Difference], metrics: list[str]) -> list[str]:
    """What can be concluded for each question of the table, by the distance and by coverage."""
    told = sum(math.isfinite(it.low) for it in differences)
    caution = (
        f"These are {told} intervals: where nothing differs at all, about {told * (1 - LEVEL):.2g} of them exclude 0 "
        "all the same. A single one of them is no proof; several metrics that agree are more."
    )
    lines = ["", caution if told else "With one seed a row there are no intervals.", ""]
    said: dict = {}
    for it in differences:
        if it.metric in (metrics[0], "coverage"):
            said.setdefault(it.question, {}).setdefault((it.one, it.other, it.where), []).append(it)
    for question, places in said.items():
        lines.append(f"* **{question or 'these two'}**")
        for (one, other, where), found in places.items():
            verdicts = "; ".join(f"{METRICS[it.metric][0]}: {it.verdict}" for it in found)
            lines.append(f"  * `{one}` beside `{other}` at {where}: {verdicts}.")
    return [*lines, ""]


def unlearnt(results: Results, data: str) -> list[str]:
    """A line for each family of which no row draws the classes that it is asked for, as far as accuracy says."""
    runs, lines = results.runs[data], []
    if "accuracy" not in metrics_of(runs):
        return []
    for family, rows in results.families(data).items():
        best = max(float(np.nanmean([at_end(run, "accuracy") for run in runs[row]])) for row in rows)
        if best < LEARNT:
            lines.append(
                f"No row of `{family}` has learnt the classes in these steps: the highest mean accuracy is {best:.3f}. "
                "What is said of them is said of generators early in their training, not of ones that have learnt."
            )
    return lines


def in_short(results: Results, differences: dict[str, list[Difference]]) -> list[str]:
    """The distance alone: which rows are better, worse and not to be told from what they are compared with."""
    lines = []
    for data, runs in results.runs.items():
        metric, places = metrics_of(runs)[0], {}
        for it in differences[data]:
            if it.metric == metric and it.pairs > 1:
                places.setdefault(it.where, {}).setdefault(it.verdict.partition(";")[0], []).append(it)
        for where, verdicts in places.items():
            lines.append(f"* **{data}**, at {where}, by {METRICS[metric][0]}:")
            for said, found in sorted(verdicts.items()):
                pairs = ", ".join(f"`{it.one}` beside `{it.other}` ({it.mean:+.3f})" for it in found)
                lines.append(f"  * {said}: {pairs}")
        if places:
            lines += [f"  * {line}" for line in unlearnt(results, data)]
    return ["## In short", "", *lines, ""] if lines else []


def over_all(results: Results) -> list[str]:
    """The ratios of distances over all settings, where the table asks the same of several families or data sets."""
    found = ratios(results)
    if not found:
        return []
    lines = []
    for it in found:
        rows = [f"`*{f'_{ending}' if ending else ''}`" for ending in (it.one, it.other)]
        less = sum(ratio < 1 for ratio in it.settings.values())
        verdict = "less" if it.high < 1 else "more" if it.low > 1 else "no difference can be told"
        each = ", ".join(f"{name} {r:.2f}{' (early)' * (name in it.early)}" for name, r in it.settings.items())
        numbers = f"{it.mean:.2f}", f"{it.low:.2f} to {it.high:.2f}", f"{less} of {len(it.settings)}"
        lines.append([*rows, it.where, *numbers, verdict, each])
    header = ["rows", "beside", "at", "ratio", f"{LEVEL:.0%} interval", "below 1 in", "what it says", "each"]
    return [
        "## Over all",
        "",
        "The distance of one row divided by that of another (below 1: it is better), the geometric mean over seeds in "
        "each setting (a data set and a family of rows), then over settings, with Student's t over these. Settings "
        "share data sets and kinds of networks, so they are not independent, and the intervals rather too narrow. "
        f"Early: neither row has learnt the classes there (accuracy below {LEARNT:g}).",
        *table(header, lines, 3),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_curves(results: Results, data: str, path: Path) -> None:
    """The distance against multiply-adds: a line is the mean over seeds, its band from the least to the most.

    A picture for each family, with what its rows are compared with.
    """
    metric = metrics_of(results.runs[data])[0]
    families = results.families(data)
    figure, axes = plt.subplots(1, len(families), figsize=(6 * len(families), 4.2), squeeze=False)
    for ax, (family, rows) in zip(axes[0], families.items(), strict=True):
        for i, row in enumerate([*(rivals := results.rivals(data, rows)), *rows]):
            group = results.runs[data][row]
            steps = sorted(set.intersection(*({it["step"] for it in run["evaluations"]} for run in group)))
            if not steps:
                continue
            values = np.array([[it[metric] for it in run["evaluations"] if it["step"] in steps] for run in group])
            compute = np.array(steps) * group[0]["multiply_adds"] / 1e12
            colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            label = f"{row} (beside it)" if row in rivals else row
            ax.plot(compute, values.mean(0), color=colour, linestyle=dashes, label=label)
            ax.fill_between(compute, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        ax.set(
            title=f"{data}: {family}", xlabel="multiply-adds of training, 10¹²", ylabel=METRICS[metric][0], yscale="log"
        )
        low, high = ax.get_ylim()
        if high > 10 * low:
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            which("{x:.3g}")  # 40, not 4 x 10^1
        ax.legend(fontsize=8)
    figure.tight_layout()
    with utils.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80)
    plt.close(figure)


def draw_sheets(results: Results, data: str, path: Path) -> bool:
    """The last sheets of the first seed side by side; False where there are none."""
    tiles = []
    for row in results.rows(data):
        run = results.runs[data][row][0]
        sheet = Path(run["folder"]) / "samples" / f"step_{run['step']:08d}.png"
        if sheet.exists():
            with Image.open(sheet) as opened:
                image = opened.convert("RGB")
            width = max(1, round(image.width * SHEET_HEIGHT / image.height))
            tile = Image.new("RGB", (width, SHEET_HEIGHT + 18), "white")
            tile.paste(image.resize((width, SHEET_HEIGHT)), (0, 18))
            ImageDraw.Draw(tile).text((4, 3), f"{row}, seed {run['seed']}", fill=INK)
            tiles.append(tile)
    if not tiles:
        return False
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = max(tile.width for tile in tiles) + 8, SHEET_HEIGHT + 26
    page = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), "white")
    for i, tile in enumerate(tiles):
        page.paste(tile, (i % columns * width, i // columns * height))
    with utils.atomic_path(path) as temporary:
        page.save(temporary, "JPEG", quality=88)
    return True


def copy_maps(results: Results, data: str, path: Path) -> str | None:
    """The picture of SSM's maps that explain.py has drawn of a run, if there is one; returns the run's folder."""
    for row in results.rows(data):
        for run in results.runs[data][row]:
            drawn = Path(run["folder"]) / "samples" / "explain" / "ssm.png"
            if drawn.exists():
                with utils.atomic_path(path) as temporary:
                    temporary.write_bytes(drawn.read_bytes())
                return run["folder"]
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The page


def section(results: Results, data: str, page: Path, differences: list[Difference]) -> list[str]:
    """All of one data set; writes its pictures beside the page."""
    name = f"{page.stem}_{data}"
    flags = results.about.get("data", {}).get(data)
    lines = [f"## {data}", "", *([f"Rows here have `{flags}`, too.", ""] if flags else [])]
    lines += ["### What was compared", *configurations(results, data)]
    lines += ["### At equal steps", "", "After all steps, by `evaluate.py`; mean ± standard deviation over the seeds."]
    lines += [*values_table(results, data, equal_compute=False), *least(results, data)]
    first, *others = [results.runs[data][row][0] for row in results.rows(data)]
    if not all(costs_as_much(first, other) for other in others):
        lines += [
            "### At equal compute",
            "",
            "Within a family (rows whose names begin alike, or all that share no beginning), where each has cost what "
            "the cheapest run costs in all; linear between the evaluations of the runs' logs (distances: their "
            "logarithms).",
        ]
        lines += values_table(results, data, equal_compute=True)
    lines += [
        "### What can be concluded",
        "",
        f"Mean differences of runs of the same seed, the first row's less the second's, ± half their {LEVEL:.0%} "
        "interval; what it says of the first row, where it excludes 0. At equal compute: where each of the two has "
        "cost what the cheaper of them costs in all.",
    ]
    metrics = metrics_of(results.runs[data])
    lines += comparison_table(differences, metrics)
    for line in unlearnt(results, data):
        lines += [line, ""]
    lines += in_words(differences, metrics)
    draw_curves(results, data, page.with_name(f"{name}_curves.png"))
    lines += [
        f"![Distance against compute on {data}]({name}_curves.png)",
        "",
        "Bands go from the least to the most of the seeds.",
        "",
    ]
    if draw_sheets(results, data, page.with_name(f"{name}_sheets.jpg")):
        lines += [f"![Samples of the first seed on {data}]({name}_sheets.jpg)", ""]
    if folder := copy_maps(results, data, page.with_name(f"{name}_ssm.png")):
        drawn_by = f"`python explain.py {folder} --only ssm` has drawn it."
        lines += [f"![Maps of SSM on {data}]({name}_ssm.png)", "", drawn_by, ""]
    return lines


def made_with(results: Results) -> str:
    """By which commits runs were made, and on what."""
    made: dict = {}
    for run in results.about["results"]:
        made.setdefault(results.made_on(run), []).append((results.about | run)["commit"][:12])
    return " ".join(
        f"{utils.counted(len(commits), 'run')} made with commit {', '.join(sorted(set(commits)))} and {made_on}."
        for made_on, commits in made.items()
    )


def write_page(folder: Path, page: Path) -> None:
    """Raises: utils.UserError where there are no results."""
    results = read_results(folder / "results.json")
    about, done = results.about, len(results.about["results"])
    lines = [
        f"# {folder.name}: results",
        "",
        f"Written by `python tools/write_study.py {folder} {page}` from `{folder / 'results.json'}`: {done} of "
        f"{about['planned']} runs. {made_with(results)} What made each number stands at the end.",
        "",
    ]
    if about.get("common"):
        lines += [f"All rows have `{about['common']}`.", ""]
    if done < about["planned"]:
        lines += ["**Not complete yet**: what follows is of the runs that are.", ""]
    if without := [f"`{name}`" for name in about.get("data", {}) if name not in results.runs]:
        lines += [f"**Of the table's data sets {', '.join(without)} has not been run.**", ""]
    differences = {data: compare(results, data) for data in results.runs}
    lines += in_short(results, differences) + over_all(results)
    for data in results.runs:
        lines += section(results, data, page, differences[data])
    lines += [
        "## Commands",
        "",
        "Each row's runs and their measurements, of the first seed; the others differ in",
        "`--seed`.",
    ]
    for data, rows in results.runs.items():
        for row in results.rows(data):
            run = rows[row][0]
            lines += [
                "",
                f"{data}, {row}:",
                "",
                "```bash",
                f"python {run['command']}",
                f"python {run['evaluate']}",
                "```",
            ]
    with utils.atomic_path(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(__doc__.splitlines()[0], "FOLDER PAGE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the experiments, with their results.json")
    parser.add_argument("page", type=Path, metavar="PAGE", help="to write, ending in .md")
    args = parser.parse_args(argv)
    write_page(args.folder, args.page)
    print(f"wrote {args.page}")


if __name__ == "__main__":
    utils.run_main(main)
