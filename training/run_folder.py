"""The run folder: its name, which checkpoints it keeps, and whether a command may go on from one.

runs/<name>/weights/ckpt_<step>.pth     everything a run needs to go on, the newest few
runs/<name>/weights/best_<step>.pth     the evaluated generator alone, at its best evaluations, the newest few
"""

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import torch

import utils

FORMAT = 1  # of the checkpoint file
# Flags that may differ when a run is resumed: those of its length, its intervals and the machine.
CHANGEABLE = {
    "num_iters", "num_epochs", "test_every", "save_every", "sample_every", "log_every", "sv_log_interval",
    "num_save_copies", "num_best_copies", "num_workers", "load_in_mem", "metric_batch_size", "device", "parallel",
    "prdc_memory_mb", "from_scratch", "dry_run", "dry_run_time", "runs_root",
    "experiment_name", "name_suffix", "data_root", "inception_weights", "embedding_weights", "legacy_notes",
}  # fmt: skip

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


def find_checkpoint(path, kinds=("best", "ckpt")):
    """The checkpoint meant by `path`: a file is itself, a run folder the newest of the first of `kinds` that it has.

    Raises: utils.UserError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise utils.UserError(f"{path}: no such checkpoint or run folder")
    folder = path / "weights" if (path / "weights").is_dir() else path
    for kind in kinds:
        if found := _of_kind(folder, kind):
            return found[-1]
    raise utils.UserError(f"{path}: no checkpoint in this folder ({' or '.join(f'{kind}_*.pth' for kind in kinds)})")


def _of_kind(weights, kind):
    """The checkpoints 'ckpt' or 'best' of a folder, oldest first; files under a user's own names are not among them."""
    return sorted(weights.glob(f"{kind}_{'[0-9]' * 8}.pth"))


def _step(path):
    return int(path.stem.rpartition("_")[2])


def newest(folder):
    """The newest full checkpoint of a run folder, loaded on the CPU, or None if there is none. Raises: UserError."""
    found = _of_kind(folder / "weights", "ckpt")
    if not found:
        return None
    try:
        checkpoint = utils.load_torch(found[-1])
    except utils.UserError as error:
        raise utils.UserError(f"{error}; delete it to go on from the one before") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise utils.UserError(f"{found[-1]} is not a checkpoint of this version; use --from_scratch or another name")
    return checkpoint


def save(state, folder, kind, copies):
    """Write a checkpoint of `kind` 'ckpt' or 'best' at state["step"], then delete all but the newest `copies`."""
    weights = folder / "weights"
    utils.save_torch({"format": FORMAT, **state}, weights / f"{kind}_{state['step']:08d}.pth")
    for old in _of_kind(weights, kind)[:-copies]:
        old.unlink()


def check_which_best(which, keys):
    """Raise utils.UserError if evaluations, which give the metrics `keys`, never give the one of --which_best."""
    if not set(BEST[which][0]) & set(keys):
        raise utils.UserError(f"--which_best {which}: evaluations of this run give only {', '.join(keys)}")


def better(which, step, metrics, best):
    """The record of the better one: of these metrics if they beat `best` in --which_best, else `best` itself.

    A record is a dict of `step`, `metric` and `value`; `best` is None before the first evaluation.
    """
    keys, more = BEST[which]
    value = next((metrics[key] for key in keys if key in metrics), None)
    if value is None or not math.isfinite(value):
        return best
    if best is not None and not (value > best["value"] if more else value < best["value"]):
        return best
    return {"step": step, "metric": which, "value": value}


def num_bytes(G, D):
    """Sizes of a full checkpoint (weights, the moving average of G, Adam's two moments) and of a best one, float32."""
    sizes = [sum(t.numel() for t in net.state_dict().values()) for net in (G, D)]
    return 4 * (4 * sizes[0] + 3 * sizes[1]), 4 * sizes[0]


def run_folder(args):
    """runs_root/--experiment_name, or a name that tells the runs of a study apart. Raises: utils.UserError."""
    name = args.experiment_name or "_".join(
        [
            Path(args.dataset).stem,
            f"G{args.G_ch}D{args.D_ch}",
            *([args.model] if args.model != "BigGAN" else []),
            f"ssm-{args.ssm}",
            *(["shared"] if args.G_shared else []),
            *(["hier"] if args.hier else []),
            *([args.loss] if args.loss != "hinge" else []),
            *([f"rr{args.retention_ratio:g}"] if args.retention_ratio < 100 else []),
            f"bs{args.batch_size * args.num_D_accumulations}",
            f"Dsteps{args.num_D_steps}",
            f"lr{args.G_lr:g}-{args.D_lr:g}",
            f"seed{args.seed}",
        ]
    )
    name += f"_{args.name_suffix}" if args.name_suffix else ""
    if Path(name).name != name or name == "..":
        raise utils.UserError(f"--experiment_name {name}: a name, not a path; see --runs_root")
    return Path(args.runs_root) / name


def move_aside(folder):
    """Rename an existing run folder to <name>.old1, .old2 ..."""
    if folder.exists():
        candidates = (folder.with_name(f"{folder.name}.old{n}") for n in itertools.count(1))
        aside = next(path for path in candidates if not path.exists())
        try:
            folder.rename(aside)
        except OSError as error:
            raise utils.UserError(f"cannot move {folder} to {aside}: {error.strerror}") from error
        print(f"moved the earlier run to {aside}")


def prepare_folder(folder, args, G, D):
    """Make the run folder ready to write to, on rank 0, before anything is computed.

    Moved aside is an earlier run under --from_scratch, and one that left no checkpoint to resume from but a best one.
    Removed is what a killed run left behind: half-written files, and best checkpoints of later steps than the one that
    the run resumes at, since it gets there again.
    Raises: utils.UserError if the folder cannot be written to, or its disk has no room for the checkpoints.
    """
    weights = folder / "weights"
    full, best = (_of_kind(weights, kind) for kind in ("ckpt", "best"))
    if args.from_scratch or (best and not full):
        move_aside(folder)
        full, best = [], []
    for path in [*weights.glob(".ckpt_*"), *weights.glob(".best_*")]:
        path.unlink()
    kept = [path for path in best if _step(path) <= _step(full[-1])]
    for path in set(best) - set(kept):
        path.unlink()
    there = sum(path.stat().st_size for path in full + kept)
    full_bytes, best_bytes = num_bytes(G, D)
    needed = (args.num_save_copies + 1) * full_bytes + (args.num_best_copies + 1) * best_bytes
    _check_writable(folder, needed - there)


def _check_writable(folder, needed):
    """Raise utils.UserError unless `folder` can be written to and its disk has room for `needed` bytes."""
    utils.save_json({}, folder / ".writable")
    (folder / ".writable").unlink()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise utils.UserError(
            f"{folder}: the disk has {free / 2**30:.1f} GiB free, the checkpoints need {needed / 2**30:.1f} GiB; "
            "make room, or lower --num_save_copies"
        )


def check_same_run(checkpoint, about):
    """Raise utils.UserError that lists what a run may not change and what differs from its checkpoint.

    about: the entries `args`, `model_config` and `data` that the run would write into a checkpoint now.
    """
    old, new = checkpoint["args"], about["args"]
    pairs = {f"--{k}": (old[k], new[k]) for k in new if k in old and k not in CHANGEABLE}
    old, new = checkpoint["model_config"] | checkpoint["data"], about["model_config"] | about["data"]
    keys = ("resolution", "n_classes", *about["data"])
    pairs |= {f"the data's {k}": (old.get(k), new[k]) for k in keys if None not in (old.get(k), new[k])}
    differences = [f"{name} was {_shown(a)} and is now {_shown(b)}" for name, (a, b) in pairs.items() if a != b]
    if differences:
        raise utils.UserError(
            f"cannot resume from step {checkpoint['step']}: {'; '.join(differences)}. "
            "Use another --experiment_name, or --from_scratch to move the old run aside"
        )


def _shown(value):
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else value  # a SHA-256


def plain(args):
    """Parsed flags as a dict that JSON and torch.load(weights_only=True) take."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(args).items()}


def provenance(ranks):
    """Where and with what a run is made: commit, PyTorch, device, number of processes."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    cuda = ranks.device.type == "cuda"
    return {
        "commit": commit or "unknown",
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(ranks.device) if cuda else "cpu",
        "world_size": ranks.world_size,
    }
