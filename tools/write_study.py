"""Write a page of tables, curves and conclusions from the results of tools/experiments.py.

    python tools/write_study.py runs/study docs/study.md

Every word is derived from the numbers: what can be concluded follows from the confidence intervals of paired
differences (runs of the same seed), by Student's t over the seeds. Pictures are written beside the page.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from scipy import stats

import utils
from torch_utils.text import INK

LEVEL = 0.95  # of the confidence intervals
# Metrics of the page, in its order -> their name, and whether less is better.
METRICS = {
    "fid": ("FID", True),
    "fd": ("FD", True),
    "coverage": ("coverage", False),
    "recall": ("recall", False),
    "precision": ("precision", False),
    "accuracy": ("accuracy", False),
}
SHEET_HEIGHT = 330  # pixels of a sheet on the picture of sheets


@dataclass(frozen=True)
class Results:
    """What results.json holds, by data set and row: the runs, in the order of their seeds."""

    about: dict
    runs: dict[str, dict[str, list[dict]]]

    def rows(self, data: str) -> list[str]:
        """The rows of a data set of which there is a run, in the order of the table."""
        return [row for row in self.about["rows"] if row in self.runs[data]]

    def families(self, data: str) -> dict[str, list[str]]:
        """Rows whose names begin alike, by that beginning; those that are alone in this are together."""
        found: dict = {}
        for row in self.rows(data):
            found.setdefault(row.split("_")[0], []).append(row)
        alone = [rows[0] for rows in found.values() if len(rows) == 1]
        return ({"others": alone} if alone else {}) | {name: rows for name, rows in found.items() if len(rows) > 1}

    def rivals(self, data: str, rows: list[str]) -> list[str]:
        """What the table compares some rows with and is not one of them."""
        named = {other for one, other, _ in self.about["compare"] if one in rows}
        return [row for row in self.rows(data) if row in named and row not in rows]


def read_results(path: Path) -> Results:
    """Raises: utils.UserError where there are none."""
    about = utils.load_json(path)
    if not isinstance(about, dict) or not about.get("results"):
        raise utils.UserError(f"{path} holds no results: run tools/experiments.py (bash scripts/study.sh) first")
    runs: dict = {}
    for result in sorted(about["results"], key=lambda result: result["seed"]):
        runs.setdefault(result["data"], {}).setdefault(result["row"], []).append(result)
    return Results(about, runs)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def at_budget(run: dict, metric: str, budget: float) -> float:
    """A metric after so many multiply-adds of training, linear between evaluations; NaN before the first of them."""
    points = [(it["step"] * run["multiply_adds"], it[metric]) for it in run["evaluations"] if metric in it]
    if not points or budget < points[0][0] * (1 - 1e-9):
        return math.nan
    return float(np.interp(budget, *zip(*points, strict=True)))


def at_end(run: dict, metric: str) -> float:
    """A metric of the last checkpoint, as evaluate.py has it."""
    return run["final"].get(metric, math.nan)


def total(run: dict) -> float:
    """Multiply-adds of a whole run."""
    return run["step"] * run["multiply_adds"]


def costs_as_much(run: dict, other: dict) -> bool:
    """Whether whole runs differ so little in multiply-adds that equal steps are equal compute."""
    return math.isclose(total(run), total(other), rel_tol=0.01)


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences, and its confidence interval by Student's t; that of one difference is infinite."""
    mean, n = float(np.mean(differences)), len(differences)
    if n < 2:
        return mean, -math.inf, math.inf
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


def paired(one: list[dict], other: list[dict], metric: str, equal_compute: bool) -> list[float]:
    """Differences of runs of the same seed: at their ends, or where both have cost what the cheaper costs in all."""
    others, found = {run["seed"]: run for run in other}, []
    for run in one:
        if rival := others.get(run["seed"]):
            budget = min(total(run), total(rival))
            values = [at_budget(it, metric, budget) if equal_compute else at_end(it, metric) for it in (run, rival)]
            found.append(values[0] - values[1])
    return [difference for difference in found if not math.isnan(difference)]


def verdict(low: float, high: float, less_is_better: bool) -> str:
    """What an interval of differences says of the first of two."""
    if math.isinf(low):
        return "one seed: nothing can be said"
    if low == high == 0:
        return "the same in all pairs"
    if low <= 0 <= high:
        return f"no difference can be told; one of more than {max(-low, high):.3g} either way is unlikely"
    return "better" if (high < 0) == less_is_better else "worse"


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


def metrics_of(runs: dict) -> list[str]:
    found = {name for group in runs.values() for run in group for name in run["final"]}
    return [name for name in METRICS if name in found]


def configurations(results: Results, data: str) -> list[str]:
    runs, rows = results.runs[data], results.rows(data)
    cheapest = min(runs[row][0]["multiply_adds"] for row in rows)
    lines = []
    for row in rows:
        run = runs[row][0]
        about = results.about["rows"][row]
        flags = f"`{about['flags']}`" if about["flags"] else "those of all rows"
        flags += f", as costly as {about['equal']}" if about["equal"] else ""
        cost = f"{run['multiply_adds'] / 1e9:.3g}", f"{run['multiply_adds'] / cheapest:.2f}"
        cost = *cost, f"{np.median([other['seconds'] for other in runs[row]]):.3g}"
        lines.append([row, flags, f"{run['G_ch']:g}", f"{run['parameters']:,}", *cost, str(len(runs[row]))])
    header = [
        "row",
        "flags",
        "G_ch",
        "parameters of G and D",
        "multiply-adds an iteration, 10⁹",
        "ratio",
        "seconds an iteration",
        "seeds",
    ]
    return table(header, lines, 2)


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


def comparisons(results: Results, data: str) -> list[str]:
    """The comparisons that the table asks for: a table of intervals, and each in words."""
    runs, lines, words, told = results.runs[data], [], [], 0
    for one, other, question in results.about["compare"]:
        if one not in runs or other not in runs:
            continue
        for metric in metrics_of(runs):
            name, less = METRICS[metric]
            same = costs_as_much(runs[one][0], runs[other][0])
            for equal_compute in (False,) if same else (True, False):
                differences = paired(runs[one], runs[other], metric, equal_compute)
                if not differences:
                    continue
                mean, low, high = interval(differences)
                said, told = verdict(low, high, less), told + math.isfinite(low)
                where = "equal compute" if equal_compute else "equal steps and compute" if same else "equal steps"
                within = "-" if math.isinf(low) else f"{low:+.3f} to {high:+.3f}"
                lines.append(
                    [one, other, where, name, f"{mean:+.3f}", within, str(len(differences)), said.partition(";")[0]]
                )
                if metric in ("fd", "fid", "coverage"):
                    text = f"`{one}` beside `{other}` at {where}, {name}: {said}"
                    words.append((question, f"{text} ({mean:+.3f}, {within})" if within != "-" else text))
    header = ["row", "beside", "at", "metric", "mean difference", f"{LEVEL:.0%} interval", "pairs", "the first is"]
    caution = (
        f"These are {told} intervals: where nothing differs at all, about {told * (1 - LEVEL):.0f} of them exclude 0 "
        "all the same. A single one of them is no proof; several metrics that agree are more."
    )
    text = ["", caution if told else "With one seed a row there are no intervals.", ""]
    for question in dict.fromkeys(question for question, _ in words):
        text += [f"* **{question or 'these two'}**", *(f"  * {line}." for asked, line in words if asked == question)]
    return [*table(header, lines, 4), *text, ""]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_curves(results: Results, data: str, path: Path) -> None:
    """The distance against multiply-adds: a line is the mean over seeds, its band from the least to the most.

    A picture for each family; what its rows are compared with is dashed.
    """
    metric = metrics_of(results.runs[data])[0]
    families = results.families(data)
    figure, axes = plt.subplots(1, len(families), figsize=(6 * len(families), 4.2), squeeze=False)
    for ax, (family, rows) in zip(axes[0], families.items(), strict=True):
        for row in [*(rivals := results.rivals(data, rows)), *rows]:
            group = results.runs[data][row]
            steps = sorted(set.intersection(*({it["step"] for it in run["evaluations"]} for run in group)))
            values = np.array([[it[metric] for it in run["evaluations"] if it["step"] in steps] for run in group])
            compute = np.array(steps) * group[0]["multiply_adds"] / 1e12
            (line,) = ax.plot(compute, values.mean(0), "--" if row in rivals else "-", label=row)
            ax.fill_between(compute, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set(
            title=f"{data}: {family}", xlabel="multiply-adds of training, 10¹²", ylabel=METRICS[metric][0], yscale="log"
        )
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
        page.save(temporary, "PNG")
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


def section(results: Results, data: str, page: Path) -> list[str]:
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
            "the cheapest run costs in all; linear between the evaluations of the runs' logs.",
        ]
        lines += values_table(results, data, equal_compute=True)
    lines += [
        "### What can be concluded",
        "",
        "Differences of runs of the same seed, the first row's less the second's.",
    ]
    lines += comparisons(results, data)
    draw_curves(results, data, page.with_name(f"{name}_curves.png"))
    lines += [
        f"![Distance against compute on {data}]({name}_curves.png)",
        "",
        "Bands go from the least to the most; dashed is what the others are compared with.",
        "",
    ]
    if draw_sheets(results, data, page.with_name(f"{name}_sheets.png")):
        lines += [f"![Samples of the first seed on {data}]({name}_sheets.png)", ""]
    if folder := copy_maps(results, data, page.with_name(f"{name}_ssm.png")):
        lines += [f"![Maps of SSM on {data}]({name}_ssm.png)", "", f"`python explain.py {folder}` has drawn it.", ""]
    return lines


def write_page(folder: Path, page: Path) -> None:
    """Raises: utils.UserError where there are no results."""
    results = read_results(folder / "results.json")
    about, done = results.about, len(results.about["results"])
    lines = [
        f"# {folder.name}: results",
        "",
        f"Written by `python tools/write_study.py {folder} {page}` from `{folder / 'results.json'}`: {done} of "
        f"{about['planned']} runs, made with commit {about['commit'][:12]} and PyTorch {about['torch']} on "
        f"{about['device']} with {utils.counted(about['threads'], 'thread')}. What made each number stands at the end.",
        "",
    ]
    if about.get("common"):
        lines += [f"All rows have `{about['common']}`.", ""]
    if done < about["planned"]:
        lines += ["**Not complete yet**: what follows is of the runs that are.", ""]
    for data in results.runs:
        lines += section(results, data, page)
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
