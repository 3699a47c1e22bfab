"""Run a table of experiments: rows of flags x data sets x seeds, as many at a time as there are cores.

    bash scripts/study.sh                      the study of SSM; its table stands in that script
    bash scripts/recipes.sh                    that of regularisers
    bash scripts/study.sh --list               which runs there are, and how far each is
    bash scripts/study.sh --time               how long all of them take on this machine, by a few timed steps
    bash scripts/study.sh --rows sagan_voxel --datasets digits --seeds 1
    bash scripts/study.sh --workers 1          one run at a time

A table is text, read from standard input, of lines `a | b | c` in sections:

    [common]    flags of train.py for all runs
    [data]      name | flags of make_hdf5.py, none: not made here | flags of train.py
    [rows]      name | flags of train.py | a row that it shall cost as much as in multiply-adds, by its width; or none
    [compare]   row | another | what their difference tells

A run is an ordinary one of train.py, in <runs_root>/<name>/<data>/<row>_seed<k>, and goes on when it is started again.
Its last checkpoint is then measured by evaluate.py. Its result.json holds the commands and all numbers;
<runs_root>/<name>/results.json those of all runs, for tools/write_study.py. What a run says stands beside its folder,
in <row>_seed<k>.txt.

Each process computes with one thread, unless OMP_NUM_THREADS says otherwise: so digits are the same whatever number of
cores there is, and two runs of one thread are done sooner than one after the other with two.
"""

import contextlib
import json
import os
import shlex
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
import utils
from image_datasets.decoding import available_cores
from tools.workers import ROOT, Stopped, Workers
from torch_utils import checkpoints
from torch_utils.distributed import Ranks, resolve_device
from training import match, run_folder
from training.dry_run import step_seconds
from training.logs import read_log
from training.run_lock import locked

SECTIONS = {"common": 1, "data": 3, "rows": 3, "compare": 3}  # and how many columns each has
RESULT, RESULTS = "result.json", "results.json"
FOLDERS = {"--data_root", "--runs_root"}
NOT_METRICS = {"event", "step", "time", "protocol"}


@dataclass
class Table:
    """What is to be run; by name, in the order of the text. See the module's text."""

    common: list[str] = field(default_factory=list)
    data: dict[str, tuple[list, list]] = field(default_factory=dict)  # flags of make_hdf5.py and of train.py
    rows: dict[str, tuple[list, str]] = field(default_factory=dict)  # flags, and the row to cost as much as, or ""
    compare: list[tuple[str, str, str]] = field(default_factory=list)


def read_table(text: str) -> Table:
    """The Table of a text. Raises: utils.UserError that names the line that is wrong."""
    table, section = Table(), None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            section = line[1:-1] if line.endswith("]") else None
        if not line or line in (f"[{name}]" for name in SECTIONS):
            continue
        columns = [column.strip() for column in line.split("|")]
        if section not in SECTIONS or len(columns) > SECTIONS[section]:
            raise utils.UserError(f"line {number} of the table, {line!r}: no line of a section ({', '.join(SECTIONS)})")
        try:
            _read_line(table, section, *columns, *[""] * (3 - len(columns)))
        except ValueError as error:
            raise utils.UserError(f"line {number} of the table, {line!r}: {error}") from error
    if not table.rows or not table.data:
        raise utils.UserError("the table has no rows, or no data")
    named = [equal for _, equal in table.rows.values() if equal] + [row for pair in table.compare for row in pair[:2]]
    if unknown := [name for name in named if name not in table.rows]:
        raise utils.UserError(f"the table has no row {unknown[0]!r}")
    if chained := [name for name, (_, equal) in table.rows.items() if equal and table.rows[equal][1]]:
        raise utils.UserError(f"row {chained[0]!r} shall cost as much as one that itself is widened: name that one's")
    return table


def _read_line(table, section, name, second, third):
    """Raises: ValueError."""
    if section == "common":
        table.common += shlex.split(name)
    elif section == "compare":
        table.compare.append((name, second, third))
    elif name in getattr(table, section) or not name.replace("_", "").isalnum():
        raise ValueError(f"{name!r} is there twice, or no name of letters and digits")
    elif section == "data":
        table.data[name] = shlex.split(second), shlex.split(third)
    else:
        table.rows[name] = shlex.split(second), third


def without_folders(command: str) -> list[str]:
    """The words of a command but for those that say where data and runs lie, which are moved, or spelled otherwise."""
    words = shlex.split(command)
    return [word for i, word in enumerate(words) if not {*words[max(i - 1, 0) : i + 1]} & FOLDERS]


@dataclass(frozen=True)
class Run:
    """One run: its flags are all of train.py's."""

    row: str
    data: str
    seed: int
    folder: Path
    flags: list[str]

    @property
    def command(self) -> list[str]:
        return ["train.py", *self.flags]

    @property
    def name(self) -> str:
        return f"{self.data}/{self.row}_seed{self.seed}"

    def options(self):
        return train.parse_args(self.flags)[0]

    def configuration(self) -> match.Configuration:
        return match.configuration(self.options())

    def step(self) -> int:
        """That of its newest checkpoint, 0 where there is none."""
        return max(map(checkpoints.step_of, checkpoints.of_kind(self.folder / "weights", "ckpt")), default=0)

    def result(self) -> dict | None:
        """Its result.json, if it is whole and of this command, wherever data and runs lay."""
        found = None
        with contextlib.suppress(utils.UserError):
            found = utils.load_json(self.folder / RESULT)
        command = found.get("command", "") if isinstance(found, dict) else ""
        if without_folders(command) != without_folders(shlex.join(self.command)):
            return None
        return found | {"folder": str(self.folder)}


def runs(table: Table, name: str, runs_root: Path, rows: list, data: list, seeds: int, data_root: str) -> Iterator[Run]:
    """All runs, seed by seed: the first seed of all rows is complete before the second begins."""
    widths = {}
    for seed in range(seeds):
        for one in data:
            for row in rows:
                root = runs_root / name / one
                common = ["--dataset", one, "--data_root", data_root, *table.common, *table.data[one][1]]
                flags, equal = table.rows[row]
                if equal and (one, row) not in widths:
                    target = match.configuration(train.parse_args([*common, *table.rows[equal][0]])[0])
                    own = match.configuration(train.parse_args([*common, *flags])[0])
                    found = match.match_count(own, target, "multiply_adds").found.config
                    widths[one, row] = match.width_flags(found, own.config)
                flags = [*common, *flags, *widths.get((one, row), [])]
                place = ["--seed", str(seed), "--runs_root", str(root), "--experiment_name", f"{row}_seed{seed}"]
                yield Run(row, one, seed, root / f"{row}_seed{seed}", [*flags, *place])


def prepare(table: Table, data: list[str], data_root: str, workers: Workers) -> None:
    """Make the data sets and their statistics, where they are not there yet."""
    for name in data:
        make, _ = table.data[name]
        options = options_of(table, name, data_root)
        if make:
            workers.call("make_hdf5.py", *make, "--out", str(options.data.path))
        network = options.metrics.feature_network
        about = ["--dataset", options.data.dataset, "--data_root", data_root, "--feature_network", network]
        workers.call("calculate_inception_moments.py", *about)


def carry_out(run: Run, workers: Workers) -> dict:
    """Train a run to its end, measure its last checkpoint, and write its result, which is returned.

    A complete run of other flags, of which a row had been before, is moved aside.
    """
    said = run.folder.with_name(f"{run.folder.name}.txt")
    again = ["--from_scratch"] if (run.folder / RESULT).exists() else []
    workers.call(*run.command, *again, said=said)
    checkpoint = max(checkpoints.of_kind(run.folder / "weights", "ckpt"), key=checkpoints.step_of)
    evaluate = ["evaluate.py", str(checkpoint), "--json"]
    final = json.loads(workers.call(*evaluate, said=said, answer=True))
    configuration, log = run.configuration(), read_log(run.folder / "log.jsonl")
    made = utils.load_json(run.folder / "config.json")["run"]  # not by whom the results are collected
    speeds = [event["images_per_s"] for event in log if event["event"] == "train"]
    result = {
        "row": run.row,
        "data": run.data,
        "seed": run.seed,
        "command": shlex.join(run.command),
        "evaluate": shlex.join(evaluate),
        "folder": str(run.folder),
        **{name: made[name] for name in ("commit", "torch", "device")},
        "threads": torch.get_num_threads(),
        "step": checkpoints.step_of(checkpoint),
        "multiply_adds": configuration.multiply_adds,  # a step
        "parameters": configuration.parameters,  # of G and D
        "seconds": configuration.options.images_per_step / statistics.median(speeds),  # a step, as the log has it
        "G_ch": configuration.config.G_ch,
        "G_widths": list(configuration.config.G_widths),
        "evaluations": [
            {"step": event["step"], **{k: v for k, v in event.items() if k not in NOT_METRICS}}
            for event in log
            if event["event"] == "eval"
        ],
        "final": final,
    }
    utils.save_json(result, run.folder / RESULT)
    return result


def complete_too(table: Table, folder: Path, data: list[str], seeds: int, data_root: str) -> tuple[list[str], int]:
    """The data sets and seeds that are asked for, and those of which other calls have left results."""
    there = [path.parent for path in folder.glob(f"*/*_seed*/{RESULT}")]
    numbers = [path.name.rpartition("_seed")[2] for path in there]
    seeds = max([seeds, *(int(number) + 1 for number in numbers if number.isdecimal())])
    others = {path.parent.name for path in there}
    made = {name for name in others & set(table.data) if options_of(table, name, data_root).data.path.exists()}
    return [name for name in table.data if name in data or name in made], seeds


def options_of(table: Table, data: str, data_root: str):
    """train.py's options on a data set, without a row's flags."""
    return train.parse_args(["--dataset", data, "--data_root", data_root, *table.common, *table.data[data][1]])[0]


def collect(table: Table, known: list[Run], path: Path) -> None:
    """Write the results of all runs that are complete, whichever call has made them."""
    rows = {name: {"flags": shlex.join(flags), "equal": equal} for name, (flags, equal) in table.rows.items()}
    data = {name: shlex.join(flags) for name, (_, flags) in table.data.items()}
    results = [result for run in known if (result := run.result())]
    about = {"common": shlex.join(table.common), "data": data, "rows": rows, "compare": table.compare}
    about |= {"threads": torch.get_num_threads()}
    about |= run_folder.provenance(Ranks(0, 1, torch.device("cpu")))
    utils.save_json({**about, "planned": len(known), "results": results}, path)


def show(all_runs: list[Run]) -> None:
    """Which runs are complete, and how far the others are."""
    for run in all_runs:
        print(f"{run.name}: {'complete' if run.result() else f'step {run.step()}'}")
    print(f"{sum(run.result() is not None for run in all_runs)} of {len(all_runs)} are complete")


def estimate(all_runs: list[Run], workers: Workers) -> None:
    """How long training takes, by timing a step of each row on each data set."""
    total, timed = 0.0, {}
    for run in all_runs:
        if (run.row, run.data) not in timed:
            configuration = run.configuration()
            options = configuration.options
            seconds, _ = step_seconds(options, configuration.config, resolve_device(options.run.device))
            timed[run.row, run.data] = seconds * options.length.num_iters
            print(f"{run.data}/{run.row}: {seconds:.3g} s a step, {utils.duration(timed[run.row, run.data])} a run")
        total += timed[run.row, run.data]
    print(
        f"{utils.counted(len(all_runs), 'run')}, {workers.count} at a time: {utils.duration(total / workers.count)} of "
        "training; evaluations come on top, and what runs slow one another by"
    )


def say(line: str, file=None) -> None:
    """Print a line in one piece: runs speak at the same moment, and print() writes the end of a line apart."""
    print(f"{line}\n", end="", file=file)


class Progress:
    """Carries out runs that are not complete, tells of each, and collects the results after each."""

    def __init__(self, table: Table, all_runs: list[Run], known: list[Run], path: Path, workers: Workers):
        self.table, self.all_runs, self.known, self.path, self.workers = table, all_runs, known, path, workers
        self.failed: list[str] = []
        self._collecting = threading.Lock()

    def __call__(self, numbered: tuple[int, Run]) -> None:
        number, run = numbered
        start, where = time.monotonic(), f"[{number} of {len(self.all_runs)}] {run.name}"
        if run.result() is not None:
            say(f"{where}: complete")
            return
        say(f"{where} ...")
        try:
            result = carry_out(run, self.workers)
        except Stopped:
            return
        except Exception as error:  # the other runs go on
            told = error if isinstance(error, utils.UserError) else "".join(traceback.format_exception(error))
            say(f"{where}: error: {told}", file=sys.stderr)
            self.failed.append(run.name)
            return
        told = ", ".join(f"{k} {v:.4g}" for k, v in result["final"].items() if k in ("fid", "fd", "coverage"))
        say(f"{where}: {told}, after {utils.duration(time.monotonic() - start)}")
        with self._collecting:
            collect(self.table, self.known, self.path)


def make_parser() -> utils.ArgumentParser:
    parser = utils.ArgumentParser(__doc__.splitlines()[0], "NAME")
    parser.add_argument("name", metavar="NAME", help="of the experiments: their folder under --runs_root")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--datasets", nargs="+", metavar="DATA", help="these data sets only")
    parser.add_argument("--seeds", type=utils.positive_int, default=3, help="how many")
    parser.add_argument("--runs_root", default="runs", help="where run folders are")
    parser.add_argument("--data_root", default="data", help="folder of the data sets")
    parser.add_argument(
        "--workers", type=utils.positive_int, help="runs at a time (default: as many as cores; one on a GPU)"
    )
    parser.add_argument("--list", action="store_true", help="say which runs are complete, and stop")
    parser.add_argument("--time", action="store_true", help="time a few steps of each row, say what all take, and stop")
    return parser


def chosen(names: list[str] | None, known: dict, flag: str) -> list[str]:
    """The names of a flag, all without it. Raises: utils.UserError for one that the table lacks."""
    if unknown := [name for name in names or () if name not in known]:
        raise utils.UserError(f"--{flag} {unknown[0]}: the table has {', '.join(known)}")
    return list(dict.fromkeys(names or known))


def without_missing(table: Table, data: list[str], data_root: str) -> list[str]:
    """Those data sets that are made; of the others it is said."""
    missing = [name for name in data if not options_of(table, name, data_root).data.path.exists()]
    for name in missing:
        print(f"{name}: none is complete, its data are not made yet")
    return [name for name in data if name not in missing]


def default_workers() -> int:
    """Runs at a time: on a GPU one, else as many as there are cores for."""
    return 1 if torch.cuda.is_available() else max(1, available_cores() // torch.get_num_threads())


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(argv)
    table = read_table(sys.stdin.read())
    if Path.cwd() != ROOT:  # where the scripts run that are called
        args.runs_root, args.data_root = os.path.abspath(args.runs_root), os.path.abspath(args.data_root)
    rows, data = chosen(args.rows, table.rows, "rows"), chosen(args.datasets, table.data, "datasets")
    folder = Path(args.runs_root) / args.name
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of what is called
        torch.set_num_threads(1)
    workers = Workers(args.workers or default_workers())
    # Looking needs no lock: it is asked for while the runs go on.
    with contextlib.nullcontext() if args.list else locked(folder, Ranks(0, 1, torch.device("cpu"))):
        if args.list:
            data = without_missing(table, data, args.data_root)
        else:
            prepare(table, data, args.data_root, workers)
        known_data, seeds = complete_too(table, folder, data, args.seeds, args.data_root)
        known = list(runs(table, args.name, Path(args.runs_root), list(table.rows), known_data, seeds, args.data_root))
        all_runs = [run for run in known if run.row in rows and run.data in data and run.seed < args.seeds]
        if args.list or args.time:
            show(all_runs) if args.list else estimate(all_runs, workers)
            return
        progress = Progress(table, all_runs, known, folder / RESULTS, workers)
        workers.each(progress, enumerate(all_runs, 1))
        collect(table, known, folder / RESULTS)
        print(f"wrote {folder / RESULTS}")
    if failed := progress.failed:
        said = f"{len(failed)} of {len(all_runs)} runs have failed, the others are complete: {', '.join(failed)}"
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)  # not 2, which stands for a wrong command


if __name__ == "__main__":
    utils.run_main(main)
