"""The run folder: which checkpoints it keeps, and whether a command may go on from one."""

import itertools
import math
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

import utils
from reports.events import shown
from torch_utils import checkpoints
from torch_utils.checkpoints import FORMAT, of_kind, step_of
from torch_utils.distributed import Ranks, device_name
from training import run_lock
from training.watchdog import MEMORY

IF_DIVERGED = "a lower --G_lr and --D_lr, or --D_param SN, usually helps"  # what a user is told to try
# --which_best -> the metric's keys, and whether more is better
BEST = {
    "FID": (("fid", "fd"), False),
    "FD": (("fd", "fid"), False),
    "IS": (("is_mean",), True),
    "KID": (("kid_mean",), False),
    "PRECISION": (("precision",), True),
    "RECALL": (("recall",), True),
    "DENSITY": (("density",), True),
    "COVERAGE": (("coverage",), True),
    "ACCURACY": (("accuracy",), True),
}

FULL = checkpoints.FULL | {"watchdog?": MEMORY}

# What `utils.atomic_path` and `utils.check_writable` leave of a killed run, by the folder within its own.
LEFT_BEHIND = {
    "": (".config.json.*", ".log.jsonl.*", ".curves.png.*", ".report.html.*", ".wandb_id.txt.*", ".writable.*"),
    "weights": (".ckpt_*", ".best_*", ".writable.*"),
    "samples": (".step_*", ".writable.*"),
    "averages": (".average_*", ".writable.*"),
    "tensorboard": (".writable.*",),
}


class PassedOver(NamedTuple):
    """A full checkpoint that cannot be resumed. `why`: what is added to its name; `problem`: the same in words."""

    path: Path
    why: str
    problem: str

    @property
    def line(self) -> str:
        return f"{self.path} is passed over: {self.problem}; it is renamed to {self.aside.name}"

    @property
    def aside(self) -> Path:
        return self.path.with_stem(f"{self.path.stem}_{self.why}")


def newest(folder: Path) -> tuple[dict | None, list[PassedOver]]:
    """The newest full checkpoint of a run folder that can be resumed, loaded on the CPU, or None if the run has none.

    Returned are also the newer ones that are damaged, or hold a value that is not finite, as older versions wrote them.
    Raises: utils.UserError if one is of another version or cannot be read, or if all are passed over.
    """
    passed_over = []
    for path in reversed(of_kind(folder / "weights", "ckpt")):
        checkpoint, problem = examined(path)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(PassedOver(path, *problem))
    if passed_over:
        _refuse_all(folder, passed_over)
    return None, []


def examined(path: Path) -> tuple[dict | None, tuple[str, str] | None]:
    """The full checkpoint at a path and why it cannot be resumed, (what is added to its name, in words), or None.

    Raises: utils.UserError if it is of another version or cannot be read.
    """
    try:
        checkpoint = checkpoints.load(path)
    except checkpoints.Damaged:
        return None, ("damaged", "it is damaged (its bytes are not those that were written)")
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise utils.UserError(f"{path} is not a checkpoint of this version; use --from_scratch or another name")
    if wrong := checkpoints.problem(checkpoint, FULL):
        return None, ("damaged", wrong)
    if bad := checkpoints.not_finite(checkpoint):
        return None, ("not_finite", f"{bad} holds values that are not finite, as a diverged run leaves them")
    return checkpoint, None


def _refuse_all(folder, passed_over):
    best = of_kind(folder / "weights", "best")
    instead = f", or another --experiment_name with --init_from {best[-1]}" if best else ""
    reasons = "; ".join(f"{it.path.name}: {it.problem}" for it in passed_over)
    hint = f"; {IF_DIVERGED}" if any(it.why == "not_finite" for it in passed_over) else ""
    raise utils.UserError(
        f"{folder}: none of its checkpoints can be resumed: {reasons}. Start anew with --from_scratch, which moves the "
        f"run aside{instead}{hint}"
    )


def save(state: dict, folder: Path, kind: str, copies: int) -> None:
    """Write a checkpoint of `kind` 'ckpt' or 'best' at state["step"], then delete all but the newest `copies`.

    Raises: utils.UserError where a tensor holds a value that is not finite, utils.CannotWrite where the disk is full,
        say; nothing is deleted then.
    """
    _check_finite(state, folder)
    weights = folder / "weights"
    checkpoints.save({"format": FORMAT, **state}, weights / f"{kind}_{state['step']:08d}.pth")
    for old in of_kind(weights, kind)[:-copies]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise utils.CannotWrite(f"cannot delete {old}: {error.strerror}") from error


def save_averages(entries: dict, folder: Path) -> None:
    """Write a file of power-law averages at entries["step"]. Raises: as `save`."""
    _check_finite(entries, folder)
    path = folder / "averages" / f"average_{entries['step']:08d}.pth"
    checkpoints.save({"format": FORMAT, **entries}, path)


def _check_finite(state, folder):
    if bad := checkpoints.not_finite(state):
        raise utils.UserError(
            f"{bad} holds values that are not finite at step {state['step']}: no checkpoint is written, and those of "
            f"before are kept in {folder}. The run has diverged; {IF_DIVERGED}"
        )


def check_which_best(which: str, keys: list[str]) -> None:
    """Raise utils.UserError if evaluations, which give the metrics `keys`, never give the one of --which_best."""
    if not set(BEST[which][0]) & set(keys):
        raise utils.UserError(f"--which_best {which}: evaluations of this run give only {', '.join(keys)}")


def better(which: str, step: int, metrics: dict, best: dict | None) -> dict | None:
    """The record of the better one: of these metrics if they beat `best` in --which_best, else `best` itself.

    A record is a dict of `step`, `metric` and `value`; `best` is None before the first evaluation, and counts for
    nothing where it is of another metric.
    """
    keys, more = BEST[which]
    value = next((metrics[key] for key in keys if key in metrics), None)
    if value is None or not math.isfinite(value):
        return best
    if best and best["metric"] == which and not (value > best["value"] if more else value < best["value"]):
        return best
    return {"step": step, "metric": which, "value": value}


def path_of(runs_root: str, name: str) -> Path:
    """The folder of a run. Raises: utils.UserError for a name that is a path."""
    if Path(name).name != name or name == "..":
        raise utils.UserError(f"--experiment_name {name}: a name, not a path; see --runs_root")
    return Path(runs_root) / name


def move_aside(folder: Path) -> None:
    """Rename an existing run folder to <name>.old1, .old2 ..."""
    if folder.exists():
        candidates = (folder.with_name(f"{folder.name}.old{n}") for n in itertools.count(1))
        aside = next(path for path in candidates if not path.exists())
        try:
            folder.rename(aside)
        except OSError as error:
            raise utils.UserError(f"cannot move {folder} to {aside}: {error.strerror}") from error
        (aside / run_lock.NAME).unlink(missing_ok=True)
        print(f"moved the earlier run to {aside}")


def check_writable(folder: Path) -> None:
    """Raise utils.UserError unless all that a run writes can be written; the folder need not be there, nor is made."""
    for part in LEFT_BEHIND:
        utils.check_writable(folder / part)
    for name in ("config.json", "log.jsonl", "curves.png", "report.html"):
        if (folder / name).is_dir():
            raise utils.UserError(f"cannot write {folder / name}: it is a folder")


def check_room(folder: Path, step: int, copies: tuple[int, int], num_bytes: tuple[int, int], averages: int = 0) -> None:
    """Raise utils.UserError unless the folder's disk has room for the checkpoints.

    Args: step: at which the run resumes, 0: none of its files counts; copies: how many full and best checkpoints are
        kept; num_bytes: the size of each; averages: bytes of all power-law averages that are still to be stored.
    """
    there = [path for kind in checkpoints.KINDS for path in of_kind(folder / "weights", kind) if step_of(path) <= step]
    missing = room(copies, num_bytes) + averages - sum(path.stat().st_size for path in there)
    free = shutil.disk_usage(utils.existing_parent(folder)).free
    if free < missing:
        raise utils.UserError(
            f"{folder}: the disk has {free / 2**30:.1f} GiB free, the checkpoints need {missing / 2**30:.1f} GiB; "
            f"make room, or {'raise --ema_power_every or ' if averages else ''}lower --num_save_copies"
        )


def room(copies: tuple[int, int], num_bytes: tuple[int, int]) -> int:
    """Bytes that a run's checkpoints take at most: a new one is written before the oldest is deleted."""
    return sum((number + 1) * size for number, size in zip(copies, num_bytes, strict=True))


def prepare(folder: Path, from_scratch: bool, step: int, passed_over: Collection[PassedOver], lock: Callable) -> None:
    """Make the run folder ready to write to, on rank 0.

    Moved aside is an earlier run under --from_scratch, and one that left no checkpoint to resume from but a best one;
    `lock`, of `run_lock.locked`, is called then. Renamed are full checkpoints that were passed over. Removed is what a
    killed run left behind: half-written files, and best checkpoints and averages of later steps than `step`, at which
    the run resumes, where it gets again.
    """
    weights = folder / "weights"
    full, best = (of_kind(weights, kind) for kind in ("ckpt", "best"))
    later = [*best, *checkpoints.averages_of(folder)]
    if from_scratch or (best and not full):
        if any(path.name != run_lock.NAME for path in folder.iterdir()):
            move_aside(folder)
            lock()
        later = []
    for part, patterns in LEFT_BEHIND.items():
        for path in itertools.chain.from_iterable((folder / part).glob(pattern) for pattern in patterns):
            path.unlink()
    for checkpoint in passed_over:
        checkpoint.path.rename(checkpoint.aside)
    for path in [path for path in later if step_of(path) > step]:
        path.unlink()


class Difference(NamedTuple):
    """Between a checkpoint and a command: what differs, both values, and the flag to name to --allow_change."""

    title: str
    before: Any
    now: Any
    flag: str | None


def check_same_run(
    checkpoint: dict,
    about: dict,
    changeable: Collection[str],
    by_name: Collection[str] = (),
    allowed: Collection[str] = (),
) -> dict[str, list]:
    """What differs from the run's checkpoint with --allow_change's permission: {flag: [before, now]}.

    Args: about: the entries `args`, `model_config` and `data` that the run would write into a checkpoint now, None or
        left out where they are not known; changeable: names of the flags that may differ; by_name: of those that may
        where they are among `allowed`. Other metric weights are a matter of `feature_network`, other reference
        statistics of `reference_file`.
    Raises: utils.UserError that lists what a run may not change and what differs.
    """
    old, new = checkpoint["args"], about["args"]
    found = {
        name: Difference(f"--{name}", old[name], new[name], name)
        for name in new
        if name in old and name not in changeable
    }
    old, new = (_facts(entries) for entries in (checkpoint, about))
    for name in ("resolution", "n_classes", *(name for name in new if name not in about["model_config"])):
        if None not in (old.get(name), new.get(name)):
            title, flag = f"the data's {name}", "feature_network" if name == "metric_weights" else None
            if name.startswith("reference_"):
                title, flag = f"the reference statistics' {name.removeprefix('reference_')}", "reference_file"
            found[name] = Difference(title, old[name], new[name], flag)
    found = {name: difference for name, difference in found.items() if difference.before != difference.now}
    refused = [difference for difference in found.values() if difference.flag not in set(by_name) & set(allowed)]
    if not refused:
        return {name: [difference.before, difference.now] for name, difference in found.items()}
    differences = [f"{it.title} was {shown(it.before)} and is now {shown(it.now)}" for it in refused]
    permitted = list(dict.fromkeys(it.flag for it in refused if it.flag in by_name))
    remedy = "Use"
    if permitted:
        extent = "all the same" if len(permitted) == len(refused) else "with that alone"
        remedy = f"Add --allow_change {' '.join(permitted)} to go on {extent}, or use"
    raise utils.UserError(
        f"cannot resume from step {checkpoint['step']}: {'; '.join(differences)}. {remedy} another --experiment_name, "
        "or --from_scratch to move the old run aside"
    )


def _facts(entries):
    """What entries of a checkpoint say of model, data and reference statistics, as one dict."""
    data = dict(entries["data"])
    reference = data.pop("reference", None) or {}
    return entries["model_config"] | data | {f"reference_{name}": value for name, value in reference.items()}


def provenance(ranks: Ranks) -> dict:
    """Where and with what a run is made: commit, PyTorch, device, number of processes."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {
        "commit": commit or "unknown",
        "torch": str(torch.__version__),
        "device": device_name(ranks.device),
        "world_size": ranks.world_size,
    }
