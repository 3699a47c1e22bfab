"""Tables of experiments: reading them, which runs they are, what is done again; and the page made of their results."""

import json
import math
import shlex
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import train
import utils
from tools import experiments, study_numbers, workers, write_study
from torch_utils.distributed import Ranks
from training.plan import make_config
from training.run_lock import locked

TABLE = """
[common]   # for all
--feature_network classifier --G_ch_mult 4-4-2-1 --D_ch 4 --G_attn 0 --D_attn 0 --batch_size 8
--num_iters 4
[data]
tiny | | --num_inception_images 7
[rows]
plain      | --ssm none --G_ch 5 |
plain_wide | --ssm none --G_ch 5 | plain_ssm
plain_ssm  | --ssm voxel --G_ch 5 |
[compare]
plain_ssm | plain | what SSM does
"""


@pytest.fixture
def data_root(tmp_path):
    with h5py.File(tmp_path / "tiny.hdf5", "w") as file:
        file["imgs"], file["labels"] = np.zeros((2, 3, 32, 32), dtype=np.uint8), np.array([0, 3])
    return tmp_path


def planned(data_root, seeds=2):
    table = experiments.read_table(TABLE)
    return table, list(
        experiments.runs(table, "study", data_root / "runs", list(table.rows), ["tiny"], seeds, str(data_root))
    )


def test_a_table_is_rows_by_data_by_seeds(data_root):
    table, runs = planned(data_root)
    assert [run.name for run in runs][:4] == [
        "tiny/plain_seed0", "tiny/plain_wide_seed0", "tiny/plain_ssm_seed0", "tiny/plain_seed1",
    ]  # fmt: skip
    assert len(runs) == 6 and table.compare == [("plain_ssm", "plain", "what SSM does")]
    options = runs[4].options()
    assert options.run.seed == 1 and options.metrics.num_inception_images == 7 and options.length.num_iters == 4
    plain, wide, ssm = (run.configuration() for run in runs[:3])
    assert abs(wide.multiply_adds / ssm.multiply_adds - 1) < 0.01 < ssm.multiply_adds / plain.multiply_adds - 1
    assert runs[1].flags[:-6] == runs[4].flags[:-6] and "--G_ch" in runs[1].flags


def test_what_is_complete_is_not_run_again(data_root, monkeypatch, capsys):
    """A result of other flags is none; what fails leaves the others to be run, and the status says so."""
    table, runs = planned(data_root, seeds=1)
    carried_out = []

    def carry_out(run, workers):
        carried_out.append(run.row)
        if run.row == "plain_wide":
            raise utils.UserError("it has collapsed")
        about = {"command": shlex.join(run.command), "row": run.row, "data": run.data, "folder": str(run.folder)}
        utils.save_json(about | {"final": {"fd": 2.0}}, run.folder / "result.json")
        return about | {"final": {"fd": 2.0}}

    monkeypatch.setattr(experiments, "carry_out", carry_out)
    monkeypatch.setattr(experiments, "prepare", lambda *args: None)
    monkeypatch.setattr(experiments.sys, "stdin", type("Text", (), {"read": staticmethod(lambda: TABLE)}))
    command = [
        "study",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--runs_root",
        str(data_root / "runs"),
        "--data_root",
        str(data_root),
    ]
    utils.save_json({"command": "train.py of another table", "row": "plain"}, runs[0].folder / "result.json")
    utils.save_json(["no result"], runs[1].folder / "result.json")
    for expected in (["plain", "plain_wide", "plain_ssm"], ["plain_wide"]):
        with pytest.raises(SystemExit, match="^1$"):
            experiments.main(command)
        assert carried_out == expected
        carried_out.clear()
    results = utils.load_json(data_root / "runs" / "study" / "results.json")
    assert results["common"] == shlex.join(table.common) and results["data"] == {"tiny": "--num_inception_images 7"}
    assert [result["row"] for result in results["results"]] == ["plain", "plain_ssm"] and results["planned"] == 3
    with locked(data_root / "runs" / "study", Ranks(0, 1, torch.device("cpu"))):  # by a call that is at it
        experiments.main([*command, "--list"])
    assert "2 of 3 are complete" in capsys.readouterr().out and not carried_out
    # Results of other rows and seeds are kept, also where the folder is spelled otherwise; what is damaged is none.
    command[command.index(str(data_root / "runs"))] = f"{data_root}/elsewhere/../runs"
    experiments.main([*command, "--seeds", "2", "--rows", "plain_ssm", "plain_ssm"])
    (runs[0].folder / "result.json").write_text('{"command":')
    experiments.main([*command, "--rows", "plain_ssm"])
    results = utils.load_json(data_root / "runs" / "study" / "results.json")
    assert [(it["row"], it["folder"][-1]) for it in results["results"]] == [("plain_ssm", "0"), ("plain_ssm", "1")]
    assert results["planned"] == 6 and carried_out == ["plain_ssm"]
    monkeypatch.setattr(experiments.sys.stdin, "read", lambda: TABLE.replace("voxel --G_ch 5", "voxel --G_ch 6"))
    capsys.readouterr()
    experiments.main([*command, "--list"])
    assert "0 of 3 are complete" in capsys.readouterr().out
    monkeypatch.setattr(experiments.sys.stdin, "read", lambda: TABLE)
    (data_root / "tiny.hdf5").rename(data_root / "moved.hdf5")
    experiments.main([*command, "--list"])
    assert "tiny: none is complete, its data are not made yet\n0 of 0" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--rows plane: the table has plain, plain_wide"):
        experiments.main([*command, "--rows", "plane"])


def test_a_result_is_that_of_its_run_wherever_data_and_runs_lie(data_root):
    run = planned(data_root)[1][0]
    command = shlex.join(run.command)
    assert run.result() is None
    for changed, is_ours in (
        ("", True),
        (command, True),
        (command.replace(str(data_root), "elsewhere"), True),
        (command.replace("--seed 0", "--seed 1"), False),
        (f"{command} --flip", False),
    ):
        about = {"command": changed} if changed else {"command": command, "more": 1}
        utils.save_json(about, run.folder / "result.json")
        assert (run.result() == about | {"folder": str(run.folder)}) == is_ours


def test_a_complete_run_of_other_flags_is_moved_aside(data_root):
    run, calls = planned(data_root)[1][0], []

    class Interrupted(workers.Workers):
        def call(self, *command, **options):
            calls.append(command)
            raise workers.Stopped

    for written, added in ((False, []), (True, ["--from_scratch"])):
        if written:
            utils.save_json({"command": "train.py of the table before"}, run.folder / "result.json")
        with pytest.raises(workers.Stopped):
            experiments.carry_out(run, Interrupted(1))
        assert list(calls.pop()) == [*run.command, *added] and "--from_scratch" not in run.command


def test_workers_call_scripts_at_once_and_in_order(tmp_path):
    """What a script says stands in its file, the answer that is asked for is returned; a failure has its last line."""
    crew, script, begun = workers.Workers(2), tmp_path / "script.py", []
    script.write_text(
        "import sys\nprint(sys.argv[1])\nprint('said\\rlast', file=sys.stderr)\nsys.exit(sys.argv[1] == 'x')"
    )

    def one(name):
        begun.append(name)
        if name == "x":
            with pytest.raises(utils.UserError, match=r"script.py has ended with status 1: last \(all .*x.txt\)"):
                crew.call(str(script), name, said=tmp_path / "x.txt")
        else:
            assert crew.call(str(script), name, said=tmp_path / f"{name}.txt", answer=name == "b").strip() in ("", "b")

    crew.each(one, "abxc")
    assert begun == [*"abxc"] and (tmp_path / "c.txt").read_text().splitlines()[1:] in (["c", "said", "last"], ["c"])
    with pytest.raises(ZeroDivisionError):
        crew.each(lambda item: 1 / 0, range(1))
    with pytest.raises(workers.Stopped):  # after an error nothing is begun
        crew.call(str(script), "a")


def test_a_signal_ends_all_that_runs(tmp_path):
    """Each script hears of it once, and is waited for."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    with open(sys.argv[1] + '.ended', 'a') as file:\n"
        "        file.write('once')\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path(sys.argv[1] + '.saved').touch()\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    program = (
        "import sys, utils\nfrom pathlib import Path\nfrom tools.workers import Workers\nfolder = Path(sys.argv[1])\n"
        "crew = Workers(2)\n"
        "def one(name):\n    crew.call(str(folder / 'script.py'), str(folder / name), said=folder / f'{name}.txt')\n"
        "utils.run_main(lambda: crew.each(one, 'abc'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=workers.ROOT)
    end = time.monotonic() + 30
    while not (tmp_path / "a").exists() or not (tmp_path / "b").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=30) == 128 + 15
    assert {path.name for path in tmp_path.glob("*.saved")} == {"a.saved", "b.saved"} and not (tmp_path / "c").exists()
    assert all(path.read_text() == "once" for path in tmp_path.glob("*.ended"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("plain | --ssm none |", "line 11 of the table, .*: 'plain' is there twice"),
        ("a/b | --ssm none |", "no name"),
        ("other | --ssm none | nothing", "the table has no row 'nothing'"),
        ("a | b | c | d", "no line of a section"),
        ("[rest]\nx", "no line of a section"),
        ("[data\nx", r"line 13 of the table, '\[data': no line of a section"),
        ("a | --ssm 'none |", "line 11 of the table, .*: No closing quotation"),
        ("a | --ssm none | plain_wide", "row 'a' shall cost as much as one that itself is widened"),
        ("[compare]\nplain | nobody", "the table has no row 'nobody'"),
    ],
)
def test_a_wrong_line_is_named(line, message):
    text = TABLE.replace("[compare]", f"{line}\n[compare]") if "[" not in line else TABLE + line
    with pytest.raises(utils.UserError, match=message):
        experiments.read_table(text)


def test_a_table_without_rows_is_none():
    with pytest.raises(utils.UserError, match="has no rows"):
        experiments.read_table("\n")


@pytest.mark.parametrize(
    "script, data, resolution, num_rows, steps",
    [("study", "digits", 32, 15, 1200), ("study", "shapes64", 64, 15, 1200), ("recipes", "digits_tenth", 32, 18, 600)],
)
def test_every_row_of_a_script_is_a_model(script, data, resolution, num_rows, steps):
    text = (workers.ROOT / "scripts" / f"{script}.sh").read_text()
    table = experiments.read_table(text.partition("table='")[2].partition("\n'")[0])
    assert len(table.rows) == num_rows and all(row in table.rows for pair in table.compare for row in pair[:2])
    for flags, _ in table.rows.values():
        options = train.parse_args(["--dataset", data, *table.common, *table.data[data][1], *flags])[0]
        config = make_config(options, resolution, 10)
        assert config.notes() == [] and options.run_length(20000) == steps


# ---------------------------------------------------------------------------------------------------------------------
# The page


def made_run(row, seed, fd, multiply_adds, folder):
    """A run of 100 steps whose FD falls linearly from 10 at step 50."""
    evaluations = [{"step": 50, "fd": 10.0, "coverage": 0.1}, {"step": 100, "fd": fd, "coverage": 0.5}]
    return {
        "row": row, "data": "tiny", "seed": seed, "command": f"train.py --row {row} --seed {seed}",
        "evaluate": "evaluate.py x --json", "folder": str(folder), "step": 100, "multiply_adds": multiply_adds,
        "parameters": 1000, "seconds": 0.25, "G_ch": 5, "G_widths": [5], "evaluations": evaluations,
        "final": {"fd": fd, "coverage": 0.5 + 0.1 * (seed % 2)},
    }  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """Results of which `ssm` is better than `plain` by 2 ± 0.1 at equal steps, at twice the cost."""
    results = []
    for seed, noise in enumerate((-0.1, 0.0, 0.1)):
        results += [
            made_run("plain", seed, 6.0, 10**9, tmp_path),
            made_run("ssm", seed, 4 + noise, 2 * 10**9, tmp_path),
        ]
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "samples" / "step_00000100.png")
    rows = {name: {"flags": f"--ssm {name}", "equal": ""} for name in ("plain", "ssm")}
    about = {
        "rows": rows,
        "compare": [["ssm", "plain", "does it help"]],
        "threads": 2,
        "planned": 8,
        "results": results,
    }
    about |= {"commit": "0123456789abcdef", "torch": "2.6", "device": "cpu", "world_size": 1}
    utils.save_json(about, tmp_path / "results.json")
    return tmp_path


def test_intervals_are_students(study):
    mean, low, high = study_numbers.interval([-2.1, -2.0, -1.9])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert (mean, low, high) == pytest.approx((-2, -2 - half, -2 + half))
    assert study_numbers.interval([1.0]) == (1, -math.inf, math.inf)
    runs = study_numbers.read_results(study / "results.json").runs["tiny"]
    assert study_numbers.paired(runs["ssm"], runs["plain"], "fd", False) == pytest.approx([-2.1, -2.0, -1.9])
    # At the plain run's whole cost the other is at step 50, where its FD is 10.
    assert study_numbers.paired(runs["ssm"], runs["plain"], "fd", True) == pytest.approx([4, 4, 4])
    assert study_numbers.at_budget(runs["plain"][0], "fd", 75e9) == pytest.approx(math.sqrt(10 * 6))
    assert study_numbers.at_budget(runs["plain"][0], "coverage", 75e9) == pytest.approx(0.3)
    assert study_numbers.total(runs["ssm"][0]) == 2e11
    assert math.isnan(study_numbers.at_budget(runs["plain"][0], "fd", 49e9))


@pytest.mark.parametrize(
    "low, high, less, said",
    [
        (-3, -1, True, "better"),
        (-3, -1, False, "worse"),
        (1, 3, True, "worse"),
        (1, 3, False, "better"),
        (-1, 3, True, "no difference can be told; one of more than 3 either way is unlikely"),
        (-0.0, 0.0, True, "the same in all pairs"),
        (-math.inf, math.inf, True, "one seed: nothing can be said"),
    ],
)
def test_a_verdict_follows_from_the_interval(low, high, less, said):
    assert study_numbers.verdict(low, high, less) == said


def test_the_page_says_what_the_numbers_say(study):
    page = study / "docs" / "study.md"
    write_study.main([str(study), str(page)])
    text = page.read_text()
    assert "6 of 8 runs" in text and "Not complete yet" in text and "commit 0123456789ab" in text
    assert "| ssm | plain | equal steps | 3 | -2.000 ± 0.248 **better** | +0.000 ± 0.000 |" in text
    assert "| ssm | plain | equal compute | 3 | +4.000 ± 0.000 **worse** |" in text
    assert "* **tiny**, at equal steps, by FD:\n  * better: `ssm` beside `plain` (-2.000)\n" in text
    assert "`ssm` beside `plain` at equal steps: FD: better; coverage: the same in all pairs." in text
    assert "| ssm | 100 | 4.000 ± 0.100 |" in text and "| ssm | 100 | 4.000 ± 0.100 | 0.533 ± 0.058 |" in text
    assert "**does it help**" in text and "python train.py --row ssm --seed 0" in text
    for name in ("curves.png", "sheets.jpg"):
        assert f"study_tiny_{name}" in text and (page.parent / f"study_tiny_{name}").exists()
    assert "study_tiny_ssm.png" not in text
    with pytest.raises(utils.UserError, match="holds no results"):
        (study / "results.json").write_text(json.dumps({"results": []}))
        write_study.main([str(study), str(page)])


def test_what_several_families_are_asked_alike_is_told_over_all(tmp_path):
    """Ratios of distances: a geometric mean over the seeds of each setting, then over settings."""
    fds = {"a": 4.0, "a_ssm": 2.0, "b": 4.0, "b_ssm": 1.0, "c": 2.0, "c_ssm": 4.0}
    results = [made_run(row, seed, fd * (1 + seed), 10**9, tmp_path) for row, fd in fds.items() for seed in range(2)]
    for run in results:
        run["final"]["accuracy"] = 0.6 if run["row"] == "a" else 0.4
    about = {"rows": {row: {"flags": "", "equal": ""} for row in fds}, "planned": 12, "results": results}
    about |= {"compare": [[f"{name}_ssm", name, ""] for name in "abc"], "threads": 1}
    utils.save_json(about | {"commit": "0", "torch": "2.6", "device": "cpu"}, tmp_path / "results.json")
    (ratio,) = study_numbers.ratios(study_numbers.read_results(tmp_path / "results.json"))
    assert (ratio.one, ratio.other, ratio.where) == ("ssm", "", "equal steps and compute")
    assert ratio.settings == pytest.approx({"tiny/a": 0.5, "tiny/b": 0.25, "tiny/c": 2.0})
    half = 4.302652729911275 * np.std(np.log([0.5, 0.25, 2.0]), ddof=1) / math.sqrt(3)
    expected = np.log(0.25) / 3 + np.array([0, -half, half])
    assert np.log([ratio.mean, ratio.low, ratio.high]) == pytest.approx(expected)
    page = tmp_path / "study.md"
    write_study.write_page(tmp_path, page)
    text = page.read_text()
    told = f"0.63 | 0.05 to {math.exp(expected[2]):.2f} | 2 of 3 | no difference can be told"
    assert f"| `*_ssm` | `*` | equal steps and compute | {told} |" in text
    assert "tiny/a 0.50, tiny/b 0.25 (early), tiny/c 2.00 (early) |" in text
    # Where no row of a family draws the classes, that is said.
    assert "No row of `b` has learnt the classes in these steps: the highest mean accuracy is 0.400." in text
    assert "No row of `a`" not in text


def test_rows_that_cost_the_same_are_compared_once_and_drawn_beside_their_rival(tmp_path):
    rows = {"plain": 6.0, "r1": 4.5, "r1_lazy": 3.0}
    results = [made_run(row, seed, fd + seed / 10, 10**9, tmp_path) for row, fd in rows.items() for seed in range(3)]
    about = {"rows": {row: {"flags": "--x" if row != "plain" else "", "equal": ""} for row in rows}, "planned": 9}
    about |= {"compare": [["r1", "plain", "it"], ["r1_lazy", "r1", "less often"]], "threads": 1, "results": results}
    about |= {"common": "--batch_size 8", "data": {"tiny": "--data_fraction 0.1", "large": ""}}
    results[0]["commit"] = "fedcba9876543210"
    results[1] |= {"torch": "2.9", "threads": 3}
    utils.save_json(about | {"commit": "0", "torch": "2.6", "device": "cpu"}, tmp_path / "results.json")
    page = tmp_path / "recipes.md"
    write_study.write_page(tmp_path, page)
    text = page.read_text()
    assert "| r1 | plain | equal steps and compute | 3 | -1.500 ± 0.000 **better** |" in text and "`` |" not in text
    assert "### At equal compute" not in text and "| equal compute |" not in text and "These are 4 intervals" in text
    assert "8 runs made with commit 0, fedcba987654 and PyTorch 2.6 on cpu with 1 thread." in text
    assert "1 run made with commit 0 and PyTorch 2.9 on cpu with 3 threads." in text
    assert "several were made at a time; those of runs by PyTorch 2.6 on cpu with 1 thread." in text
    assert "data sets `large` has not been run" in text
    assert "All rows have `--batch_size 8`." in text and "Rows here have `--data_fraction 0.1`, too." in text
    assert "The least mean FD is that of `r1_lazy`: 3.100, 0.51 of that of `plain`." in text
    study = study_numbers.read_results(tmp_path / "results.json")
    assert study.rivals("tiny", ["r1", "r1_lazy"]) == ["plain"] and study.rivals("tiny", ["plain"]) == []
