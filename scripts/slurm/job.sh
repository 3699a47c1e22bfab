# What the jobs of this folder share, for them to source; it goes to the repository root.
#   run_job [scripts/launch_NAME.sh] FLAGS...   train.py, or the launch script, on every node of the job
# shellcheck shell=bash
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source scripts/venv.sh

run_job() {
    local step status requeue="" signalled=yes command
    TRAIN_PYTHON=$(find_python)
    PYTHON=scripts/slurm/torchrun.sh # what launch scripts take for Python
    MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER=${MASTER%%$'\n'*}                  # the first node: where the ranks meet
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240        # seconds to save in; older versions of torchrun always give 30
    export TRAIN_PYTHON PYTHON MASTER TORCH_ELASTIC_SHUTDOWN_TIMEOUT

    command=("$PYTHON" train.py)
    if [[ ${1:-} == *.sh ]]; then
        command=(bash "$1")
        shift
    fi
    srun --kill-on-bad-exit=1 "${command[@]}" "$@" &
    step=$!
    # Slurm sends USR1 some minutes before the end (--signal), and TERM where the job is cancelled, or pre-empted: then it
    # is Slurm that decides whether the job comes again. Either way the ranks finish their step and save.
    trap 'signalled=yes requeue=yes; kill -TERM "$step" 2>/dev/null || true' USR1
    trap 'signalled=yes; kill -TERM "$step" 2>/dev/null || true' TERM
    while [[ -n $signalled ]]; do # a signal ends the wait, not the step
        signalled="" status=0
        wait "$step" || status=$?
    done
    if [[ $status -ne 0 && -n $requeue ]]; then
        echo "the time is up: asking for the job again, which goes on from its checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
