"""Training as its users run it: files, resume, signals, several processes, bad input, the reference family's flags."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import BigGAN
import calculate_inception_moments
import train
import utils
from image_datasets import writing
from model_config import ModelConfig
from torch_utils import checkpoints
from torch_utils.distributed import Ranks
from training import ema, logs, steps
from training.plan import make_config
from training.run_lock import locked

ROOT = Path(__file__).parent.parent
MODEL = "--G_ch 8 --D_ch 8 --G_ch_mult 2-1-1 --D_ch_mult 1-2-2 --G_attn 0 --D_attn 0 --dim_z 8 --ssm voxel".split()
METRICS = "--feature_network classifier --num_inception_images 140 --metric_batch_size 50".split()
STEPS = "--batch_size 8 --num_D_steps 2 --num_D_accumulations 2 --ema --ema_start 3 --ema_decay 0.5 --flip".split()
REPORTS = "--test_every 3 --save_every 2 --sample_every 3 --log_every 1 --which_best FD --device cpu".split()
FLAGS = ["--dataset", "made", *MODEL, *METRICS, *STEPS, *REPORTS]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A data set of 3 classes of noisy 16x16 images, its classifier and reference statistics."""
    root = tmp_path_factory.mktemp("data")
    labels = np.arange(150) % 3
    noise = np.random.default_rng(0).integers(0, 60, (150, 3, 16, 16))
    images = (noise + 80 * labels[:, None, None, None]).astype(np.uint8)
    writing.write_hdf5(root / "made.hdf5", images, labels, ["a", "b", "c"], "made", "none")
    writing.write_hdf5(root / "other.hdf5", 255 - images, labels, ["a", "b", "c"], "made", "none")
    writing.write_hdf5(root / "single.hdf5", images, np.zeros_like(labels), ["a"], "made", "none")
    flags = ["--dataset", "made", "--data_root", str(root), "--device", "cpu", "--feature_network", "classifier"]
    calculate_inception_moments.main([*flags, "--classifier_epochs", "1"])
    return root


@pytest.fixture
def where(data_root, tmp_path):
    return ["--data_root", str(data_root), "--runs_root", str(tmp_path / "runs"), "--experiment_name", "run"]


def command(*flags, launcher=()):
    return [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, flags)]


ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def events(folder):
    """The log without what depends on time."""
    dropped = {"time", "images_per_s", "memory_mb"}
    return [{k: v for k, v in e.items() if k not in dropped} for e in logs.read_log(folder / "log.jsonl")]


def states_equal(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    for key in ("G", "D", "G_ema"):
        for name in a[key]:
            assert torch.equal(a[key][name], b[key][name]), (key, name)
    assert a["step"] == b["step"] and a["best"] == b["best"] and a["metrics"] == b["metrics"]


@pytest.fixture(scope="module")
def whole(data_root, tmp_path_factory):
    """A finished run of 8 steps, never disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    flags = ["--data_root", str(data_root), "--runs_root", str(runs), "--experiment_name", "run", "--num_iters", "8"]
    train.main([*FLAGS, *flags])
    return runs / "run"


def test_a_run_writes_what_it_promises(whole):
    names = {
        str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    }
    sheets = {f"samples/step_{step:08d}.png" for step in (3, 6, 8)}
    kept = {f"weights/ckpt_{step:08d}.pth" for step in (6, 8)}
    best = {name for name in names if name.startswith("weights/best_")}
    assert (
        names == {"config.json", "log.jsonl", "curves.png", "report.html"} | sheets | kept | best
        and 1 <= len(best) <= 2
    )
    assert list((whole / "tensorboard").iterdir())
    log = events(whole)
    assert [e["step"] for e in log if e["event"] == "train"] == list(range(1, 9))
    evaluations = [e for e in log if e["event"] == "eval"]
    assert [e["step"] for e in evaluations] == [3, 6, 8]
    for key in ("fd", "is_mean", "precision", "recall", "density", "coverage", "accuracy"):
        assert all(np.isfinite(e[key]) for e in evaluations)
    assert evaluations[0]["protocol"]["fake_num"] == 140 and evaluations[0]["protocol"]["ema"]
    assert log[-2]["images_seen"] == 8 * 8 * 2 * 2


def test_checkpoints_hold_what_sampling_and_resuming_need(whole):
    checkpoint = torch.load(whole / "weights" / "ckpt_00000008.pth", weights_only=True)
    assert (
        checkpoint["step"] == 8 and checkpoint["images_per_D_step"] == 16 and checkpoint["class_names"] == list("abc")
    )
    assert checkpoint["args"]["G_lr"] == 5e-5 and checkpoint["run"]["world_size"] == 1
    lowest = min((e for e in events(whole) if e["event"] == "eval"), key=lambda e: e["fd"])
    assert checkpoint["best"]["step"] == lowest["step"] and checkpoint["best"]["value"] == lowest["fd"]
    best = checkpoints.find_checkpoint(whole)
    G, meta = BigGAN.load_generator(best)
    assert meta["step"] == lowest["step"] and meta["metrics"]["fd"] == lowest["fd"] and meta["ema"]
    D, meta = BigGAN.load_discriminator(whole)
    assert meta["step"] == 8 and D(torch.zeros(1, 3, 16, 16), torch.tensor([2])).shape == (1,)
    assert best.stat().st_size < 0.5 * (whole / "weights" / "ckpt_00000008.pth").stat().st_size
    assert G(torch.zeros(1, 8), torch.tensor([2])).shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_stopped_and_started_again_equals_never_stopped(whole, where, tmp_path):
    """Killed without warning after the checkpoint of step 4, then run again: same log, same weights, bit for bit."""
    weights = tmp_path / "runs" / "run" / "weights"
    process = subprocess.Popen(command(*FLAGS, *where, "--num_iters", 100000), env=ENV, stderr=subprocess.DEVNULL)
    deadline = time.time() + 100
    while not list(weights.glob("ckpt_0000000[4-6].pth")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for late in [path for path in weights.glob("*.pth") if int(path.stem[-8:]) > 6]:  # the machine may have been quick
        late.unlink()
    train.main([*FLAGS, *where, "--num_iters", "8"])
    assert events(tmp_path / "runs" / "run") == events(whole)
    states_equal(weights / "ckpt_00000008.pth", whole / "weights" / "ckpt_00000008.pth")


@pytest.mark.slow
def test_interrupt_saves_and_the_same_command_goes_on(whole, where, tmp_path):
    log = tmp_path / "runs" / "run" / "log.jsonl"
    flags = [*FLAGS, *where, "--save_every", 1000, "--test_every", 0, "--num_iters", 100000]
    process = subprocess.Popen(command(*flags), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 100
    while not (log.exists() and log.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in out and "Traceback" not in err
    (saved,) = (tmp_path / "runs" / "run" / "weights").glob("ckpt_*.pth")
    assert f"stopped at step {int(saved.stem[-8:])};" in out


def test_a_finished_run_is_left_as_it_is(whole, data_root, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.*")}
    flags = ["--data_root", str(data_root), "--runs_root", str(whole.parent), "--experiment_name", "run"]
    train.main([*FLAGS, *flags, "--num_iters", "8"])
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.*")} == before
    assert "step 8" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluating_does_not_change_training(whole, where, tmp_path):
    train.main([*FLAGS, *where, "--num_iters", "8", "--test_every", "0", "--sample_every", "0"])
    mine, theirs = ([e for e in events(f) if e["event"] == "train"] for f in (tmp_path / "runs" / "run", whole))
    assert mine == theirs


@pytest.mark.slow
def test_what_a_killed_run_left_is_cleared_away(where, tmp_path):
    flags = [*FLAGS, *where, "--test_every", "2", "--num_iters", "2"]
    train.main(flags)
    weights = tmp_path / "runs" / "run" / "weights"
    (best,) = weights.glob("best_*.pth")
    stale, half = best.with_name("best_00000099.pth"), weights / ".ckpt_00000099.pth.x.pth"
    for path in (stale, half):
        path.write_bytes(best.read_bytes())
    train.main([*flags, "--num_iters", "3"])
    assert not stale.exists() and not half.exists() and best.exists()
    for path in weights.glob("ckpt_*.pth"):  # nothing to resume from, but somebody's best weights
        path.unlink()
    train.main([*flags, "--num_iters", "1"])
    assert (tmp_path / "runs" / "run.old1" / "weights" / best.name).exists()


@pytest.mark.slow
def test_checkpoints_under_a_users_own_names_are_left_alone(where, tmp_path):
    flags = [*FLAGS, *where, "--test_every", "2", "--save_every", "1", "--num_save_copies", "1"]
    train.main([*flags, "--num_iters", "2"])
    weights = tmp_path / "runs" / "run" / "weights"
    mine = [weights / "ckpt_before_paper.pth", weights / "best_mine.pth"]
    for path in mine:
        path.write_bytes(b"not one of the run's")
    train.main([*flags, "--num_iters", "3"])
    assert all(path.exists() for path in mine)
    assert (weights / "ckpt_00000003.pth").exists() and not (weights / "ckpt_00000002.pth").exists()
    assert checkpoints.find_checkpoint(tmp_path / "runs" / "run").name.startswith("best_0000000")


def test_a_run_cannot_be_resumed_on_other_data(where, data_root, tmp_path):
    flags = [*FLAGS, *where, "--test_every", "0", "--num_iters", "1"]
    train.main(flags)
    path = tmp_path / "runs" / "run" / "weights" / "ckpt_00000001.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoints.save({**checkpoint, "data": {**checkpoint["data"], "num_images": 90}}, path)
    with pytest.raises(utils.UserError, match="num_images was 90 and is now 150"):
        train.main([*flags, "--num_iters", "2"])


def test_a_run_resumes_from_the_newest_checkpoint_that_is_finite(where, tmp_path, capsys):
    flags = [*FLAGS, *where, "--test_every", "0", "--sample_every", "0", "--save_every", "1", "--num_iters"]
    train.main([*flags, "2"])
    newest = tmp_path / "runs" / "run" / "weights" / "ckpt_00000002.pth"
    whole = torch.load(newest, weights_only=True)
    poisoned = torch.load(newest, weights_only=True)
    poisoned["opt_G"]["state"][0]["exp_avg_sq"][:] = torch.inf
    checkpoints.save(poisoned, newest)
    capsys.readouterr()
    train.main([*flags, "2"])
    out = capsys.readouterr().out
    assert "ckpt_00000002.pth is passed over: opt_G.state.0.exp_avg_sq" in out and "resuming at step 1 to 2" in out
    assert newest.with_stem("ckpt_00000002_not_finite").exists()
    again = torch.load(newest, weights_only=True)
    assert all(torch.equal(again["G"][name], whole["G"][name]) for name in whole["G"])


def test_a_damaged_newest_checkpoint_is_set_aside(where, tmp_path, capsys):
    flags = [*FLAGS, *where, "--test_every", "0", "--sample_every", "0", "--save_every", "1", "--num_iters", "2"]
    train.main(flags)
    newest = tmp_path / "runs" / "run" / "weights" / "ckpt_00000002.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    capsys.readouterr()
    train.main(flags)
    out = capsys.readouterr().out
    assert "note: " in out and "ckpt_00000002.pth is passed over: it is damaged" in out and "resuming at step 1" in out
    assert newest.with_stem("ckpt_00000002_damaged").read_bytes() == content and checkpoints.load(newest)["step"] == 2


@pytest.fixture
def full_disk(monkeypatch):
    """Steps at which no file of weights can be written: a set to fill."""
    steps, save = set(), torch.save

    def save_or_fail(content, path):
        if content["step"] in steps:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", save_or_fail)
    return steps


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(where, full_disk, tmp_path, capsys):
    full_disk |= {1, 3}
    flags = "--test_every 3 --sample_every 0 --save_every 1 --num_iters 4 --num_D_steps 1".split()
    train.main([*FLAGS, *where, *flags])
    folder = tmp_path / "runs" / "run"
    kept = sorted(path.name for path in (folder / "weights").glob("*ckpt_*"))
    assert kept == ["ckpt_00000002.pth", "ckpt_00000004.pth"]
    told = [event for event in events(folder) if event["event"] == "save_failed"]
    assert [event["step"] for event in told] == [1, 3, 3, 3]  # before the evaluation of step 3, its best, after it
    assert "ckpt_00000001.pth: No space left on device" in "".join(event["problem"] for event in told)
    assert "warning: step 3: cannot write" in capsys.readouterr().err
    best = checkpoints.load(folder / "weights" / "ckpt_00000004.pth")["best"]
    assert best["step"] == 4 and (folder / "weights" / "best_00000004.pth").exists()  # step 3's could not be written


def test_a_disk_that_stays_full_ends_the_run_in_one_line(where, full_disk, tmp_path):
    full_disk |= set(range(2, 100))
    flags = [*FLAGS, *where, *"--test_every 0 --sample_every 0 --save_every 1 --max_save_failures 2".split()]
    with pytest.raises(utils.UserError, match="of step 3 could be saved, 2 in a row: cannot write .*No space") as error:
        train.main([*flags, "--num_iters", "9"])
    assert "\n" not in str(error.value)
    with pytest.raises(utils.UserError, match="of step 2 could be saved: cannot write"):  # the last there would be
        train.main([*flags, "--num_iters", "2"])
    full_disk.clear()
    train.main([*flags, "--num_iters", "3"])
    assert checkpoints.load(tmp_path / "runs" / "run" / "weights" / "ckpt_00000003.pth")["step"] == 3


def test_a_run_in_use_is_refused_before_it_is_touched(where, tmp_path):
    flags = [*FLAGS, *where, "--test_every", "0", "--sample_every", "0", "--num_iters", "1"]
    train.main(flags)
    folder = tmp_path / "runs" / "run"
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with locked(folder, Ranks(0, 1, torch.device("cpu"))):
        for others in ([], ["--from_scratch"], ["--G_lr", "1"], ["--num_iters", "3"]):
            with pytest.raises(utils.UserError, match="run is in use by another run"):
                train.main([*flags, *others])
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.slow
def test_options_of_the_step_resume_exactly(where, tmp_path):
    """Every option that draws or depends on the step, stopped at its checkpoint, and not."""
    decay = "--lr_decay_start 1 --lr_decay_end 3 --lr_decay_to 0.5 --loss non_saturating".split()
    inputs = "--dequantise --D_fake_labels real --G_batch_size 16 --flip --sv_log_interval 2".split()
    flags = [*FLAGS, *where, *decay, *inputs, "--test_every", "0", "--sample_every", "0"]
    for num_iters in ("2", "4"):
        train.main([*flags, "--num_iters", num_iters])
    train.main([*flags, "--num_iters", "4", "--experiment_name", "whole"])
    stopped, whole = (events(tmp_path / "runs" / name) for name in ("run", "whole"))
    assert stopped == whole
    assert [e["G_lr"] / 5e-5 for e in whole if e["event"] == "train"] == pytest.approx([1, 1, 0.75, 0.5])
    sigmas = [e for e in whole if e["event"] == "singular_values"]
    assert [e["step"] for e in sigmas] == [2, 4]
    assert sigmas[0]["G/linear"] > 0 and any(name.startswith("D/blocks.0") for name in sigmas[0])


def test_from_scratch_moves_the_old_run_aside(where, tmp_path):
    for _ in range(2):
        train.main([*FLAGS, *where, "--num_iters", "1", "--test_every", "0", "--from_scratch"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run", "run.old1"]


@pytest.mark.slow
def test_two_processes_see_the_images_and_weights_of_one(whole, where, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = [*FLAGS, *where, "--num_iters", 3, "--G_ortho", 1e-4, "--cross_replica"]
    done = subprocess.run(command(*flags, launcher=torchrun), env=ENV, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    one, two = ([e for e in events(f) if e["event"] == "train"] for f in (whole, tmp_path / "runs" / "run"))
    assert len(two) == 3
    assert "on cpu, 2 processes: 4 images of a pass on each" in done.stdout
    assert done.stdout.count("next: python sample.py") == 1 and "Warning" not in done.stderr
    for name in ("D_loss_real", "D_loss_fake", "G_loss"):
        assert [e[name] for e in two] == pytest.approx([e[name] for e in one[:3]], abs=1e-3)
    assert [e["step"] for e in events(tmp_path / "runs" / "run") if e["event"] == "eval"] == [3]


# ---------------------------------------------------------------------------------------------------------------------
# One step


def tiny():
    torch.manual_seed(0)
    config = ModelConfig(
        resolution=8, n_classes=3, dim_z=4, G_ch=8, D_ch=8, G_ch_mult=(1, 1), D_ch_mult=(1, 2), D_param="none"
    )
    G, D = BigGAN.build(config)
    return G.eval(), D  # batch norm of G in eval mode: samples do not depend on one another


def test_accumulated_passes_are_one_large_batch():
    x, z = torch.randn(8, 3, 8, 8), torch.randn(8, 4)
    y, y_fake = torch.arange(8) % 3, torch.arange(8).flip(0) % 3
    for ortho in (0, 1e-2):
        gradients = []
        for parts in (1, 4):
            G, D = tiny()
            sgd = [torch.optim.SGD(net.parameters(), lr=0.0) for net in (G, D)]
            d_passes = zip(*(tensor.chunk(parts) for tensor in (x, y, z, y_fake)), strict=True)
            g_passes = zip(z.chunk(parts), y.chunk(parts), strict=True)
            d_terms = steps.d_step(G, D, D, sgd[1], d_passes, parts, ortho)
            g_terms = steps.g_step(G, D, G, sgd[0], g_passes, parts, ortho)
            gradients.append(
                [*(p.grad for net in (G, D) for p in net.parameters()), *d_terms.values(), *g_terms.values()]
            )
        for one, four in zip(*gradients, strict=True):
            torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-6)


def test_steps_move_only_their_own_network():
    G, D = tiny()
    x, y, z = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), torch.randn(4, 4)
    for step, own, other in (("d", D, G), ("g", G, D)):
        before = [p.clone() for p in (*own.parameters(), *other.parameters())]
        optimizer = torch.optim.Adam(own.parameters(), lr=1e-2)
        if step == "d":
            steps.d_step(G, D, D, optimizer, [(x, y, z, y)], 1, 0)
        else:
            steps.g_step(G, D, G, optimizer, [(z, y)], 1, 0)
        changed = [not torch.equal(a, b) for a, b in zip(before, (*own.parameters(), *other.parameters()), strict=True)]
        n = len(list(own.parameters()))
        assert sum(changed[:n]) > n / 2 and not any(changed[n:])


def test_moving_average():
    G, _ = tiny()
    average = ema.MovingAverage(G, decay=0.9, start=2)
    key, statistic = "linear.weight", "stages.0.0.bn1.bn.running_mean"
    expected = None
    for step in range(1, 6):
        state = G.state_dict()
        state[key].add_(1)
        state[statistic].add_(1)
        average.update(step)
        copies = step <= 2
        expected = state[key].clone() if copies else 0.9 * expected + 0.1 * state[key]
        torch.testing.assert_close(average.module.state_dict()[key], expected)
        assert torch.equal(average.module.state_dict()[statistic], state[statistic]) == copies


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one clear line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "missing"], "make_hdf5.py"),
        (["--dataset", "single"], "--unconditional"),
        (["--batch_size", "0"], "positive"),
        (["--hier"], "--hier needs --G_shared"),
        (["--G_ch_mult", "4-4"], "--G_ch_mult"),
        (["--experiment_name", "a/b"], "a name, not a path"),
        (["--which_best", "fast"], "FID"),
        (["--G_lr", "-1"], "--G_lr"),
        (["--ema_decay", "2"], "--ema_decay"),
        (["--num_iter", "5"], "did you mean --num_iters"),
        (["--load_weights", "x"], "resumed by itself"),
        (["--retention_ratio", "50", "--embedding", "swav"], "--embedding: invalid choice: 'swav'"),
        (["--retention_ratio", "101"], "percentage above 0"),
        (["--device", "cuda:77"], "--device"),
        (["--dataset", "single", "--unconditional"], "calculate_inception_moments.py"),
        (["--num_inception_images", "5"], "--num_inception_images 5"),
        (["--unconditional", "--which_best", "accuracy"], "--which_best ACCURACY"),
        (["--experiment_name", ".."], "a name, not a path"),
        (["--G_ortho", "-1"], "--G_ortho"),
        (["--SN_eps", "-1"], "--SN_eps"),
        (["--seed", str(2**64)], "--seed"),
    ],
)
def test_bad_input_is_one_line(where, tmp_path, capsys, flags, words):
    with pytest.raises((SystemExit, utils.UserError)) as stop:
        train.main([*FLAGS, *where, "--num_iters", "2", *flags])
    text = str(stop.value) if isinstance(stop.value, utils.UserError) else capsys.readouterr().err.strip()
    assert words in text and "\n" not in text
    assert not (tmp_path / "runs").exists()


def test_a_run_cannot_be_resumed_as_another(whole, data_root):
    flags = ["--data_root", str(data_root), "--runs_root", str(whole.parent), "--experiment_name", "run"]
    with pytest.raises(
        utils.UserError, match="--ssm was voxel and is now none; --G_lr was 5e-05 and is now 0.001"
    ) as error:
        train.main([*FLAGS, *flags, "--num_iters", "8", "--G_lr", "1e-3", "--ssm", "none"])
    assert "--from_scratch" in str(error.value)


@pytest.mark.parametrize("part", ["", "run/weights"])
def test_an_unwritable_run_folder_is_refused_before_data_are_read(where, tmp_path, monkeypatch, part):
    path = tmp_path / "runs" / part
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file in the way")
    monkeypatch.setattr(train.doctor, "introduce", lambda dataset: pytest.fail("the data were read"))
    with pytest.raises(utils.UserError, match=f"cannot write {path}"):
        train.main([*FLAGS, *where, "--num_iters", "2"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--G_lr", "1e-3"], "--allow_change G_lr"),
        (["--num_iters", "20", "--D_lr", "1e-3", "--ssm", "none"], "--ssm was voxel and is now none; --D_lr was"),
        (["--dataset", "other"], "--dataset was made and is now other"),
        (["--feature_network", "inception"], "--feature_network was classifier and is now inception"),
        (["--allow_change", "ssm", "--ssm", "none"], "--allow_change ssm: --ssm cannot change"),
        (["--experiment_name", "new", "--num_inception_images", "5"], "--num_inception_images 5"),
        (["--experiment_name", "new", "--which_best", "fid", "--unconditional", "--dataset", "single"], "classifier"),
        (["--experiment_name", "new", "--which_best", "accuracy", "--unconditional"], "--which_best ACCURACY"),
        (["--experiment_name", "new", "--init_from", "{whole}", "--G_ch", "4"], "--G_ch was 8 and is 4"),
        (["--experiment_name", "new", "--device", "cuda:77"], "--device cuda:77"),
        (["--experiment_name", "new", "--runs_root", "{data}/made.hdf5"], "cannot write"),
        (["--experiment_name", "new", "--batch_size", "0"], "positive"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(whole, data_root, capsys, flags, words):
    """In the same words first, then what else is missing; and neither leaves anything behind."""
    flags = [flag.format(whole=whole, data=data_root) for flag in flags]
    where = ["--data_root", str(data_root), "--runs_root", str(whole.parent), "--experiment_name", "run"]
    before = sorted(path for root in (whole.parent, data_root) for path in root.rglob("*"))
    told = []
    for dry in ([], ["--dry_run"]):
        with pytest.raises((SystemExit, utils.UserError)) as stop:
            train.main([*FLAGS, *where, "--num_iters", "8", *flags, *dry])
        text = str(stop.value) if isinstance(stop.value, utils.UserError) else capsys.readouterr().err.strip()
        told.append(text.removeprefix("train.py: error: "))
    assert told[0] == told[1].splitlines()[0] and words in told[0] and "\n" not in told[0]
    assert sorted(path for root in (whole.parent, data_root) for path in root.rglob("*")) == before


def test_a_dry_run_says_where_a_run_goes_on_and_what_its_checkpoints_take(whole, data_root, capsys):
    flags = ["--data_root", str(data_root), "--runs_root", str(whole.parent), "--experiment_name", "run", "--dry_run"]
    train.main([*FLAGS, *flags, "--num_iters", "20", "--G_lr", "1e-3", "--allow_change", "G_lr"])
    out = capsys.readouterr().out
    assert "resuming at step 8 to 20" in out and "changed from step 8 on: G_lr 5e-05 → 0.001" in out
    size = float(re.search(r"disk: ([\d.]+) MiB a checkpoint", out)[1]) * 2**20
    written = (whole / "weights" / "ckpt_00000008.pth").stat().st_size
    assert size == pytest.approx(written, rel=0.35)  # the names and frames of tensors count in a model so small


def test_flags_that_are_named_may_change(where, tmp_path, capsys):
    flags = [*FLAGS, *where, "--test_every", "0", "--sample_every", "0", "--num_iters"]
    train.main([*flags, "2"])
    changed = [*flags, "3", "--G_lr", "1e-3", "--batch_size", "4"]
    with pytest.raises(utils.UserError, match="--allow_change (G_lr batch_size|batch_size G_lr)"):
        train.main(changed)
    for _ in range(2):  # as after a kill before the next checkpoint
        train.main([*changed, "--allow_change", "G_lr", "batch_size"])
        (tmp_path / "runs" / "run" / "weights" / "ckpt_00000003.pth").unlink()
    assert "changed from step 2 on: " in capsys.readouterr().out
    log = events(tmp_path / "runs" / "run")
    assert [(e["event"], e["step"]) for e in log] == [("train", 1), ("train", 2), ("change", 2), ("train", 3)]
    assert log[2]["flags"] == {"batch_size": [8, 4], "G_lr": [5e-5, 1e-3]}
    assert [e["images_seen"] for e in log if e["event"] == "train"] == [32, 64, 80]  # 2 steps of D, 2 passes each
    assert log[3]["G_lr"] == 1e-3


def test_allow_change_without_a_run_says_so(where, tmp_path, capsys):
    flags = [*FLAGS, *where, "--dry_run", "--allow_change", "G_lr", "--experiment_name"]
    train.main([*flags, "run"])
    assert f"there is no run to go on with in {tmp_path}/runs/run\n" in capsys.readouterr().out
    train.main([*flags, ""])
    assert "whose name is made from the flags: --experiment_name names another" in capsys.readouterr().out


def test_the_start_says_where_and_on_how_many_images(where, capsys):
    train.main([*FLAGS, *where, "--test_every", "0", "--num_iters", "1", "--G_shared", "--hier", "--dim_z", "10"])
    out = capsys.readouterr().out
    assert "on cpu, 1 process: 8 images of a pass on each" in out
    assert "examined" not in out  # at every start: the data set has no warnings
    assert "note: --dim_z 10 is 9 here: --hier splits z into equal parts" in out


def test_unconditional_training_on_one_class(where, tmp_path):
    flags = ["--dataset", "single", "--unconditional", "--test_every", "0", "--num_iters", "2"]
    train.main([*FLAGS, *where, *flags])
    G, meta = BigGAN.load_generator(tmp_path / "runs" / "run")
    assert G.config.n_classes == 1 and G.config.D_cond == "none" and meta["class_names"] == ["all"]


@pytest.mark.slow
def test_exit_status_and_stderr_of_the_script(where):
    done = subprocess.run(command(*FLAGS, *where, "--dataset", "nowhere"), env=ENV, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr


PUBLISHED = {
    "SSM": "--dataset I64_hdf5 --parallel --shuffle --num_workers 8 --batch_size 128 --num_G_accumulations 1 "
    "--num_D_accumulations 1 --num_D_steps 1 --G_lr 1e-4 --D_lr 4e-4 --D_B2 0.999 --G_B2 0.999 --G_attn 32 --D_attn 32 "
    "--G_nl relu --D_nl relu --SN_eps 1e-8 --BN_eps 1e-5 --adam_eps 1e-8 --G_ortho 0.0 --G_init xavier --D_init xavier "
    "--G_eval_mode --G_ch 32 --D_ch 32 --ema --use_ema --ema_start 2000 --test_every 5000 --save_every 1000 "
    "--num_best_copies 5 --num_save_copies 2 --seed 0 --which_best FID --num_iters 1000000 --num_epochs 1000 "
    "--embedding inceptionv3 --density_measure gaussian --retention_ratio 100",
    "BigGAN": "--dataset I128_hdf5 --parallel --shuffle --num_workers 8 --batch_size 256 --load_in_mem "
    "--num_G_accumulations 8 --num_D_accumulations 8 --num_D_steps 1 --G_lr 1e-4 --D_lr 4e-4 --D_B2 0.999 --G_B2 0.999 "
    "--G_attn 64 --D_attn 64 --G_nl inplace_relu --D_nl inplace_relu --SN_eps 1e-6 --BN_eps 1e-5 --adam_eps 1e-6 "
    "--G_ortho 0.0 --G_shared --G_init ortho --D_init ortho --hier --dim_z 120 --shared_dim 128 --G_ch 96 "
    "--G_eval_mode --D_ch 96 --ema --use_ema --ema_start 20000 --test_every 2000 --save_every 1000 --num_best_copies 5 "
    "--num_save_copies 2 --seed 0 --use_multiepoch_sampler",
    "BigGAN-deep": "--model BigGANdeep --dataset I128_hdf5 --parallel --shuffle --num_workers 8 --batch_size 256 "
    "--num_G_accumulations 8 --num_D_accumulations 8 --num_D_steps 1 --G_lr 1e-4 --D_lr 4e-4 --D_B2 0.999 --G_B2 0.999 "
    "--G_attn 64 --D_attn 64 --G_ch 128 --D_ch 128 --G_depth 2 --D_depth 2 --G_nl inplace_relu --D_nl inplace_relu "
    "--SN_eps 1e-6 --BN_eps 1e-5 --adam_eps 1e-6 --G_ortho 0.0 --G_shared --G_init ortho --D_init ortho --skip_init "
    "--hier --dim_z 128 --shared_dim 128 --ema --use_ema --ema_start 20000 --G_eval_mode --test_every 2000 "
    "--save_every 500 --num_best_copies 5 --num_save_copies 2 --seed 0 --use_multiepoch_sampler --base_root /scratch",
    "SAGAN, an old revision": "--G_eval_mode --dataset I128_hdf5 --parallel --shuffle --num_workers 8 --batch_size 256 "
    "--num_G_accumulations 1 --num_D_accumulations 1 --num_D_steps 1 --G_lr 1e-4 --D_lr 4e-4 --D_B2 0.999 --G_B2 0.999 "
    "--G_attn 64 --D_attn 64 --G_nl relu --D_nl relu --SN_eps 1e-8 --BN_eps 1e-5 --adam_eps 1e-8 --G_ortho 0.0 "
    "--G_shared --G_init xavier --D_init xavier --ema --use_ema --ema_start 2000 --test_every 2000 --save_every 1000 "
    "--num_best_copies 5 --num_save_copies 2 --seed 0 --name_suffix SAGAN_bs256x1_ema --load_weights --resume "
    "--base_root /scratch",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_launch_lines_are_accepted(name):
    options, _ = train.parse_args(PUBLISHED[name].split())
    config = make_config(options, 64 if name == "SSM" else 128, 1000)
    assert config.dim_z == (120 if name == "BigGAN" else 128) and len(options.legacy_notes) >= 5
    assert json.dumps(options.record())


# Flags of the published launch scripts and the values they have there.
PUBLISHED_VALUES = """
dataset I64_hdf5 I128_hdf5 I256_hdf5 C10 | parallel | shuffle | num_workers 8 | batch_size 50 64 128 256 512
load_in_mem | num_G_accumulations 1 2 4 8
num_D_accumulations 1 2 4 8 | num_D_steps 1 2 4 5 | G_lr 1e-4 2e-4 | D_lr 4e-4 2e-4
G_B2 0.999 0.900 | D_B2 0.999 0.900 | G_attn 0 32 64 | D_attn 0 32 64 | G_nl relu inplace_relu | D_nl relu inplace_relu
SN_eps 1e-8 1e-6 | BN_eps 1e-5 | adam_eps 1e-8 1e-6 | G_ortho 0.0 | G_shared | G_init xavier ortho N02
D_init xavier ortho N02 | skip_init | hier | dim_z 120 128 140 | shared_dim 128 | G_eval_mode | G_ch 32 64 96 128
D_ch 32 64 96 128 | D_thin | ema | use_ema | ema_start 1000 2000 20000 | test_every 2000 5000
save_every 500 1000 2000 5000 | num_best_copies 5 | num_save_copies 2 | seed 0 | use_multiepoch_sampler | which_best FID
num_iters 300000 500000 1000000 | num_epochs 100 500 1000 | embedding inceptionv3 | density_measure gaussian
retention_ratio 40 50 100 | experiment_name a+b | name_suffix SNGAN | data_root /data | base_root /scratch | no_fid
load_weights | resume | cross_replica | mybn
"""


def test_every_published_flag_and_value_is_accepted():
    for entry in PUBLISHED_VALUES.replace("\n", "|").split("|"):
        if entry.strip():
            flag, *values = entry.split()
            for value in values or [()]:
                train.parse_args(["--dataset", "x", f"--{flag}", *([value] if value else [])])
