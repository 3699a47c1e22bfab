"""The log of a run: what a resumed one drops."""

import json
import re
import resource
import time

import pytest
import torch

import layers
from reports import curves, events
from training import logs


def write(folder, steps, resume=None):
    log = logs.RunLog(folder, resume)
    for step in steps:
        log.write("train", step, {"D_loss_real": 1 / step, "G_loss": -step})
        log.write("eval", step, {"fd": 10 / step, "recall": 0.5, "protocol": {"network": "x"}})
    log.close()


def numbers(folder):
    return [{k: v for k, v in event.items() if k != "time"} for event in logs.read_log(folder / "log.jsonl")]


def test_resumed_log_equals_the_undisturbed_one(tmp_path):
    write(tmp_path / "whole", range(1, 7))
    write(tmp_path / "resumed", range(1, 6))
    with open(tmp_path / "resumed" / "log.jsonl", "a") as file:
        file.write('{"event": "train", "ste')  # killed while writing
    write(tmp_path / "resumed", range(4, 7), resume=3)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "resumed")
    assert len(numbers(tmp_path / "whole")) == 12


def test_a_folder_whose_name_is_no_text_has_a_log_too(tmp_path):
    folder = tmp_path / "caf\udce9"
    write(folder, [1, 2])
    assert len(numbers(folder)) == 4
    (events,) = (folder / "tensorboard").iterdir()
    assert events.stat().st_size > 100


def test_a_new_run_starts_a_new_log(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert [event["step"] for event in numbers(tmp_path)] == [1, 1]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])["protocol"] == {"network": "x"}


def test_changes_of_flags_are_written_once(tmp_path):
    write(tmp_path, range(1, 5))
    changes = {"G_lr": [4e-4, 2e-4], "metric_weights": ["a" * 64, "b" * 64]}
    for _ in range(2):  # resumed twice from step 4: killed before it had saved another checkpoint
        log = logs.RunLog(tmp_path, 4)
        log.write("change", 4, {"flags": changes})
        log.close()
    assert [event["event"] for event in numbers(tmp_path)].count("change") == 1 and len(numbers(tmp_path)) == 9
    logs.RunLog(tmp_path, 6).close()
    assert [event["event"] for event in numbers(tmp_path)].count("change") == 1  # the run has got further


def test_singular_values_are_those_that_spectral_norm_divides_by():
    torch.manual_seed(0)
    network = torch.nn.Sequential(layers.Linear(6, 5, sn=True), layers.Conv2d(3, 4), layers.Embedding(7, 6, sn=True))
    for layer in (network[0], network[2]):
        for _ in range(300):
            layer.power_iteration()
    values = layers.singular_values(D=network)
    assert list(values) == ["D/0", "D/2"]
    for name, layer in (("D/0", network[0]), ("D/2", network[2])):
        assert values[name] == pytest.approx(torch.linalg.svdvals(layer.weight)[0].item(), abs=1e-3)
    assert layers.singular_values(D=network[1]) == {}


BAD_LINES = {
    "null": b"null", "a number": b"5", "no step": b'{"event": "train"}', "no event": b'{"step": 2}', "blank": b"",
    "a step that is text": b'{"event": "train", "step": "2"}',
    "not UTF-8": b'{"event": "train", "step": 2, "a": "\xff"}',
    "deep": b"[" * 100_000, "cut": b'{"event": "train", "st', "a list": b"[1]", "zeros": b"\0" * 50,
    "changes of nothing": b'{"event": "change", "step": 2, "flags": null}',
    "a change of one value": b'{"event": "change", "step": 2, "flags": {"G_lr": 3}}',
    "text for a metric": b'{"event": "eval", "step": 2, "fd": "low"}',
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_costs_itself_alone(line, tmp_path, capsys):
    write(tmp_path, range(1, 5))
    path = tmp_path / "log.jsonl"
    whole, lines = numbers(tmp_path), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    assert numbers(tmp_path) == whole
    curves.plot_curves(logs.read_log(path), tmp_path / "curves.png")
    logs.RunLog(tmp_path, 4).close()
    assert numbers(tmp_path) == whole and path.read_bytes() == b"".join(lines)
    assert "log.jsonl: line 3 is no event, and is left out" in capsys.readouterr().out


def test_numbers_that_no_picture_can_show_are_left_out_of_curves(tmp_path):
    log = logs.RunLog(tmp_path)
    for step, loss in enumerate((1.0, 10**400, None, "low", True, 2.0)):
        log.write("train", step, {"D_loss_real": loss} if step != 1 else {"other": 1})
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "train", "step": 1, "D_loss_real": 1' + 400 * "0" + "}\n")
    assert events.curve(logs.read_log(tmp_path / "log.jsonl"), "D_loss_real") == [(0, 1.0), (5, 2.0)]


def test_a_full_disk_costs_no_line_of_the_log_and_no_traceback(tmp_path, capsys):
    log = logs.RunLog(tmp_path)
    log.write("train", 1, {"D_loss_real": 1.0})
    log.board.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.jsonl").stat().st_size + 20, hard))
    try:
        for step in range(2, 40):
            log.write("train", step, {"D_loss_real": float(step)})
            if log.board:
                log.board.file_writer.event_writer._async_writer._byte_queue.join()
        assert [event["step"] for event in numbers(tmp_path)] == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("train", 40, {"D_loss_real": 40.0})
    log.close()
    assert [event["step"] for event in numbers(tmp_path)] == list(range(1, 41))
    err = capsys.readouterr().err
    assert err.count("warning: cannot write") == 2 and "Traceback" not in err


def test_a_clock_set_back_does_not_hide_steps_from_tensorboard(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [1, 2])
    board = tmp_path / "tensorboard"
    (first,) = board.iterdir()
    ahead = int(time.time()) + 3600
    first.rename(board / re.sub(r"\d{10}", str(ahead), first.name, count=1))
    write(tmp_path, [3, 4], resume=2)
    assert all(int(logs.EVENT_FILE.match(path.name)[1]) < ahead for path in board.iterdir())
    accumulator = EventAccumulator(str(board))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/G_loss")] == [1, 2, 3, 4]
