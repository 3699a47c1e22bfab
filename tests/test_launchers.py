"""The launch scripts of the published rows: each one's dry run on made data, and what a dry run says."""

import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import train
import utils
from metrics.reference import Reference, ReferenceProtocol, reference_path
from tools import count_models
from training import dry_run

# File of each data set of the scripts -> its resolution and number of classes.
MADE = {
    "ILSVRC64": (64, 1000),
    "ILSVRC128": (128, 1000),
    "ILSVRC256": (256, 1000),
    "I512": (512, 1000),
    "C10": (32, 10),
}
ENV = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
NO_METRICS = ["--dry_run", "--test_every", "0"]


def write_images(path, resolution, num_classes):
    """Two black images of the first and the last class, in a file of the reference family's layout."""
    with h5py.File(path, "w") as file:
        file["imgs"] = np.zeros((2, 3, resolution, resolution), dtype=np.uint8)
        file["labels"] = np.array([0, num_classes - 1])


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, (resolution, num_classes) in MADE.items():
        write_images(root / f"{name}.hdf5", resolution, num_classes)
    return root


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file like torchvision's Inception-v3, and a folder with data and the reference statistics made with it."""
    from torchvision.models import inception_v3

    root = tmp_path_factory.mktemp("with_metrics")
    weights = root / "inception.pth"
    torch.save(inception_v3(weights=None, init_weights=False, transform_input=False).state_dict(), weights)
    write_images(root / "ILSVRC64.hdf5", *MADE["ILSVRC64"])
    about = {"network": "inception", "weights_hash": utils.sha256(weights), "resize": "bilinear_corners"}
    about |= {"dataset": "ILSVRC64", "num_images": 2, "seed": 0, "k": 5, "splits": 10, "assumed": False}
    moments = torch.zeros(2048, dtype=torch.float64), torch.eye(2048, dtype=torch.float64)
    reference = Reference(*moments, torch.zeros(6, 2048), 1.0, 0.0, 1.0, ReferenceProtocol(**about))
    reference.save(reference_path(root, "ILSVRC64", "inception", "bilinear_corners"))
    return weights, root


def run_script(script, *flags, **environment):
    command = ["bash", str(count_models.ROOT / "scripts" / script), *map(str, flags)]
    return subprocess.run(command, env={**ENV, **environment}, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
@pytest.mark.parametrize("script", count_models.SCRIPTS, ids=lambda script: script.stem)
def test_dry_run(script, data_root, inception, capsys):
    selects = script.stem.endswith(("_rr40", "_rr50"))
    flags = count_models.script_flags(
        script, *NO_METRICS, "--data_root", data_root, "--inception_weights", inception[0]
    )
    train.main(flags)
    out = capsys.readouterr().out
    assert (
        "nothing is missing" in out
        and "memory estimate" in out
        and "no attention there" not in re.sub(r".*D_attn 64: .*\n", "", out)
    )
    options, _ = train.parse_args(flags)
    resolution, num_classes = re.search(r"^(\d+)x\d+ images, ([\d,]+) classes", out, re.M).groups()
    assert f"{resolution}x{resolution}" in out and num_classes == ("10" if options.data.dataset == "C10" else "1,000")
    if script.name.startswith("launch_"):
        assert f"so many processes: 1: {count_models.sizes(script).memory:.1f}, " in out
        assert options.run.experiment_name == script.stem.removeprefix("launch_")
        assert ("instance selection keeps about" in out) == selects
    header = script.read_text().split("source ")[0]
    assert re.search(r"^# Needs ", header, re.M) and (
        re.search(r"^# Source .*\n(.*\n)*# Published ", header, re.M) or "ours, unpublished" in header
    )


@pytest.mark.parametrize("script", count_models.STUDIOGAN, ids=lambda script: script.stem)
def test_a_row_of_studiogans_benchmark(script, monkeypatch):
    plain, _ = train.parse_args(count_models.script_flags(script, "--G_lr", "1e-5"))
    config, name = dry_run.assumed_config(plain), f"studiogan_{script.stem}"
    assert plain.run_name == name and config.ssm == "none" and plain.optimizers.G_lr == 1e-5
    assert config.resolution == (32 if "cifar10" in name else 128) and not config.notes()
    images = 2048 if "2048" in name else 256 if "256" in name else 128 if "ReACGAN" in name else 64
    assert plain.images_per_D_step == images == plain.batches.G_images * plain.steps.num_G_accumulations
    monkeypatch.setenv("SSM", "voxel")
    modulated, _ = train.parse_args(count_models.script_flags(script))
    assert modulated.run_name == f"{name}_ssm-voxel" and dry_run.assumed_config(modulated).ssm == "voxel"
    header = script.read_text().split("source ")[0]
    numbers = r"^# Published  IS [\d.]+, FID [\d.]+, precision 0\.\d\d, recall 0\.\d\d \(TensorFlow Inception"
    assert re.search(numbers, header, re.M) and re.search(r"^# Source .*configs/", header, re.M)
    assert re.search(r"^# Needs ", header, re.M)
    page = (count_models.ROOT / "docs" / "models.md").read_text()
    row = re.search(rf"^\| `{script.name}` \|.*$", page, re.M)[0]
    published = re.findall(r"\d+\.\d+", re.search(r"^# Published.*$", header, re.M)[0])
    assert re.findall(r"\d+\.\d+", row)[:4] == published


def test_flags_after_a_script_replace_its_own(data_root):
    script = count_models.ROOT / "scripts" / "launch_BigGAN_deep_ssm.sh"
    options, _ = train.parse_args(count_models.script_flags(script, "--experiment_name", "mine", "--G_ch", "32"))
    model = options.model
    assert options.run.experiment_name == "mine" and model["G_ch"] == 32 and model["D_ch"] == 128
    assert model["ssm"] == "voxel" and model["model"] == "BigGANdeep" and model["dim_z"] == 128


@pytest.mark.slow
def test_a_script_as_users_run_it(inception):
    weights, root = inception
    flags = ["--dry_run", "--data_root", root, "--inception_weights", weights]
    done = run_script("launch_SAGAN_res64_ch32_bs128_dstep_1_rr100.sh", *flags)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "G: 23,267,716 parameters" in done.stdout and "D: 5,401,186 parameters" in done.stdout


def test_everything_that_is_missing_is_told_at_once(tmp_path, capsys):
    script = count_models.ROOT / "scripts" / "launch_SAGAN_res64_ch32_bs128_dstep_1_rr100.sh"
    flags = ["--dry_run", "--data_root", tmp_path / "nowhere", "--inception_weights", tmp_path / "nowhere.pth"]
    with pytest.raises(SystemExit) as stop:
        train.main(count_models.script_flags(script, *flags))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert stop.value.code == 2 and len(lines) == 3 and all("error: " in line for line in lines)
    assert "make_hdf5.py" in lines[0] and "nowhere.pth" in lines[1] and "calculate_inception_moments.py" in lines[2]
    assert "size assumed from the name I64_hdf5" in out and "G: 23,267,716 parameters" in out


@pytest.fixture
def stub(tmp_path):
    """Instead of Python: prints what it is called with."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_a_conversion_tells_of_missing_weights(flags, tmp_path, stub):
    done = run_script("convert_BigGAN_deep_res128.sh", *flags, WEIGHTS=str(tmp_path / "none"), PYTHON=stub)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"no weights at {tmp_path}/none" in done.stderr
    called = done.stdout.split()
    assert called[:3] == ["train.py", "--dataset", "I128_hdf5"] and called[-1] == "--dry_run" if flags else not called


def test_a_conversion_calls_its_three_scripts(tmp_path, stub):
    weights = tmp_path / "released"
    weights.mkdir()
    done = run_script("convert_BigGAN_deep_res256.sh", "--json", WEIGHTS=str(weights), PYTHON=stub)
    assert done.stdout.splitlines() == [
        f"convert_weights.py --from huggingface --truncation 0.4 {weights} {weights}.truncation0.4.pth",
        f"convert_weights.py --from huggingface --truncation 1.0 {weights} {weights}.pth",
        f"sample.py {weights}.truncation0.4.pth --truncation 0.4",
        f"evaluate.py {weights}.pth --dataset I256_hdf5 --json",
    ]


def test_dry_run_time_extrapolates(data_root, capsys):
    small = "--dataset C10 --G_ch 4 --D_ch 4 --G_attn 0 --D_attn 0 --batch_size 6 --device cpu --num_iters 1000".split()
    train.main([*small, "--dry_run_time", "--test_every", "0", "--data_root", str(data_root)])
    out = capsys.readouterr().out
    assert re.search(r"timed on cpu, \d+ threads?: 6 images a pass \(the whole batch\)", out)
    assert re.search(r"extrapolated from that: \S+ s a step, \S+ (seconds|minutes) for 1,000 steps", out)


def test_dry_run_writes_nothing(data_root, tmp_path):
    flags = ["--dataset", "C10", *NO_METRICS, "--data_root", str(data_root), "--runs_root", str(tmp_path / "runs")]
    train.main(flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_tables_of_sizes_are_current():
    for path, cells_of in count_models.PAGES.items():
        assert path.read_text() == count_models.filled(path.read_text(), cells_of), "python tools/count_models.py"


def test_every_script_is_on_the_page_of_models():
    page = (count_models.ROOT / "docs" / "models.md").read_text()
    assert all(f"\n| `{script.name}` |" in page for script in count_models.SCRIPTS)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_scripts_pass_shellcheck():
    scripts = [*count_models.SCRIPTS, *count_models.STUDIOGAN, count_models.ROOT / "scripts" / "launch.sh"]
    subprocess.run(["shellcheck", "--exclude=SC1091", *map(str, scripts)], check=True)
