"""The check of a GPU where there is none: what it says then, its report, and parts that fail or take too long."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import utils
from benchmarks import gpu_check

ROOT = Path(__file__).parents[2]
OURS = {"images_per_s": 12.5, "memory_mb": 700, "share_of_peak": 0.25}


@pytest.fixture
def outcomes(tmp_path):
    """A file as pytest writes it, of four tests."""
    file = tmp_path / "tests.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
        "@pytest.mark.skip\ndef test_c(): pass\n@pytest.fixture\ndef broken(): raise ValueError('no')\n"
        "def test_d(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file), f"--junitxml={tmp_path / 'x.xml'}"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    return gpu_check.read_outcome(tmp_path / "x.xml")


def test_outcomes_of_tests_are_read(outcomes):
    assert (outcomes["passed"], outcomes["skipped"]) == (1, 1)
    assert [name.split(".")[-1] for name in outcomes["failures"]] == ["test_b", "test_d"]
    assert any("1 == 2" in line for line in outcomes["failures"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_status_2(tmp_path):
    with pytest.raises(utils.UserError, match="sees no GPU"):
        gpu_check.main(["--out", str(tmp_path / "report.json")])
    assert not (tmp_path / "report.json").exists()
    done = subprocess.run(["bash", "scripts/gpu_check.sh"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "GPU" in done.stderr


def test_a_part_that_takes_too_long_ends_with_what_it_has_started():
    status, text = gpu_check.run(["bash", "-c", "echo begun; sleep 60 & wait"], 1)
    assert status is None and text.tail == "begun\n" and text.seconds < 20
    status, text = gpu_check.run([sys.executable, "-c", "print('no'); raise SystemExit(3)"], 60)
    assert (status, text.tail) == (3, "no\n")


def test_the_report_holds_all_parts(tmp_path, monkeypatch, capsys):
    done = {"model": "SAGAN-64", "batch_size": 128, "task": "train", "ours": OURS}
    full = {"model": "BigGAN-128", "batch_size": 64, "task": "train", "ours": {"seconds": []}, "error": "out of memory"}

    def measured(command, seconds):
        if "pytest" in command:
            return 0, gpu_check.Text(tail="", seconds=1.0)
        utils.save_json({"machine": {}, "records": [done, full]}, command[command.index("--json") + 1])
        assert "--published" in command and "--ours_alone" in command and 0 < seconds <= 60 * gpu_check.MINUTES
        return (None if "--compile" in command else 0), gpu_check.Text(tail="", seconds=1.0)

    monkeypatch.setattr(gpu_check, "run", measured)
    monkeypatch.setattr(gpu_check, "check_machine", lambda rehearse: None)
    gpu_check.main(["--out", str(tmp_path / "report.json")])
    report, out = utils.load_json(tmp_path / "report.json"), capsys.readouterr().out
    assert list(report["steps"]) == ["float32", "TF32", "bf16", "bf16, compiled"]
    assert "| SAGAN-64 | 128 | train | TF32 | 12.5 | 700 | 25% |" in out
    assert "| BigGAN-128 | 64 | train | bf16 | out of memory |" in out
    assert "bf16, compiled: not done in the time that was left" in out


@pytest.mark.slow
def test_a_rehearsal(tmp_path, monkeypatch):
    """The whole check on a CPU, but for its tests, which are here already."""
    monkeypatch.setattr(gpu_check, "run_tests", lambda *args: {"status": 0, "passed": 1})
    monkeypatch.setattr(gpu_check, "SETTINGS", {"bf16": gpu_check.SETTINGS["bf16"]})
    gpu_check.main(["--rehearse", "--out", str(tmp_path / "report.json")])
    steps = utils.load_json(tmp_path / "report.json")["steps"]
    assert [record["ours"]["share_of_peak"] > 0 for record in steps["bf16"]["records"]] == [True, True]
