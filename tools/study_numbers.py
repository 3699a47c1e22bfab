"""What tools/experiments.py has found, in numbers: metrics at equal steps and at equal compute, and paired differences.

Differences are of runs of the same seed; their intervals are Student's t over the seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

import utils

LEVEL = 0.95  # of the confidence intervals
LEARNT = 0.5  # accuracy below which a generator has not learnt the classes
# Metrics of the page, in its order -> their name, and whether less is better.
METRICS = {
    "fid": ("FID", True),
    "fd": ("FD", True),
    "coverage": ("coverage", False),
    "recall": ("recall", False),
    "precision": ("precision", False),
    "accuracy": ("accuracy", False),
}


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

    def made_on(self, run: dict) -> str:
        """What a run was made on, in words; one of before this was noted, on what the results were collected."""
        known = self.about | run
        return f"PyTorch {known['torch']} on {known['device']} with {utils.counted(known['threads'], 'thread')}"

    @property
    def is_of_one_kind(self) -> bool:
        """Whether all runs were made on the same."""
        return len({self.made_on(run) for run in self.about["results"]}) == 1

    def timed_on(self, data: str) -> str:
        """That of `made_on` which most rows of a data set have runs of, whose seconds can be compared."""
        rows = [{self.made_on(run) for run in runs} for runs in self.runs[data].values()]
        return max(sorted(set.union(*rows)), key=lambda made_on: sum(made_on in found for found in rows))


def read_results(path: Path) -> Results:
    """Raises: utils.UserError where there are none."""
    about = utils.load_json(path)
    if not isinstance(about, dict) or not about.get("results"):
        raise utils.UserError(f"{path} holds no results: run tools/experiments.py (bash scripts/study.sh) first")
    runs: dict = {}
    try:
        for result in sorted(about["results"], key=lambda result: result["seed"]):
            runs.setdefault(result["data"], {}).setdefault(result["row"], []).append(result)
        for data, rows in runs.items():
            if not metrics_of(rows):
                raise utils.UserError(f"{path}: the runs on {data} have none of the metrics {', '.join(METRICS)}")
            if twice := [row for row, group in rows.items() if len({run["seed"] for run in group}) < len(group)]:
                raise utils.UserError(f"{path}: {data}/{twice[0]} has two runs of one seed")
        about["rows"], about["compare"], about["planned"]
    except (KeyError, TypeError, AttributeError) as error:
        raise utils.UserError(f"{path} is not of tools/experiments.py ({error!r})") from error
    return Results(about, runs)


def metrics_of(runs: dict) -> list[str]:
    found = {name for group in runs.values() for run in group for name in run["final"]}
    return [name for name in METRICS if name in found]


def at_budget(run: dict, metric: str, budget: float) -> float:
    """A metric after so many multiply-adds of training, between its evaluations; NaN before the first of them.

    Linear; of distances, which fall by powers of ten at first, the logarithm is.
    """
    points = [(it["step"] * run["multiply_adds"], it[metric]) for it in run["evaluations"] if metric in it]
    if not points or budget < points[0][0] * (1 - 1e-9):
        return math.nan
    costs, values = zip(*points, strict=True)
    if METRICS[metric][1] and min(values) > 0:
        return float(np.exp(np.interp(budget, costs, np.log(values))))
    return float(np.interp(budget, costs, values))


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


def pairs(one: list[dict], other: list[dict], metric: str, equal_compute: bool) -> list[tuple[float, float]]:
    """A metric of two runs of the same seed: at their ends, or where both have cost what the cheaper costs in all."""
    others, found = {run["seed"]: run for run in other}, []
    for run in one:
        if rival := others.get(run["seed"]):
            budget = min(total(run), total(rival))
            of = [at_budget(it, metric, budget) if equal_compute else at_end(it, metric) for it in (run, rival)]
            found.append((of[0], of[1]))
    return [pair for pair in found if not math.isnan(sum(pair))]


def paired(one: list[dict], other: list[dict], metric: str, equal_compute: bool) -> list[float]:
    """Differences of runs of the same seed."""
    return [first - second for first, second in pairs(one, other, metric, equal_compute)]


def verdict(low: float, high: float, less_is_better: bool) -> str:
    """What an interval of differences says of the first of two."""
    if math.isinf(low):
        return "one seed: nothing can be said"
    if low == high == 0:
        return "the same in all pairs"
    if low <= 0 <= high:
        return f"no difference can be told; one of more than {max(-low, high):.3g} either way is unlikely"
    return "better" if (high < 0) == less_is_better else "worse"


@dataclass(frozen=True)
class Difference:
    """Of two rows, in one metric: the mean over the seeds that both have, and its interval."""

    one: str
    other: str
    question: str
    where: str  # "equal compute", "equal steps", or both
    metric: str
    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        return verdict(self.low, self.high, METRICS[self.metric][1])

    def __str__(self) -> str:
        half = "" if math.isinf(self.high) else f" ± {self.high - self.mean:.3f}"
        return f"{self.mean:+.3f}{half}" + (f" **{self.verdict}**" if self.verdict in ("better", "worse") else "")


def places(one: list[dict], other: list[dict]) -> tuple[str, ...]:
    """Where two rows are compared: at equal compute, and at equal steps where that is something else."""
    return ("equal steps and compute",) if costs_as_much(one[0], other[0]) else ("equal compute", "equal steps")


def compare(results: Results, data: str) -> list[Difference]:
    """All that the table asks for."""
    runs, found = results.runs[data], []
    for one, other, question in results.about["compare"]:
        if one not in runs or other not in runs:
            continue
        for where in places(runs[one], runs[other]):
            for metric in metrics_of(runs):
                if values := paired(runs[one], runs[other], metric, where == "equal compute"):
                    about = one, other, question, where, metric
                    found.append(Difference(*about, *interval(values), len(values)))
    return found


@dataclass(frozen=True)
class Ratio:
    """How many times the distance of other rows that of some is: of the same two endings of names in several settings.

    A setting is a data set and a family of rows (see Results.families). The ratio of each is the geometric mean over
    its seeds; `mean`, `low` and `high` are of these, their logarithms taken as normal.
    """

    one: str  # the ending of the rows' names, "" of a family's first
    other: str
    where: str
    settings: dict[str, float]  # "data/family" -> ratio
    early: frozenset[str]  # the settings in which neither row has learnt the classes there
    mean: float
    low: float
    high: float


def ratios(results: Results) -> list[Ratio]:
    """Ratios of distances for each two endings that the table compares in three settings or more, of two seeds each."""
    found: dict = {}
    for data, runs in results.runs.items():
        metric = metrics_of(runs)[0]
        for one, other, _ in results.about["compare"]:
            family, _, ending = one.partition("_")
            base, _, other_ending = other.partition("_")
            if family != base or one not in runs or other not in runs or not METRICS[metric][1]:
                continue
            for where in places(runs[one], runs[other]):
                of = pairs(runs[one], runs[other], metric, where == "equal compute")
                if len(of) > 1 and min(map(min, of)) > 0:
                    logarithm = float(np.mean([math.log(first / second) for first, second in of]))
                    early = _early(runs[one], runs[other], where)
                    found.setdefault((ending, other_ending, where), {})[f"{data}/{family}"] = logarithm, early
    return [
        Ratio(
            *about,
            {name: math.exp(logarithm) for name, (logarithm, _) in of.items()},
            frozenset(name for name, (_, early) in of.items() if early),
            *map(math.exp, interval([logarithm for logarithm, _ in of.values()])),
        )
        for about, of in found.items()
        if len(of) >= 3
    ]


def _early(one, other, where):
    """Whether the mean accuracy of both rows, where they are compared, is below LEARNT."""
    values = pairs(one, other, "accuracy", where == "equal compute")
    return bool(values) and max(np.mean(values, axis=0)) < LEARNT
