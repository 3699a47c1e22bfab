"""SIGKILL again and again, at random moments and in the midst of saving, evaluating, logging, drawing and going back.

The run that gets to its end all the same has the log and the checkpoint of one that was left alone, bit for bit. In the
suite it is killed a few times; SOAK_KILLS=50 .venv/bin/python -m pytest tests/soak.py is the whole.
"""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import pytest
import torch
from striped_data import fitted  # noqa: F401
from tqdm import tqdm

import train
from torch_utils import checkpoints
from training import intervals, logs, rollback

KILLS = int(os.environ.get("SOAK_KILLS", "3"))
FLAGS = (
    "--dataset toy --G_ch 4 --D_ch 4 --G_ch_mult 2-1-1 --D_ch_mult 1-2-2 --G_attn 0 --D_attn 0 --dim_z 8 --ssm voxel "
    "--batch_size 4 --feature_network classifier --num_inception_images 20 --metric_batch_size 20 --ema "
    "--which_best FD --num_iters 12 --log_every 1 --save_every 3 --test_every 4 --sample_every 6 --device cpu "
    "--on_collapse rollback"
).split()
# Where a process may be killed: within some milliseconds after a call of this function has begun.
MOMENTS = {
    "saving": (checkpoints, "save"),
    "evaluating": (intervals, "evaluate_generator"),
    "logging": (logs.RunLog, "write"),
    "drawing": (intervals, "plot_curves"),
    "going back": (rollback, "_gone_back"),
}


def at_call(owner, name, number, action):
    """Have the call `number` of a function, counted from 1, begin with an action."""
    function, calls = getattr(owner, name), []

    def counted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == number:
            action()
        return function(*arguments, **keywords)

    setattr(owner, name, counted)


def collapse_at_7():
    """The weights of D become infinite in step 7, unless the run has gone back already."""
    set_learning_rates, d_step, poisoned = train.set_learning_rates, train.d_step, []

    def look(opt_G, opt_D, options, step, factor):
        poisoned[:] = [step] if step == 7 and factor == 1 else []
        set_learning_rates(opt_G, opt_D, options, step, factor)

    def step_of_D(G, D, *arguments):
        terms = d_step(G, D, *arguments)
        if poisoned:
            D.linear.weight.data.fill_(torch.inf)
        return terms

    train.set_learning_rates, train.d_step = look, step_of_D


def in_fork(flags, prepare=lambda: None):
    """Train in a fork of this process, which need not import anything again; `prepare` is called there, first."""

    def run():
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        tqdm.set_lock(threading.RLock())  # by default one of all forks, which a killed one may hold for ever
        collapse_at_7()
        prepare()
        train.main(flags)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def ending(folder):
    """All that is to be the same."""
    dropped = {"time", "images_per_s", "memory_mb"}
    log = [{k: v for k, v in e.items() if k not in dropped} for e in logs.read_log(folder / "log.jsonl")]
    weights = {path.name: flat(checkpoints.load(path)) for path in (folder / "weights").iterdir()}
    return log, weights, {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}


def flat(entry):
    """With bytes in place of tensors; two folders' differ in the runs' names, and by commits meanwhile."""
    if torch.is_tensor(entry):
        return str(entry.dtype), tuple(entry.shape), entry.contiguous().numpy().tobytes()
    if isinstance(entry, dict):
        return {key: flat(value) for key, value in entry.items() if key not in ("experiment_name", "commit")}
    return [flat(value) for value in entry] if isinstance(entry, (list, tuple)) else entry


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(fitted, tmp_path):  # noqa: F811
    chance = random.Random(0)
    common = [*FLAGS, "--data_root", str(fitted), "--runs_root", str(tmp_path), "--experiment_name"]
    begun = time.monotonic()
    alone = in_fork([*common, "alone"])
    alone.join()
    duration, expected = time.monotonic() - begun, ending(tmp_path / "alone")
    assert alone.exitcode == 0 and [e["noticed"] for e in expected[0] if e["event"] == "rollback"] == [7]

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    kills = 0
    while kills < KILLS:
        moment = [*MOMENTS, "any"][kills % (len(MOMENTS) + 1)]
        delay, number = chance.uniform(0, 0.02), chance.randint(1, 4 if moment != "going back" else 1)
        if moment == "any":
            process = in_fork([*common, "killed"])
            process.join(chance.uniform(0, duration))
            process.kill()
        else:
            timer = threading.Timer(delay, kill)
            process = in_fork([*common, "killed"], lambda m=moment, n=number, t=timer: at_call(*MOMENTS[m], n, t.start))
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # it has got to its end before
            assert process.exitcode == 0 and ending(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
    last = in_fork([*common, "killed"])
    last.join()
    assert last.exitcode == 0 and ending(tmp_path / "killed") == expected
