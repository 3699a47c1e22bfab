"""Going back to an earlier checkpoint after a collapse, and what a command is told that would go into one again."""

import contextlib
from pathlib import Path

import utils
from torch_utils import checkpoints
from torch_utils.checkpoints import of_kind, step_of
from torch_utils.distributed import Ranks, on_ranks
from training import run_folder
from training.logs import read_log
from training.watchdog import Finding, Watchdog


def go_back(folder: Path, step: int, watchdog: Watchdog, finding: Finding, rollback_lr: float, ranks: Ranks) -> dict:
    """The checkpoint to go on from after a collapse at a step; the rollback is written into it, later ones are deleted.

    It is the newest of before the collapse, where there is one, and an older one than that of the last rollback, where
    nothing has been saved since. Killed at any time, the run gets here again, or goes on from here.
    Raises: utils.UserError where none is left that can be read.
    """
    return checkpoints.load(on_ranks(ranks, lambda: _gone_back(folder, step, watchdog.memory, finding, rollback_lr)))


def _gone_back(folder, step, memory, finding, rollback_lr):
    weights = folder / "weights"
    path, checkpoint = _chosen(of_kind(weights, "ckpt"), step, finding, memory.rollbacks)
    if checkpoint is None:
        raise utils.UserError(f"{folder}: {finding.text} at step {step}, and no checkpoint to go back to is left")
    of_the_run = [path for kind in checkpoints.KINDS for path in of_kind(weights, kind)]
    for later in [*of_the_run, *checkpoints.averages_of(folder)]:
        if step_of(later) > checkpoint["step"]:
            later.unlink()
    told = {"step": checkpoint["step"], "noticed": step, "kind": finding.kind, "text": finding.text}
    told["lr_factor"] = memory.lr_factor * rollback_lr
    counted = {"rollbacks": [*memory.rollbacks, told], "lr_factor": told["lr_factor"]}
    changed = {"watchdog": checkpoint.get("watchdog", {}) | counted}
    if checkpoint["best"] and checkpoint["best"]["step"] not in map(step_of, of_kind(weights, "best")):
        changed["best"] = None  # its file gave way to that of a later one, which is gone now, too
    checkpoints.save(checkpoint | changed, path)
    return path


def _chosen(paths, step, finding, rollbacks):
    """Path and content of the full checkpoint to go back to; None, None without any. Args: paths: oldest first."""
    in_vain = rollbacks[-1]["step"] if rollbacks else None
    paths = [path for path in paths if step_of(path) < step]
    good = [path for path in paths if step_of(path) <= finding.healthy and step_of(path) != in_vain]
    for path in [*reversed(good), *[path for path in paths if path not in good]]:  # without a good one the oldest
        with contextlib.suppress(utils.UserError):
            checkpoint, problem = run_folder.examined(path)
            if problem is None:
                return path, checkpoint
    return None, None


def events(watchdog: Watchdog, step: int) -> list[dict]:
    """The rollbacks that have led to a step, where the run goes on: what the log's events of them hold.

    A later one can have gone back further; then the ones before are told there, too.
    """
    rollbacks = watchdog.memory.rollbacks
    return [
        {"number": number, **{name: value for name, value in told.items() if name != "step"}}
        for number, told in enumerate(rollbacks, 1)
        if min(later["step"] for later in rollbacks[number - 1 :]) == step
    ]


def text(step: int, event: dict) -> str:
    """One line on a rollback to a step."""
    return (
        f"rollback {event['number']} to step {step}, with fresh noise and {event['lr_factor']:g} times the learning "
        f"rates: at step {event['noticed']} {event['text']}"
    )


def stopped_text(folder: Path, step: int, text: str, rollbacks: int) -> str:
    """One line on a run that has ended in a collapse at a step, and on what to do."""
    after = f", after {utils.counted(rollbacks, 'rollback')}" if rollbacks else ""
    return (
        f"{folder} ended at step {step}{after}: {text}. The checkpoints of before are kept, but the same command gets "
        "there again: lower --G_lr and --D_lr with --allow_change G_lr D_lr (in a new run, --D_param SN helps too), or "
        f"{'a higher --max_rollbacks' if rollbacks else '--on_collapse rollback, which does so by itself'}"
    )


def check_not_ended(folder: Path, training_key: str, step: int) -> None:
    """Raise utils.UserError where the run in `folder` has ended in a collapse, and would go into the same again.

    training_key: of the command's options; step: of the checkpoint that it would go on from, 0 without one.
    """
    ends = [event for event in read_log(folder / "log.jsonl") if event.get("event") == "collapse"]
    last = ends[-1] if ends else {}
    if last.get("action") == "stop" and last["step"] >= step and last.get("command") == training_key:
        raise utils.UserError(stopped_text(folder, last["step"], last["text"], last["rollbacks"]))
