"""Curves of several runs in one figure: mean and spread over the seeds of a name; the same as CSV.

python plot_runs.py runs/ssm_seed0 runs/ssm_seed1 runs/baseline_seed0 runs/baseline_seed1
python plot_runs.py ssm=runs/quickstart ssm=runs/seed1 none=runs/no_ssm --against seconds --metrics fd coverage
"""

import argparse
import sys
from pathlib import Path

import utils
from metrics import tables
from reports.events import training_seconds
from reports.runs import AXES, RunCurves, compared, draw, metrics_of, name_of, write_csv
from training.logs import read_log

SUFFIXES = (".png", ".pdf", ".svg")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.ArgumentParser(
        "Curves of several runs in one figure, a panel for each metric; runs of one name are averaged, with a band of "
        "one standard deviation. The name of a run is that of its folder, without a part such as seed0.",
        "RUN [RUN ...]",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; NAME=FOLDER gives it another name")
    parser.add_argument("--against", choices=tuple(AXES), default="steps", help="the other axis")
    parser.add_argument(
        "--metrics", nargs="+", metavar="KEY", help="numbers of the logs, such as fd or G_loss; None: of evaluations"
    )
    parser.add_argument(
        "--out", help=f"picture ({', '.join(SUFFIXES)}), beside it a .csv; None: runs.png in the first run's parent"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    runs = [read_run(text, args.against) for text in args.runs]
    check_different(runs)
    out = Path(args.out) if args.out else runs[0].path.resolve().parent / "runs.png"
    if out.suffix not in SUFFIXES:
        raise utils.UserError(f"--out {out}: a picture ends in {', '.join(SUFFIXES)}")
    table = out.with_suffix(".csv")
    for path in (out, table):
        utils.check_writable(path.parent)
        if path.is_dir():
            raise utils.UserError(f"--out: cannot write {path}: it is a folder")
    metrics = args.metrics or list(dict.fromkeys(name for run in runs for name in metrics_of(run.events)))
    panels = compared(runs, metrics, args.against)
    if missing := [name for name in metrics if name not in panels]:
        there = sorted({key for run in runs for event in run.events for key, v in event.items() if _is_number(key, v)})
        raise utils.UserError(f"--metrics {' '.join(missing)}: not in these logs, which have {', '.join(there)}")
    for line in incomparable(runs):
        print(f"warning: {line}", file=sys.stderr)
    draw(panels, args.against, out)
    write_csv(panels, args.against, table)
    print(f"wrote {utils.printable(str(out))} and {utils.printable(str(table))} ({told(runs)})")


def read_run(text: str, against: str) -> RunCurves:
    """The run meant by FOLDER or NAME=FOLDER. Raises: utils.UserError where it has no log, or not what is needed."""
    name, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        name, folder = name_of(Path(text).resolve().name), text
    path = Path(folder)
    log = path / "log.jsonl"
    if not log.is_file():
        what = "holds no log.jsonl: not a run folder" if path.exists() else "no such run folder"
        raise utils.UserError(f"{path}: {'a file; name the run folder that it lies in' if path.is_file() else what}")
    events = read_log(log)
    if not metrics_of(events):
        raise utils.UserError(f"{log}: no numbers yet that can be drawn")
    if against != "steps" and len(training_seconds(events)) == 1:
        raise utils.UserError(f"--against {against}: {log} does not say how many images were seen at which step")
    return RunCurves(name, path, events)


def check_different(runs: list[RunCurves]) -> None:
    """Raises: utils.UserError for a run named twice, which would count as two seeds that agree."""
    seen = {}
    for run in runs:
        other = seen.setdefault(run.path.resolve(), run.path)
        if other is not run.path:
            raise utils.UserError(f"{run.path}: named twice, which makes no two seeds of it; name each run once")


def incomparable(runs: list[RunCurves]) -> list[str]:
    """Lines on evaluations that were made in other ways than the first run's; the seed may be another."""
    last = [(str(run.path), [e for e in run.events if e["event"] == "eval" and "protocol" in e]) for run in runs]
    results = [(name, {"protocol": e[-1]["protocol"] | {"seed": None}}) for name, e in last if e]
    return tables.differences(results) if results else []


def told(runs: list[RunCurves]) -> str:
    names = [run.name for run in runs]
    return utils.listed([f"{name}: {utils.counted(names.count(name), 'run')}" for name in dict.fromkeys(names)])


def _is_number(key, value):
    return isinstance(value, (int, float)) and key not in ("step", "time")


if __name__ == "__main__":
    utils.run_main(main)
