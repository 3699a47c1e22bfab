"""Run plumbing: seeding, atomic files, pixel ranges, argument errors, grids."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from torch_utils import checkpoints, distributed
from torch_utils.images import image_grid, to_float, to_uint8


def test_random_streams_are_functions_of_seed_stream_and_counters():
    draws = [
        utils.rng(*key).standard_normal(4).tolist()
        for key in [
            (0, "z", 5, 1),
            (0, "z", 5, 1),
            (1, "z", 5, 1),
            (0, "y", 5, 1),
            (0, "z", 6, 1),
            (0, "z", 5, 2),
            (0, "z", 5),
        ]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 6
    assert utils.rng(0, "z", 5).random() != utils.rng(0, "z", 5, 0).random()
    assert len(set(utils.STREAMS.values())) == len(utils.STREAMS)
    counters = {
        name: (1, 2) if name in ("z", "y") else (3,) if ... in utils.STREAMS[name] else () for name in utils.STREAMS
    }
    assert len({utils.rng(0, name, *numbers).random() for name, numbers in counters.items()}) == len(utils.STREAMS)
    with pytest.raises(ValueError, match="takes no counters"):
        utils.rng(0, "kid", 1)


def test_streams_keep_their_draws():
    """Numbers of before the streams had names: results rest on them."""
    assert utils.rng(3, "z", 5, 1).integers(10**6) == np.random.default_rng([3, 1, 2, 5, 1]).integers(10**6)
    assert utils.rng(3, "sample_y", 5).integers(10**6) == np.random.default_rng([3, 6, 2, 5, 1]).integers(10**6)
    assert utils.rng(3, "kid").integers(10**6) == np.random.default_rng([3, 7, 1, 2]).integers(10**6)
    assert utils.rng(3, "classifier_epoch", 4).integers(10**6) == np.random.default_rng([3, 8, 2, 2, 4]).integers(10**6)


def test_pixels_round_and_round_trip():
    images = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(images)), images)
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.5 / 127.5 - 1 + 1e-4, 1.0, 2.0])).tolist() == [
        0,
        0,
        1,
        255,
        255,
    ]


def test_atomic_write_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "file.json"
    utils.save_json({"a": 1}, path)
    with pytest.raises(ZeroDivisionError), utils.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert utils.load_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_unwritable_and_unreadable_files_are_one_line(tmp_path):
    (tmp_path / "file").write_text("{")
    for action in (
        lambda: utils.save_json({}, tmp_path / "file" / "below_a_file.json"),
        lambda: utils.load_json(tmp_path / "missing.json"),
        lambda: utils.load_json(tmp_path / "file"),
        lambda: checkpoints.load(tmp_path),
        lambda: checkpoints.load(tmp_path / "missing.pth"),
        lambda: checkpoints.load(tmp_path / "file"),
    ):
        with pytest.raises(utils.UserError) as error:
            action()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_mistyped_flag_is_one_line_with_a_guess(capsys):
    parser = utils.ArgumentParser("test")
    parser.add_argument("--batch_size", type=utils.positive_int, default=1)
    for flags, words in ((["--batchsize", "3"], "did you mean --batch_size?"), (["--batch_size", "0"], "positive")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(flags)
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1


def test_run_main_turns_errors_into_exit_statuses():
    code = "import utils\ndef main(): raise {}\nutils.run_main(main)"
    for error, status in (("utils.UserError('the remedy')", 2), ("KeyboardInterrupt", 130)):
        root = Path(__file__).parent.parent
        done = subprocess.run([sys.executable, "-c", code.format(error)], cwd=root, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr
        assert ("the remedy" in done.stderr) == (status == 2)


def test_image_grid_places_images_row_by_row():
    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    images[4] = 200
    grid = np.asarray(image_grid(images, columns=3, scale=2, pad=1))
    assert grid.shape == (2 * 9 + 1, 3 * 9 + 1, 3)
    assert (grid[10:18, 10:18] == 200).all() and (grid[1:9, 1:9] == 0).all()
    assert image_grid(images, columns=3, labels=["a", "b", "c"]).height > image_grid(images, 3).height


def test_a_reader_that_goes_away_is_no_traceback():
    code = "import os, utils\ndef main():\n for _ in range(9999): os.write(1, b'x' * 99)\nutils.run_main(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 141 and process.stderr.read() == b""


def test_a_warning_of_the_project_is_one_line():
    assert utils._one_line_warning("too few", UserWarning, utils.__file__, 1) == "warning: too few\n"
    assert "elsewhere.py:1" in utils._one_line_warning("too few", UserWarning, "/lib/elsewhere.py", 1)


def test_only_all_of_torchruns_variables_make_a_rank(monkeypatch):
    """Clusters set RANK themselves: a process that took itself for rank 1 would say nothing, not even why it ends."""
    for name in utils.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    assert utils.is_main_process() and not utils.is_rank()
    with distributed.process_group("cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
    for name in utils.TORCHRUN_VARIABLES - {"RANK"}:
        monkeypatch.setenv(name, "1")
    assert utils.is_rank() and not utils.is_main_process()


def test_an_error_is_told_where_a_cluster_sets_RANK(tmp_path):
    command = [sys.executable, "make_hdf5.py", "--dataset", "folder", "--images", str(tmp_path), "--resolution", "8"]
    environment = {k: v for k, v in os.environ.items() if k not in utils.TORCHRUN_VARIABLES} | {"RANK": "1"}
    done = subprocess.run(command, cwd=utils.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "holds neither class folders nor images" in done.stderr


def test_an_error_about_a_name_with_line_breaks_is_one_line(capsys):
    def main():
        raise utils.UserError("the folder a\nb is empty")

    with pytest.raises(SystemExit) as error:
        utils.run_main(main)
    assert error.value.code == 2 and capsys.readouterr().err.endswith("error: the folder a\\nb is empty\n")


def test_counts_in_words():
    words = [utils.plural(number, noun) for number, noun in ((0, "image"), (1, "class"), (2, "class"), (1797, "image"))]
    assert words == ["0 images", "1 class", "2 classes", "1,797 images"]
