"""What Weights & Biases is told of a run."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

import utils
from training import logs
from training.options import ReportOptions


class Board:
    """Stands for the package wandb: what it was told."""

    Error, Image = RuntimeError, staticmethod(lambda picture: ("image", picture.size))

    def __init__(self, fails=False):
        self.begun, self.told, self.finished, self.fails = [], [], 0, fails

    def init(self, **about):
        if self.fails:
            raise RuntimeError("no API key\nconfigured")
        self.begun.append(about)
        return SimpleNamespace(log=self.log, finish=self.finish, define_metric=lambda name, step_metric: None)

    def log(self, entries):
        if self.fails:
            raise RuntimeError("the connection is lost\n")
        self.told.append(entries)

    def finish(self):
        self.finished += 1


def test_wandb_is_told_what_tensorboard_is(tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    for step in (None, 4):
        log = logs.RunLog(tmp_path, step, wandb_config={"args": {"seed": 3}})
        log.write("eval", 5, {"fd": 1.5, "protocol": {"network": "x"}})
        log.image("samples", 5, Image.new("RGB", (3, 2)))
        log.close()
    assert board.told[:2] == [{"step": 5, "eval/fd": 1.5}, {"step": 5, "samples": ("image", (3, 2))}]
    assert board.finished == 2
    first, again = board.begun
    assert first["id"] == again["id"] and first["name"] == tmp_path.name and first["config"] == {"args": {"seed": 3}}
    logs.RunLog(tmp_path, wandb_config={}).close()
    assert board.begun[2]["id"] != first["id"]  # begun anew
    logs.RunLog(tmp_path).close()
    assert len(board.begun) == 3  # nobody is told who was not asked for


def test_wandb_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(utils.UserError, match="--wandb: .*pip install wandb"):
        ReportOptions(wandb=True)
    monkeypatch.setitem(sys.modules, "wandb", Board(fails=True))
    assert ReportOptions(wandb=True).wandb
    with pytest.raises(utils.UserError, match="--wandb: no API key.*WANDB_MODE=offline") as caught:
        logs.RunLog(tmp_path, wandb_config={})
    assert "\n" not in str(caught.value)


def test_wandb_that_fails_while_training_is_done_without(tmp_path, monkeypatch, capsys):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = logs.RunLog(tmp_path, wandb_config={})
    log.write("train", 1, {"G_loss": 1.0})
    board.fails = True
    for step in (2, 3):
        log.write("train", step, {"G_loss": 1.0})
    log.close()
    assert len(board.told) == 1 and len(logs.read_log(log.path)) == 3
    assert capsys.readouterr().err.count("warning: Weights & Biases: the connection is lost") == 1


@pytest.mark.slow
def test_wandb_offline_writes_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = logs.RunLog(tmp_path, wandb_config={"args": {"seed": 3}})
    log.write("train", 1, {"G_loss": 1.5})
    log.image("samples", 1, Image.new("RGB", (3, 2)))
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
