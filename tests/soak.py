"""SIGKILL again and again, at random moments and in the midst of saving, evaluating, logging, drawing and going back.

The run that gets to its end all the same has the log and the checkpoint of one that was left alone, bit for bit. In the
suite it is killed a few times; SOAK_KILLS=50 .venv/bin/python -m pytest tests/soak.py is the whole.
"""

import os
import random
import shutil
import signal
import time

import clean_forks
import killed_runs
import pytest
import torch
from striped_data import fitted  # noqa: F401

from torch_utils import checkpoints
from training import logs

KILLS = int(os.environ.get("SOAK_KILLS", "3"))
FLAGS = (
    "--dataset toy --G_ch 4 --D_ch 4 --G_ch_mult 2-1-1 --D_ch_mult 1-2-2 --G_attn 0 --D_attn 0 --dim_z 8 --ssm voxel "
    "--batch_size 4 --feature_network classifier --num_inception_images 20 --metric_batch_size 20 --ema "
    "--which_best FD --num_iters 12 --log_every 1 --save_every 3 --test_every 4 --sample_every 6 --device cpu "
    "--on_collapse rollback"
).split()


def started(flags, *moment):
    process = clean_forks.context().Process(target=killed_runs.run, args=(flags, *moment))
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
    alone = started([*common, "alone"])
    alone.join()
    duration, expected = time.monotonic() - begun, ending(tmp_path / "alone")
    assert alone.exitcode == 0 and [e["noticed"] for e in expected[0] if e["event"] == "rollback"] == [7]

    kills = 0
    while kills < KILLS:
        moment = [*killed_runs.MOMENTS, "any"][kills % (len(killed_runs.MOMENTS) + 1)]
        delay, number = chance.uniform(0, 0.02), chance.randint(1, 4 if moment != "going back" else 1)
        if moment == "any":
            process = started([*common, "killed"])
            process.join(chance.uniform(0, duration))
            process.kill()
        else:
            process = started([*common, "killed"], moment, number, delay)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # it has got to its end before
            assert process.exitcode == 0 and ending(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
    last = started([*common, "killed"])
    last.join()
    assert last.exitcode == 0 and ending(tmp_path / "killed") == expected
