#!/usr/bin/env bash
# From nothing to digits that your own GAN drew, in a few minutes on two CPU cores or faster on a GPU:
#
#   bash scripts/quickstart.sh                            trains into runs/quickstart, scores, draws sample sheets
#   bash scripts/quickstart.sh --num_iters 10000          any flag of train.py may follow; the last one given counts
#   bash scripts/quickstart.sh --experiment_name no_ssm --ssm none
#
# Run again, it goes on from what is there: .venv, data/digits.hdf5, the reference statistics, the run's newest checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

for argument in "$@"; do
    case $argument in
    -h | --help)
        sed -n '2,/^set/{s/^# \{0,1\}//p;}' scripts/quickstart.sh
        echo "All flags: $(find_python) train.py --help"
        exit
        ;;
    esac
done
run=$(value_of --runs_root runs "$@")/$(value_of --experiment_name quickstart "$@")

flags=(
    --experiment_name quickstart
    --dataset digits                # 1,797 handwritten digits, 32x32, in the repository
    --feature_network classifier    # metrics on a small network fitted to the digits themselves: no download
    --ssm voxel                     # spatial self-modulation, what this project is about; none switches it off
    --G_ch 16 --G_ch_mult 4-4-2-1   # widths in units of G_ch, from 4x4 to 32x32: narrow towards the image
    --D_ch 16 --D_ch_mult 1-2-4-4   # the mirror image
    --D_num_down 3                  # D's first three blocks halve the resolution: 32 to 4
    --G_param none                  # no spectral norm in G, which slows so short a run down; D keeps its own
    --G_attn 0 --D_attn 0           # no attention: nothing to gain at this size
    --dim_z 64 --batch_size 32
    --num_D_steps 1 --G_lr 4e-4 --D_lr 8e-4
    --ema --ema_decay 0.995         # a short memory for a short run
    --num_iters 1000
    --test_every 250 --sample_every 250 --log_every 20 --num_inception_images 1797 --which_best FD
)

ensure_venv requirements.txt
python=.venv/bin/python
"$python" make_hdf5.py --dataset digits --out data/digits.hdf5
"$python" calculate_inception_moments.py --dataset digits --feature_network classifier
"$python" train.py "${flags[@]}" "$@"
"$python" sample.py "$run"

cat <<EOT

Look at   $run/samples/     sample sheets: one class per column, only z differs down a column
          $run/curves.png   losses and metrics over the run
          $run/log.jsonl    the same as numbers, one JSON object per line

Next      bash scripts/quickstart.sh --num_iters 10000                         the same run, longer
          bash scripts/quickstart.sh --experiment_name no_ssm --ssm none       its rival without SSM
          $python explain.py $run      what the second stream adds, as pictures
          $python evaluate.py $run
          $python sample.py --help
          $python -m tensorboard.main --logdir runs

All of the run on one page, in any browser:   $run/report.html
EOT
