"""The run folder: which checkpoints are written, which one a run goes on from."""

import errno
import os
import resource

import pytest
import torch

import utils
from torch_utils import checkpoints
from training import run_folder

NOT_FINITE = {
    "weights": ("G", {"a": torch.tensor([torch.inf])}),
    "average": ("G_ema", {"a": torch.tensor([[1.0, torch.nan]])}),
    "batch-norm statistics": ("G", {"bn.running_var": torch.tensor([-torch.inf])}),
    "optimizer": ("opt_D", {"state": {0: {"exp_avg": torch.tensor([torch.nan])}}, "param_groups": [{"lr": 1.0}]}),
}


def state(step, **others):
    """What a checkpoint holds, as far as the folder is concerned."""
    adam = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": []}
    weights = {"G": {"a": torch.ones(2)}, "D": {"a": torch.ones(2)}, "G_ema": None, "opt_G": adam, "opt_D": adam}
    about = {"model_config": {"resolution": 16, "n_classes": 1}, "class_names": ["a"], "data": {}, "args": {}}
    return {"step": step, "images_seen": 8 * step, "best": None, **about, **weights, **others}


def names(folder):
    return sorted(path.name for path in (folder / "weights").iterdir())


def prepare(folder, step, passed_over=()):
    run_folder.prepare(folder, False, step, passed_over, lambda: None)


@pytest.mark.parametrize("what", NOT_FINITE)
def test_what_is_not_finite_is_not_written_and_the_older_ones_are_kept(what, tmp_path):
    name, part = NOT_FINITE[what]
    for step in (1, 2):
        run_folder.save(state(step), tmp_path, "ckpt", 2)
    with pytest.raises(utils.UserError, match=f"{name}.*not finite at step 3.*{tmp_path}.*--G_lr") as error:
        run_folder.save(state(3, **{name: part}), tmp_path, "ckpt", 2)
    assert "\n" not in str(error.value) and names(tmp_path) == ["ckpt_00000001.pth", "ckpt_00000002.pth"]


@pytest.mark.parametrize("what", NOT_FINITE)
def test_a_newest_checkpoint_that_is_not_finite_is_passed_over(what, tmp_path):
    name, part = NOT_FINITE[what]
    run_folder.save(state(1), tmp_path, "ckpt", 2)
    bad = tmp_path / "weights" / "ckpt_00000002.pth"
    checkpoints.save({"format": 1, **state(2, **{name: part})}, bad)
    checkpoint, (passed_over,) = run_folder.newest(tmp_path)
    line = passed_over.line
    assert checkpoint["step"] == 1 and str(bad) in line and f"{name}." in line and "\n" not in line
    prepare(tmp_path, 1, [passed_over])  # so that what the run will write at step 2 is its newest
    assert names(tmp_path) == ["ckpt_00000001.pth", "ckpt_00000002_not_finite.pth"]
    assert run_folder.newest(tmp_path)[1] == []


def test_a_run_without_a_checkpoint_that_is_finite_is_told_what_to_do(tmp_path):
    for step in (1, 2):
        checkpoints.save(
            {"format": 1, **state(step, G={"a": torch.tensor(torch.nan)})},
            tmp_path / "weights" / f"ckpt_{step:08d}.pth",
        )
    with pytest.raises(
        utils.UserError, match=r"none of its checkpoints.*ckpt_00000001.pth: G.a holds.*--from_scratch"
    ) as error:
        run_folder.newest(tmp_path)
    assert "\n" not in str(error.value) and len(names(tmp_path)) == 2
    run_folder.save(state(1), tmp_path, "best", 2)
    with pytest.raises(
        utils.UserError, match="--from_scratch, .* --experiment_name with --init_from .*best_00000001.pth"
    ):
        run_folder.newest(tmp_path)
    assert run_folder.newest(tmp_path / "nothing") == (None, [])


def about(data=None, **args):
    return {"args": args, "model_config": {"resolution": 16}, "data": data or {"metric_weights": "a" * 64}}


BY_NAME = {"G_lr", "feature_network"}


def test_what_differs_is_refused_with_the_way_to_allow_it():
    checkpoint = {"step": 3, **about(G_lr=1.0, ssm="none", num_iters=1)}

    def check(now, *allowed):
        return run_folder.check_same_run(checkpoint, now, {"num_iters"}, BY_NAME, allowed)

    assert check(about(G_lr=1.0, ssm="none", num_iters=2)) == {}
    assert check(about(G_lr=2.0, ssm="none"), "G_lr") == {"G_lr": [1.0, 2.0]}
    with pytest.raises(
        utils.UserError, match="--G_lr was 1.0 and is now 2.0. Add --allow_change G_lr to go on all the"
    ):
        check(about(G_lr=2.0, ssm="none"))
    with pytest.raises(
        utils.UserError, match="G_lr.*ssm was none and is now gain. Add --allow_change G_lr to go on with"
    ):
        check(about(G_lr=2.0, ssm="gain"))
    with pytest.raises(utils.UserError, match="step 3: --ssm was none and is now gain. Use another --experiment_name"):
        check(about(G_lr=2.0, ssm="gain"), "G_lr", "ssm")  # ssm is no flag that may be named
    other = about(data={"metric_weights": "b" * 64}, G_lr=1.0, ssm="none")
    with pytest.raises(utils.UserError, match="metric_weights was aaaaaaaaaaaa... and.*--allow_change feature_network"):
        check(other)
    assert check(other, "feature_network") == {"metric_weights": ["a" * 64, "b" * 64]}
    assert check(about(data={"metric_weights": None}, G_lr=1.0, ssm="none")) == {}  # not known, or without evaluations


REFERENCE = {"seed": 0, "k": 5, "splits": 10, "content": "a" * 64, "moments": None}


@pytest.mark.parametrize("other", [{"seed": 1}, {"k": 3}, {"splits": 5}, {"content": "b" * 64}])
def test_other_reference_statistics_are_told_and_refused(other):
    def entries(**others):
        return about({"metric_weights": "a" * 64, "reference": REFERENCE | others}, G_lr=1.0)

    ((name, value),) = other.items()
    checkpoint = {"step": 3, **entries()}
    by_name = {*BY_NAME, "reference_file"}
    assert run_folder.check_same_run(checkpoint, entries(), (), by_name) == {}
    was = f"the reference statistics' {name} was {run_folder.shown(REFERENCE[name])} and is now"
    with pytest.raises(utils.UserError, match=f"{was}.*Add --allow_change reference_file to go on"):
        run_folder.check_same_run(checkpoint, entries(**other), (), by_name)
    allowed = run_folder.check_same_run(checkpoint, entries(**other), (), by_name, {"reference_file"})
    assert allowed == {f"reference_{name}": [REFERENCE[name], value]}
    for unknown in ({"metric_weights": None, "reference": None}, {"metric_weights": "a" * 64}):  # older ones
        assert run_folder.check_same_run({**checkpoint, "data": unknown}, entries(**other), (), by_name) == {}
        assert run_folder.check_same_run(checkpoint, {**entries(), "data": unknown}, (), by_name) == {}


def test_the_best_of_another_metric_counts_for_nothing():
    best = {"step": 1, "metric": "IS", "value": 9.0}
    assert run_folder.better("FD", 2, {"fd": 30.0, "is_mean": 1.0}, best) == {"step": 2, "metric": "FD", "value": 30.0}
    assert run_folder.better("IS", 2, {"fd": 30.0, "is_mean": 1.0}, best) == best


@pytest.mark.parametrize("name", ["weights", "samples", "tensorboard"])
def test_each_folder_of_a_run_is_tried(name, tmp_path):
    (tmp_path / "run").mkdir()
    run_folder.check_writable(tmp_path / "run")
    run_folder.check_writable(tmp_path / "none" / "run")
    assert not list((tmp_path / "run").iterdir()) and not (tmp_path / "none").exists()
    (tmp_path / "run" / name).write_text("a file in the way")
    with pytest.raises(utils.UserError, match=f"cannot write .*run/{name}: Not a directory"):
        run_folder.check_writable(tmp_path / "run")


def test_a_folder_in_the_logs_place_is_told_and_a_full_disk_too(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(utils.UserError, match="log.jsonl: it is a folder"):
        run_folder.check_writable(tmp_path)
    run_folder.check_room(tmp_path / "none", 0, (2, 2), (10, 1))
    with pytest.raises(utils.UserError, match="none: the disk has .* the checkpoints need .*--num_save_copies"):
        run_folder.check_room(tmp_path / "none", 0, (2, 2), (2**60, 1))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_taken(damage, tmp_path):
    for step in (1, 2):
        run_folder.save(state(step), tmp_path, "ckpt", 2)
    bad = tmp_path / "weights" / "ckpt_00000002.pth"
    content = bad.read_bytes()
    flipped = content[:700] + bytes([content[700] ^ 4]) + content[701:]
    bad.write_bytes({"flipped": flipped, "cut": content[:-9], "empty": b""}[damage])
    checkpoint, (passed_over,) = run_folder.newest(tmp_path)
    assert checkpoint["step"] == 1
    assert "ckpt_00000002.pth is passed over: it is damaged" in passed_over.line and "\n" not in passed_over.line
    prepare(tmp_path, 1, [passed_over])
    assert names(tmp_path) == ["ckpt_00000001.pth", "ckpt_00000002_damaged.pth"]
    (tmp_path / "weights" / "ckpt_00000001.pth").write_bytes(b"")
    with pytest.raises(utils.UserError, match="none of .* ckpt_00000001.pth: it is damaged.* --from_scratch") as error:
        run_folder.newest(tmp_path)
    assert "--G_lr" not in str(error.value)


def test_a_newest_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    for step in (1, 2):
        run_folder.save(state(step), tmp_path, "ckpt", 2)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "_check_bytes", refuse)
    with pytest.raises(utils.UserError, match="cannot read .*ckpt_00000002.pth: Permission denied$"):
        run_folder.newest(tmp_path)


def test_a_full_disk_leaves_older_checkpoints_whole(tmp_path):
    """A limit to the size of files stands for it: writing fails in the same places."""
    for step in (1, 2):
        run_folder.save(state(step), tmp_path, "ckpt", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 900, len(next(iter(before.values()))) - 30):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(utils.CannotWrite, match="cannot write .*ckpt_00000003.pth") as error:
                run_folder.save(state(3), tmp_path, "ckpt", 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value)
        assert {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()} == before


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    run_folder.save(state(1), tmp_path, "ckpt", 2)
    written = ["config.json", "log.jsonl", "curves.png", "samples/step_00000001.png", "weights/ckpt_00000002.pth"]
    for name in written:
        with pytest.raises(KeyboardInterrupt), utils.atomic_path(tmp_path / name) as temporary:
            os.link(temporary, temporary.with_stem(temporary.stem + "x"))  # the name that SIGKILL would leave
            raise KeyboardInterrupt
    kept = tmp_path / "samples" / ".class_sheet.png.abc.png"  # of sample.py, which may be at work
    kept.touch()
    assert len([path for path in tmp_path.rglob(".*") if path.is_file()]) == len(written) + 1
    prepare(tmp_path, 1)
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {kept, tmp_path / "weights" / "ckpt_00000001.pth"}
