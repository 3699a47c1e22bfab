"""Run plumbing: seeding, atomic files, pixel ranges, argument errors, grids."""

import importlib
import os
import signal
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
    too_long = "OSError(utils.errno.ENAMETOOLONG, 'too long', 'the remedy')"
    for error, status in (("utils.UserError('the remedy')", 2), (too_long, 2), ("KeyboardInterrupt", 130)):
        root = Path(__file__).parent.parent
        done = subprocess.run([sys.executable, "-c", code.format(error)], cwd=root, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr
        assert ("the remedy" in done.stderr) == (status == 2)


def test_any_name_is_printed_in_any_locale(tmp_path):
    """Under a locale of ASCII only, that does not forgive; what is printed appears at once, in a log file too."""
    (tmp_path / "names.json").write_bytes('\ufeff["\u732b"]'.encode())
    code = """
import sys, utils
def main():
    print("IS 9.0 \\xb1 0.1", *utils.load_json(sys.argv[1]), "caf\\udce9")
    print("e\\xe9", file=sys.stderr)
    import os; assert b"IS" in open("/proc/self/fd/1", "rb").read()
    raise utils.UserError("class a\\nb \\x1b[1m: the remedy")
utils.run_main(main)"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    with open(tmp_path / "out", "w") as out:
        command = [sys.executable, "-c", code, str(tmp_path / "names.json")]
        done = subprocess.run(command, cwd=utils.ROOT, env=environment, stdout=out, stderr=subprocess.PIPE, text=True)
    assert (tmp_path / "out").read_text() == "IS 9.0 \\xb1 0.1 \\u732b caf\\udce9\n"
    assert done.stderr == "e\\xe9\n-c: error: class a\\nb \\x1b[1m: the remedy\n" and done.returncode == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("great white", "great white"),
        ("\u732b \xb1 \u00e9", "\u732b \xb1 \u00e9"),
        ("caf\udce9", r"caf\udce9"),
        ("\udce7\udc8c\udcab", "\u732b"),
        ("a\r\n\tb\0\x1b\x7f\u202e\u2028", r"a\r\n\tb\x00\x1b\x7f\u202e\u2028"),
        ("\ud83d \udce9", r"\ud83d \udce9"),
        ("", ""),
    ],
)
def test_any_name_is_one_line_of_letters(name, shown):
    assert utils.printable(name) == shown.encode().decode() and utils.printable(shown) == shown


def test_numbers_of_things():
    assert [utils.counted(n, "class") for n in (0, 1, 1000)] == ["0 classes", "1 class", "1,000 classes"]
    assert utils.counted(1, "image") == "1 image" and utils.counted(2, "image") == "2 images"


@pytest.mark.parametrize(
    "name", ["\u732b" * 83 + ".json", "a" * 250 + ".json", "a." + "b" * 253, os.fsdecode(b"\xe9" * 255)]
)
def test_a_file_name_as_long_as_is_allowed_can_be_written(tmp_path, name):
    utils.save_json([1], tmp_path / name)
    assert utils.load_json(tmp_path / name) == [1] and os.listdir(tmp_path) == [name]


def test_image_grid_places_images_row_by_row():
    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    images[4] = 200
    grid = np.asarray(image_grid(images, columns=3, scale=2, pad=1))
    assert grid.shape == (2 * 9 + 1, 3 * 9 + 1, 3)
    assert (grid[10:18, 10:18] == 200).all() and (grid[1:9, 1:9] == 0).all()


def test_text_around_a_grid_leaves_its_pixels_as_they_are():
    images = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    plain = np.asarray(image_grid(images, 3))
    for name in ("7", "a name of several words", "x" * 255, "\u732b" * 85):
        heads, left, right = [name, "b", "c"], [name, "b"], ["c", name]
        grid = np.asarray(image_grid(images, 3, heads, left=left, right=right))
        top, sides = grid.shape[0] - plain.shape[0], grid.shape[1] - plain.shape[1]
        before = next(x for x in range(sides + 1) if np.array_equal(grid[top:, x : x + plain.shape[1]], plain))
        assert 16 <= top <= 55 and 8 < before < sides <= 2 * 159 and (grid[:top, :before] == 255).all()
        for part in (grid[:top, before : before + 42], grid[top:, :before], grid[top:, before + plain.shape[1] :]):
            assert (part < 100).any() and (part[:, -1] == 255).all()
    wide = np.asarray(image_grid(images, 3, ["sparsest of all", "", "c"]))
    assert wide.shape[0] == plain.shape[0] + 16 and (wide[:16, 42:84] < 100).any()  # over the column without a label


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


def test_counts_and_durations_read_as_people_say_them():
    told = [utils.counted(n, noun) for n, noun in ((1, "class"), (2, "class"), (0, "image"), (1797, "image"))]
    assert told == ["1 class", "2 classes", "0 images", "1,797 images"]
    seconds = (0.031, 59.94, 200, 60 * 60 * 5, 86400 * 3.14159, 200 * 86400)
    expected = ["0.031 seconds", "59.9 seconds", "3.33 minutes", "5 hours", "3.14 days", "200 days"]
    assert [utils.duration(number) for number in seconds] == expected
    assert utils.listed(list("abc"), 2) == "a, b and 1 more" and utils.listed(["a"]) == "a"


def test_what_cannot_be_written_is_told_and_nothing_is_left(tmp_path):
    utils.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("a file in the way")
    with pytest.raises(utils.UserError, match=f"cannot write {tmp_path}/a/b: Not a directory"):
        utils.check_writable(tmp_path / "a" / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(utils.UserError, match="cannot write .*: Permission denied"):
        utils.check_writable(tmp_path / "runs")


SCRIPTS = "calculate_inception_moments evaluate instance_selection sample train".split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_printed(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0 and "--device" in capsys.readouterr().out


def test_help_says_defaults_as_they_are(capsys):
    for name, words in {
        "evaluate": ["those of the reference statistics, mostly 10", "mostly 5", "all images of files"],
        "train": ["images per evaluation", "(default: 50000)", "mostly 10"],
        "calculate_inception_moments": ["(default: 10)", "(default: 5)", "(default: all)"],
    }.items():
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(word in text for word in words), name


def test_an_error_about_a_name_with_line_breaks_is_one_line(capsys):
    def main():
        raise utils.UserError("the folder a\nb is empty")

    with pytest.raises(SystemExit) as error:
        utils.run_main(main)
    assert error.value.code == 2 and capsys.readouterr().err.endswith("error: the folder a\\nb is empty\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_temporary(tmp_path, number):
    """A folder of images and a file, half-written, as of sample.py; and SIGTERM's and SIGHUP's status."""
    code = f"""
import sys, time
import torch, utils
from sampling.files import png_writer

def main():
    folder = {str(tmp_path)!r}
    with utils.atomic_path(folder + "/a.npz"), png_writer(folder + "/images", torch.tensor([0]), ["a"]):
        print("begun", flush=True)
        time.sleep(60)

utils.run_main(main)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=utils.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n" and len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("redirections", ["| head -1", ">&- 2>&-", "<&- >/dev/full 2>&1"])
def test_output_that_has_nowhere_to_go_ends_nothing(tmp_path, redirections):
    """Nor is a file that is written taken for a closed stream."""
    code = f"""
import sys, time
import utils
from tqdm import tqdm

def main():
    with utils.lasting_output():
        for i in tqdm(range(50), mininterval=0):
            print("line", i)
            tqdm.write("another")
            time.sleep(0.01)
        with open({str(tmp_path / "file")!r}, "w") as file:
            print("warning", file=sys.stderr)
            file.write("whole")
    open({str(tmp_path / "status")!r}, "w").write("0")

utils.run_main(main)
"""
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(utils.ROOT)}
    line = f"{sys.executable} {tmp_path / 'script.py'} {redirections}"
    subprocess.run(["bash", "-c", line], env=environment, stderr=subprocess.DEVNULL, check="head" in line, timeout=60)
    assert (tmp_path / "file").read_text() == "whole" and (tmp_path / "status").read_text() == "0"
