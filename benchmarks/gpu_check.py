"""What scripts/gpu_check.sh does: the tests marked gpu, then bench_step.py at published widths, and one report of both.

    python benchmarks/gpu_check.py [--out gpu_check.json] [--minutes 15]
    python benchmarks/gpu_check.py --rehearse      # the same on a CPU with tiny networks: that the check itself works

Each part is a process with a share of the minutes; what is not done by then is told as such, and the report is written
after each part.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils

ROOT = Path(__file__).parent.parent
MINUTES = 15
TEST_SHARE = 0.45  # of them, at most
MODELS = ["SAGAN-64", "BigGAN-128", "BigGAN-deep-128"]
# what is measured -> flags of bench_step.py; the last one compiles, which may use up what time is left
SETTINGS = {
    "float32": ["--no-tf32"],
    "TF32": ["--tf32"],
    "bf16": ["--amp", "bf16"],
    "bf16, compiled": ["--amp", "bf16", "--compile"],
}
TINY = "--ch 2 --batch_size 2 --device cpu".split()


def run_tests(rehearse: bool, seconds: float) -> dict:
    """The outcome of the tests marked gpu; in a rehearsal of those that a CPU does quickly."""
    marked = ["tests/gpu", "-m", "not gpu and not slow"] if rehearse else ["-m", "gpu"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *marked, f"--junitxml={file}"]
        status, text = run(command, seconds)
        outcome = {"status": status, "seconds": text.seconds, **(read_outcome(file) if file.exists() else {})}
    if "passed" not in outcome or outcome.get("failures"):
        outcome["output"] = text.tail
    return outcome


def read_outcome(file: Path) -> dict:
    """How many tests passed and were skipped, and each that failed with its first line, of pytest's XML file."""
    cases = [*ElementTree.parse(file).getroot().iter("testcase")]
    failures, skipped = {}, 0
    for case in cases:
        for problem in (*case.iter("failure"), *case.iter("error")):
            lines = (problem.get("message") or "").splitlines() or ["?"]
            failures[f"{case.get('classname')}.{case.get('name')}"] = lines[0]
        skipped += case.find("skipped") is not None
    return {"passed": len(cases) - len(failures) - skipped, "skipped": skipped, "failures": failures}


def run_bench(setting: str, rehearse: bool, seconds: float) -> dict:
    """What bench_step.py measures, with `error` where it did not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.json"
        models = MODELS[:1] if rehearse else MODELS
        size = [*TINY, "--repeats", "1"] if rehearse else ["--published", "--device", "cuda", "--repeats", "5"]
        command = [sys.executable, "benchmarks/bench_step.py", "--models", *models, "--ours_alone", *size]
        status, text = run([*command, *SETTINGS[setting], "--json", str(file)], seconds)
        report = (utils.load_json(file) if file.exists() else None) or {"records": []}
    report["seconds"] = text.seconds
    if status != 0:
        report["error"] = "not done in the time that was left" if status is None else text.tail.strip()
    return report


class Text(argparse.Namespace):
    """What a process said at last, and its seconds."""


def run(command: list, seconds: float) -> tuple[int | None, Text]:
    """A process's exit status, None where it took more than so many seconds; with all that it has started, it ends."""
    start = time.monotonic()
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        output.seek(0)
        tail = "".join(output.readlines()[-40:])
    return status, Text(tail=tail, seconds=round(time.monotonic() - start, 1))


def table(report: dict) -> str:
    """The report for people to read."""
    tests = report["tests"]
    failures = tests.get("failures", {})
    lines = [f"tests: {tests.get('passed', 0)} passed, {len(failures)} failed, {tests.get('skipped', 0)} skipped"]
    lines += [f"  {name}: {first[:90]}" for name, first in failures.items()]
    if "passed" not in tests:
        lines.append("  " + ("not done in their time" if tests["status"] is None else tests["output"].strip()[-500:]))
    lines += ["", "| model | batch | | computed in | images/s | MiB | share of peak |", "|---|--:|---|---|--:|--:|--:|"]
    for setting, measured in report["steps"].items():
        for record in measured["records"]:
            start = f"| {record['model']} | {record['batch_size']} | {record['task']} | {setting} |"
            ours = record.get("ours", {})
            numbers = [record.get("error", "-")]
            if "share_of_peak" in ours:
                numbers = [f"{ours['images_per_s']:.4g}", ours["memory_mb"], f"{ours['share_of_peak']:.0%}"]
            lines.append(f"{start} {' | '.join(map(str, numbers))} |")
        if "error" in measured:
            lines.append(f"{setting}: {measured['error'].splitlines()[-1] if measured['error'] else 'failed'}")
    return "\n".join(lines)


def check_machine(rehearse: bool) -> None:
    """Raises: utils.UserError, where there is no GPU or no pytest."""
    if not rehearse:
        import torch

        if not torch.cuda.is_available():
            raise utils.UserError("this PyTorch sees no GPU, and all that is checked here needs one")
    if importlib.util.find_spec("pytest") is None:
        raise utils.UserError("pytest is missing: bash scripts/test.sh makes a .venv that has it")


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="FILE", default="gpu_check.json", help="the report")
    parser.add_argument("--minutes", type=utils.positive_int, default=MINUTES, help="how long it may take")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny networks")
    args = parser.parse_args(argv)
    check_machine(args.rehearse)
    end = time.monotonic() + 60 * args.minutes
    report = {"rehearsal": args.rehearse, "tests": {"status": None}, "steps": {}}
    utils.save_json(report, args.out)  # where it cannot be written, this shows now
    print("tests ...")
    report["tests"] = run_tests(args.rehearse, 60 * args.minutes * TEST_SHARE)
    utils.save_json(report, args.out)
    for setting in SETTINGS:
        print(f"{setting} ...")
        left = end - time.monotonic()
        if args.rehearse and "--compile" in SETTINGS[setting]:
            continue  # minutes on a CPU
        report["steps"][setting] = run_bench(setting, args.rehearse, left)
        utils.save_json(report, args.out)
    print(f"\n{table(report)}\n\nwrote {args.out}")
    if report["tests"]["status"] != 0:
        sys.exit(1)


if __name__ == "__main__":
    utils.run_main(main)
