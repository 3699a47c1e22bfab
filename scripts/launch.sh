# What the launch_*.sh and convert_*.sh scripts share, for them to source; it goes to the repository root.
#   launch FLAGS...      train.py in a run folder named after the script
#   variant SCRIPT FLAGS...   another script with flags added, in a run folder named after this one
#   convert_and_evaluate SOURCE DATASET "MODEL FLAGS" FLAGS...   see below
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

name=$(basename "$0" .sh)
name=${name#launch_}

launch() {
    exec "$(find_python)" train.py --experiment_name "$name" "$@"
}

variant() {
    local script=$1
    shift
    exec bash "scripts/$script" --experiment_name "$name" "$@"
}

# Weights of another codebase, at $WEIGHTS: converted, sampled at truncation 0.4, evaluated without truncation. Released
# BigGAN-deep generators (SOURCE huggingface) carry batch-norm statistics per truncation, so they are converted for each.
# With --dry_run nothing is converted: train.py checks the data and counts a model of MODEL FLAGS.
convert_and_evaluate() {
    local source=$1 dataset=$2 model=$3 python missing=0 evaluated=$WEIGHTS.pth sampled=$WEIGHTS.pth
    shift 3
    python=$(find_python)
    if [[ " $* " == *" --dry_run"* ]]; then
        # shellcheck disable=SC2086  # the model's flags are words
        "$python" train.py --dataset "$dataset" $model "$@" || missing=$?
        [[ -e $WEIGHTS ]] || {
            echo "$(basename "$0"): error: no weights at $WEIGHTS: see the script's first lines, or name them with WEIGHTS=..." >&2
            missing=2
        }
        exit "$missing"
    fi
    [[ -e $WEIGHTS ]] || fail "no weights at $WEIGHTS: see the script's first lines, or name them with WEIGHTS=..."
    if [[ $source == huggingface ]]; then
        sampled=$WEIGHTS.truncation0.4.pth
        [[ -e $sampled ]] || "$python" convert_weights.py --from "$source" --truncation 0.4 "$WEIGHTS" "$sampled"
        [[ -e $evaluated ]] || "$python" convert_weights.py --from "$source" --truncation 1.0 "$WEIGHTS" "$evaluated"
    elif [[ ! -e $evaluated ]]; then
        "$python" convert_weights.py --from "$source" "$WEIGHTS" "$evaluated"
    fi
    "$python" sample.py "$sampled" --truncation 0.4
    exec "$python" evaluate.py "$evaluated" --dataset "$dataset" "$@"
}
