"""Runs that collapse, are undone, stop, or end while they evaluate: as their users meet them, on a toy."""

import itertools
import math
import signal

import clean_forks
import numpy as np
import pytest
import torch
from PIL import Image
from striped_data import fitted  # noqa: F401

import train
import utils
from reports import curves
from torch_utils import checkpoints
from training import intervals, logs, session
from training.watchdog import Watchdog

MODEL = "--G_ch 8 --D_ch 8 --G_ch_mult 2-1-1 --D_ch_mult 1-2-2 --G_attn 0 --D_attn 0 --dim_z 8 --batch_size 8".split()
METRICS = "--feature_network classifier --num_inception_images 40 --metric_batch_size 40 --which_best FD".split()
REPORTS = "--num_D_steps 1 --log_every 1 --save_every 2 --test_every 0 --sample_every 0 --ema --device cpu".split()
FLAGS = ["--dataset", "toy", *MODEL, *METRICS, *REPORTS]


@pytest.fixture
def where(fitted, tmp_path):  # noqa: F811
    return ["--data_root", str(fitted), "--runs_root", str(tmp_path), "--experiment_name"]


@pytest.fixture
def poison(monkeypatch):
    """`poison(step, times)`: at that step of the run, so many times, a gradient of D becomes NaN in D's update."""
    d_step, begin_step = train.d_step, train.set_learning_rates
    now = {}

    def set_step(opt_G, opt_D, options, step, factor):
        now["step"] = step
        begin_step(opt_G, opt_D, options, step, factor)

    def poisoned(G, D, forward, optimizer, *arguments):
        terms = d_step(G, D, forward, optimizer, *arguments)
        if now["step"] == now.get("when") and now["times"] > 0:
            now["times"] -= 1
            for weight in D.parameters():
                weight.grad.fill_(math.nan)
            optimizer.step()
        return terms

    monkeypatch.setattr(train, "set_learning_rates", set_step)
    monkeypatch.setattr(train, "d_step", poisoned)
    return lambda step, times=1: now.update(when=step, times=times)


def events(folder, *names):
    """Events of these names, or all, without what depends on time."""
    dropped = {"time", "images_per_s", "memory_mb"}
    log = logs.read_log(folder / "log.jsonl")
    return [{k: v for k, v in e.items() if k not in dropped} for e in log if not names or e["event"] in names]


def newest(folder):
    return checkpoints.load(checkpoints.of_kind(folder / "weights", "ckpt")[-1])


def assert_same(one, other):
    """Two run folders ended alike."""
    assert events(one) == events(other)
    a, b = newest(one), newest(other)
    assert (a["step"], a["best"], a["metrics"]) == (b["step"], b["best"], b["metrics"])
    assert a["watchdog"] == b["watchdog"]
    torch.testing.assert_close(*({k: c[k] for k in ("G", "D", "G_ema")} for c in (a, b)), rtol=0, atol=0)


def test_a_run_that_diverges_ends_and_says_so_again(where, tmp_path, poison, monkeypatch):
    poison(5)
    command = [*FLAGS, *where, "run", "--num_iters", "8"]
    with pytest.raises(
        utils.UserError, match="ended at step 5: .*gradients of D.* no longer finite.*--on_collapse"
    ) as end:
        train.main([*command, "--log_every", "50", "--save_every", "1"])
    folder = tmp_path / "run"
    (event,) = events(folder, "collapse")
    assert (event["step"], event["kind"], event["action"]) == (5, "not_finite", "stop")
    assert checkpoints.not_finite(newest(folder)) is None and newest(folder)["step"] == 4
    with pytest.raises(utils.UserError) as again:  # at once, and in the same words
        train.main(command)
    assert str(again.value) == str(end.value)
    monkeypatch.undo()
    train.main([*command, "--G_lr", "1e-5", "--allow_change", "G_lr"])
    assert newest(folder)["step"] == 8 and not events(folder, "collapse")


def test_a_collapse_is_undone_and_that_is_resumed_exactly(where, tmp_path, poison, monkeypatch, capsys):
    poison(5)
    command = [*FLAGS, "--on_collapse", "rollback", "--num_iters", "8", *where]
    train.main([*command, "whole"])
    whole = tmp_path / "whole"
    (event,) = events(whole, "rollback")
    assert (event["step"], event["noticed"], event["number"], event["lr_factor"]) == (4, 5, 1, 0.5)
    assert (
        "rollback 1 to step 4, with fresh noise and 0.5 times the learning rates: at step 5" in capsys.readouterr().out
    )
    train_events = events(whole, "train")
    assert [e["step"] for e in train_events] == list(range(1, 9)) and not events(whole, "collapse")
    assert [e["D_lr"] / 2e-4 for e in train_events] == pytest.approx([1] * 4 + [0.5] * 4)
    assert newest(whole)["watchdog"]["rollbacks"][0]["step"] == 4

    def killed():
        raise KeyboardInterrupt

    for name, owner, function, last in (
        ("as_it_began", session, "open_log", 2),
        ("later", intervals, "draw_curves", 3),
    ):
        poison(5)
        original, calls = getattr(owner, function), itertools.count(1)

        def counted(*arguments, original=original, calls=calls, last=last):
            return killed() if next(calls) == last else original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, counted)
            with pytest.raises(KeyboardInterrupt):
                train.main([*command, name])
        train.main([*command, name])
        assert_same(tmp_path / name, whole)

    train.main([*FLAGS, *where, "calm", "--num_iters", "8"])
    calm = events(tmp_path / "calm", "train")
    assert calm[:4] == train_events[:4] and calm[4]["D_loss_fake"] != train_events[4]["D_loss_fake"]
    curves.plot_curves(logs.read_log(whole / "log.jsonl"), tmp_path / "a.png")
    curves.plot_curves(logs.read_log(tmp_path / "calm" / "log.jsonl"), tmp_path / "b.png")
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int) for name in "ab")
    red = [((image[..., 0] > 190) & (image[..., 1] < 60)).sum() for image in (a, b)]
    assert red[0] > red[1]


def test_rollbacks_come_to_an_end(where, tmp_path, poison):
    poison(3, times=99)
    command = [*FLAGS, "--on_collapse", "rollback", "--num_iters", "4", *where, "run", "--max_rollbacks"]
    for _ in range(2):  # the second time at once
        with pytest.raises(utils.UserError, match="ended at step 3, after 2 rollbacks: .*a higher --max_rollbacks"):
            train.main([*command, "2"])
    assert [told["step"] for told in newest(tmp_path / "run")["watchdog"]["rollbacks"]] == [2, 0]  # in vain, so older
    poison(3, times=0)
    train.main([*command, "3"])
    assert newest(tmp_path / "run")["step"] == 4 and newest(tmp_path / "run")["watchdog"]["lr_factor"] == 0.25
    assert [e["number"] for e in events(tmp_path / "run", "rollback")] == [1, 2]


def test_a_collapse_before_the_first_checkpoint_goes_back_to_the_beginning(where, tmp_path, poison):
    poison(1)
    train.main([*FLAGS, "--on_collapse", "rollback", "--num_iters", "2", *where, "run"])
    assert [e["step"] for e in events(tmp_path / "run")] == [0, 1, 2] and newest(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("policy", ["warn", "stop", "rollback"])
def test_what_is_done_with_a_bad_evaluation(where, tmp_path, monkeypatch, capsys, policy):
    """FD is 4 and then 40: said, and drawn; the end; or back to before, and better then."""
    scores = iter([4.0, 40.0, 3.0, 3.0, 3.0])
    others = {"is_mean": 2.0, "is_std": 0.1, "protocol": {}}
    monkeypatch.setattr(intervals, "evaluate_generator", lambda *_, **__: {"fd": next(scores), **others})
    command = [
        *FLAGS,
        "--test_every",
        "2",
        "--save_every",
        "1",
        "--on_collapse",
        policy,
        "--num_iters",
        "6",
        *where,
        "run",
    ]
    folder = tmp_path / "run"
    if policy == "stop":
        with pytest.raises(utils.UserError, match="ended at step 4: FD 40 is more than 3 times its best, 4"):
            train.main(command)
    else:
        train.main(command)
        assert newest(folder)["step"] == 6 and newest(folder)["best"]["value"] == 3.0
    found = [(e["step"], e["kind"], e["action"]) for e in events(folder, "collapse")]
    assert found == ([] if policy == "rollback" else [(4, "fd", policy)])
    told = capsys.readouterr().err
    assert ("step 4: FD 40 is more than 3 times its best, 4; --on_collapse can act on it" in told) == (policy == "warn")
    back = [(e["step"], e["noticed"]) for e in events(folder, "rollback")]
    assert back == ([(3, 4)] if policy == "rollback" else [])  # two copies are kept, that of step 2 was the older one


def test_a_best_that_went_with_a_rollback_counts_no_more(where, tmp_path, monkeypatch):
    """With --num_best_copies 1 that of step 2 gives way to that of step 4, which the collapse of step 6 takes away."""
    scores = iter([(4.0, 0.5), (3.0, 0.5), (9.0, 0.0), (5.0, 0.5), (6.0, 0.5)])
    others = {"is_mean": 2.0, "is_std": 0.1, "protocol": {}}

    def evaluated(*_, **__):
        fd, coverage = next(scores)
        return {"fd": fd, "coverage": coverage, **others}

    monkeypatch.setattr(intervals, "evaluate_generator", evaluated)
    monkeypatch.setattr(intervals, "draw_curves", lambda *_: None)  # which takes its time
    flags = "--test_every 2 --save_every 1 --num_iters 6 --num_best_copies 1 --num_save_copies 9".split()
    examine = Watchdog.examine_metrics

    def back_to_3(self, step, metrics, factor):
        return [finding._replace(healthy=3) for finding in examine(self, step, metrics, factor)]

    monkeypatch.setattr(Watchdog, "examine_metrics", back_to_3)
    train.main([*FLAGS, *flags, "--on_collapse", "rollback", *where, "run"])
    assert [(e["step"], e["noticed"]) for e in events(tmp_path / "run", "rollback")] == [(3, 6)]
    best = checkpoints.of_kind(tmp_path / "run" / "weights", "best")
    assert [checkpoints.step_of(path) for path in best] == [4] and newest(tmp_path / "run")["best"]["value"] == 5.0


def test_what_ends_in_an_evaluation_is_saved_and_goes_on_exactly(where, tmp_path, monkeypatch):
    command = [*FLAGS, "--test_every", "3", "--save_every", "100", "--num_iters", "6", "--sample_every", "3", *where]
    train.main([*command, "whole"])
    evaluate_generator = intervals.evaluate_generator
    for step in (3, 6):
        name = f"run{step}"

        def killed(*arguments, step=step, name=name, **how):
            if newest(tmp_path / name)["step"] == step:  # it is there already
                raise KeyboardInterrupt
            return evaluate_generator(*arguments, **how)

        with monkeypatch.context() as patch:
            patch.setattr(intervals, "evaluate_generator", killed)
            with pytest.raises(KeyboardInterrupt):
                train.main([*command, name])
        assert newest(tmp_path / name)["evaluating"] and newest(tmp_path / name)["metrics"] is None
        train.main([*command, name])
        assert_same(tmp_path / name, tmp_path / "whole")
        assert not newest(tmp_path / name)["evaluating"]


def test_a_signal_while_a_sheet_is_drawn_loses_no_step(where, tmp_path, monkeypatch):
    """Where no checkpoint is due: it comes after the next step."""
    command = [*FLAGS, "--save_every", "100", "--num_iters", "6", "--sample_every", "3", *where, "run"]
    class_sheet = intervals.class_sheet

    def signalled(*arguments, **how):
        signal.raise_signal(signal.SIGTERM)
        return class_sheet(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(intervals, "class_sheet", signalled)
        patch.setattr(intervals, "draw_curves", lambda *_: None)
        with pytest.raises(SystemExit, match="143"):
            train.main(command)
    assert newest(tmp_path / "run")["step"] == 4
    train.main(command)
    assert newest(tmp_path / "run")["step"] == 6


@pytest.mark.parametrize("kept", [True, False])
def test_a_signal_in_an_evaluation_ends_in_an_error_only_where_the_step_is_lost(where, tmp_path, monkeypatch, kept):
    """The disk is full after the checkpoint that comes before the evaluation, or from the beginning."""
    save = checkpoints.save

    def evaluated(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        return {"fd": 1.0, "is_mean": 2.0, "is_std": 0.1, "protocol": {}}

    def full(content, path):
        if not (kept and content.get("evaluating")):
            raise utils.CannotWrite(f"cannot write {path}: No space left on device")
        save(content, path)

    monkeypatch.setattr(intervals, "evaluate_generator", evaluated)
    monkeypatch.setattr(checkpoints, "save", full)
    lost = pytest.raises(utils.UserError, match="no checkpoint of step 2 could be saved: .*No space left")
    with pytest.raises(SystemExit, match="143") if kept else lost:
        train.main([*FLAGS, "--test_every", "2", "--num_iters", "6", *where, "run"])


def test_moments_that_overflow_are_no_checkpoint(where, tmp_path, monkeypatch):
    """Weights, losses and gradients are finite; a moment of Adam is not."""
    g_step = train.g_step

    def overflow(G, D, forward, optimizer, *arguments):
        terms = g_step(G, D, forward, optimizer, *arguments)
        next(iter(optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)
        return terms

    monkeypatch.setattr(train, "g_step", overflow)
    with pytest.raises(utils.UserError, match="ended at step 2: opt_G.state.0.exp_avg_sq is no longer finite"):
        train.main([*FLAGS, "--num_iters", "4", *where, "run"])
    assert not list((tmp_path / "run" / "weights").glob("*.pth"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rollback_lr", "0"], "--rollback_lr 0.0: must lie in"),
        (["--rollback_lr", "2"], "--rollback_lr 2.0: must lie in"),
        (["--collapse_factor", "1"], "--collapse_factor 1.0: must be above 1"),
        (["--collapse_factor", "nan"], "--collapse_factor nan: must be above 1"),
    ],
)
def test_bad_options_are_one_line(flags, words):
    with pytest.raises(utils.UserError, match=words):
        train.parse_args(["--dataset", "toy", *flags])


def test_a_learning_rate_that_is_too_high_is_found_and_lowered(where, tmp_path, capsys):
    """D's times 50, from step 8 of 24 on: noticed at the next look, and calm again in the end."""
    command = [*FLAGS, *where, "run", "--log_every", "4", "--save_every", "8", "--on_collapse", "rollback"]
    train.main([*command, "--D_lr", "4e-3", "--num_iters", "8"])
    too_high = ["--D_lr", "0.2", "--allow_change", "D_lr", "--rollback_lr", "0.1", "--num_iters", "24"]
    train.main([*command, *too_high])
    rollbacks = events(tmp_path / "run", "rollback")
    assert [e["kind"] for e in rollbacks] == ["singular_values"] and rollbacks[0]["noticed"] <= 12
    assert [e["step"] for e in events(tmp_path / "run", "change")] == [8]
    last = newest(tmp_path / "run")
    assert last["step"] == 24 and max(last["watchdog"]["sigmas"].values()) < 10
    assert events(tmp_path / "run", "train")[-1]["D_lr"] == pytest.approx(0.02)


@pytest.mark.slow
def test_two_processes_go_back_together(where, tmp_path):
    command = [*FLAGS, *where, "run", "--on_collapse", "rollback"]
    train.main([*command, "--num_iters", "4"])
    too_high = ["--D_lr", "0.5", "--allow_change", "D_lr", "--rollback_lr", "1e-3", "--num_iters", "8"]
    said, _ = clean_forks.run_ranks(tmp_path, "train", "main", [*command, *too_high])
    assert said.count("rollback 1 to step") >= 1 and newest(tmp_path / "run")["step"] == 8
