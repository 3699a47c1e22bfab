"""What a command does between its build and its end: its log is open, and a collapse that is to be undone is.

The loop itself is in train.py.
"""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import NamedTuple

from reports.events import change_text
from torch_utils.distributed import on_ranks
from training import finetune, rollback
from training.logs import RunLog
from training.state import Beginning, Run, TrainingState, begin
from training.watchdog import Collapse


class Start(NamedTuple):
    """Where a state has been put: from `checkpoint` of the run itself (None: a new run), or from --init_from."""

    beginning: Beginning
    checkpoint: dict | None
    source: finetune.Source | None
    class_rows: finetune.ClassRows | None


def to_end(
    run: Run,
    state: TrainingState,
    start: Start,
    loop: Callable[[Run], int | None],
    save: Callable[[Run], None],
) -> int | None:
    """Run the loop; where it ends in a collapse that is to be undone, again from an earlier checkpoint on.

    Args: loop: trains the state from where it is; save: makes a checkpoint of it; both are given the run with its log.
    Returns: what the loop does, the number of the signal that ended it or None.
    """
    watch = run.options.watch
    while True:
        log = open_log(run, state, start)
        with closing(log) if log else nullcontext():
            logged = replace(run, log=log)
            if watch.on_collapse == "rollback" and start.checkpoint is None:
                save(logged)  # what there is to go back to, until the next one
            try:
                return loop(logged)
            except Collapse as collapse:
                finding = collapse.finding
        checkpoint = rollback.go_back(run.folder, state.step, state.watchdog, finding, watch.rollback_lr, run.ranks)
        beginning = begin(state, run.options, run.about, run.folder, checkpoint, None, None)
        start = start._replace(beginning=beginning, checkpoint=checkpoint)


def open_log(run: Run, state: TrainingState, start: Start) -> RunLog | None:
    """The log, open where the state goes on, with what has led there; None but on rank 0."""
    told = run.about if run.options.reports.wandb else None
    opened, how = [], (None if start.checkpoint is None else state.step, not state.evaluating, told)
    on_ranks(run.ranks, lambda: opened.append(RunLog(run.folder, *how)))
    if not opened:
        return None
    (log,) = opened
    report, changes = start.beginning
    if report:
        rows = start.class_rows
        log.write("init_from", 0, {"checkpoint": start.source.path, "class_rows": rows.rows, **report})
        print("\n".join(finetune.describe(start.source, report, rows)))
    if changes:
        log.write("change", state.step, {"flags": changes})
        print(f"changed from step {state.step} on: {change_text(changes)}")
    for event in rollback.events(state.watchdog, state.step):
        log.write("rollback", state.step, event)
        print(rollback.text(state.step, event))
    return log
