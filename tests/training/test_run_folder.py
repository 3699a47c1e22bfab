"""The run folder: which checkpoints are written, which one a run goes on from."""

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
    return {"step": step, "G": {"a": torch.ones(2)}, "G_ema": None, "opt_D": adam, "best": None, **others}


def names(folder):
    return sorted(path.name for path in (folder / "weights").iterdir())


def prepare(folder, step):
    run_folder.prepare(folder, from_scratch=False, step=step, copies=(2, 2), num_bytes=(1, 1))


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
    checkpoint, (line,) = run_folder.newest(tmp_path)
    assert checkpoint["step"] == 1 and str(bad) in line and f"{name}." in line and "\n" not in line
    prepare(tmp_path, 1)  # so that what the run will write at step 2 is its newest
    assert names(tmp_path) == ["ckpt_00000001.pth", "ckpt_00000002_not_finite.pth"]
    assert run_folder.newest(tmp_path)[1] == []


def test_a_run_without_a_checkpoint_that_is_finite_is_told_what_to_do(tmp_path):
    for step in (1, 2):
        checkpoints.save(
            {"format": 1, **state(step, G={"a": torch.tensor(torch.nan)})},
            tmp_path / "weights" / f"ckpt_{step:08d}.pth",
        )
    with pytest.raises(
        utils.UserError, match=r"none of its checkpoints.*G.a of ckpt_00000001.pth.*--from_scratch"
    ) as error:
        run_folder.newest(tmp_path)
    assert "\n" not in str(error.value) and len(names(tmp_path)) == 2
    assert run_folder.newest(tmp_path / "nothing") == (None, [])
