"""The job scripts for Slurm, with programs in the place of srun and scontrol that say what they are called with."""

import os
import shutil
import signal
import subprocess
import time

import pytest

import utils

FOLDER = utils.ROOT / "scripts" / "slurm"
JOBS = ["train.sbatch", "train_one_node.sbatch"]
# As srun, on this machine: passes TERM on by ending like a run that has saved; with BUSY it waits for that.
SRUN = """#!/bin/bash
echo "srun $*"
[[ $1 == --kill-on-bad-exit=1 ]] && shift
trap 'echo "saved"; exit ${SAVED:-143}' TERM
if [[ -n ${BUSY:-} ]]; then
    touch "$BUSY"
    while :; do sleep 0.05; done
fi
"$@"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*"; fi
"""


@pytest.fixture
def job(tmp_path):
    """A function that starts a job script with flags and more environment: its process."""
    python = '#!/bin/sh\necho "python $*"\nexit $STATUS\n'
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("python", python),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(utils.ROOT), "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]"}
    slurm |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "PYTHON": str(tmp_path / "python"), "STATUS": "0"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(script, *flags, **more):
        command = ["bash", shutil.copy(FOLDER / script, tmp_path), *flags]  # as Slurm does, which runs a copy
        return subprocess.Popen(
            command, cwd="/", env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.mark.parametrize("script", JOBS)
@pytest.mark.parametrize("status", [0, 2])
def test_every_node_starts_a_process_for_each_gpu(job, script, status):
    running = job(script, "--dataset", "made", STATUS=str(status))
    out, _ = running.communicate(timeout=50)
    assert running.returncode == status and "requeue" not in out
    ranks = "-m torch.distributed.run --nnodes 2 --nproc_per_node 8 --rdzv_id 12345 --rdzv_backend c10d"
    assert f"python {ranks} --rdzv_endpoint node7:22345 train.py --dataset made\n" in out


def test_a_launch_script_runs_on_every_node(job):
    out, _ = job("train.sbatch", "scripts/launch_SNGAN_cifar10.sh", "--seed", "3").communicate(timeout=50)
    assert "node7:22345 train.py --experiment_name SNGAN_cifar10 " in out and out.rstrip().endswith("--seed 3")


def ended_by(running, number, busy):
    """What a job prints that gets a signal while it trains."""
    while not busy.exists():
        time.sleep(0.02)
    time.sleep(0.1)
    running.send_signal(number)
    return running.communicate(timeout=50)[0]


@pytest.mark.parametrize(
    "number, saved, again",
    [(signal.SIGUSR1, 143, True), (signal.SIGUSR1, 0, False), (signal.SIGTERM, 143, False)],
    ids=["the time is up", "complete in time", "cancelled"],
)
def test_a_job_saves_and_asks_for_itself_again_where_its_time_is_up(job, tmp_path, number, saved, again):
    busy = tmp_path / "busy"
    running = job("train.sbatch", BUSY=str(busy), SAVED=str(saved))
    out = ended_by(running, number, busy)
    assert "saved\n" in out and ("scontrol requeue 12345" in out) == again and running.returncode == saved


@pytest.mark.parametrize("script", JOBS)
def test_slurm_is_asked_for_the_signal_and_for_the_same_log(script):
    text = (FOLDER / script).read_text()
    for option in ("signal=B:USR1@300", "requeue", "open-mode=append", "ntasks-per-node=1"):
        assert f"\n#SBATCH --{option}\n" in text


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_bash_reads_the_scripts(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_scripts_pass_shellcheck():
    subprocess.run(["shellcheck", "--exclude=SC1091", *sorted(FOLDER.iterdir())], check=True)
