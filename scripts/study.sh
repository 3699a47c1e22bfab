#!/usr/bin/env bash
# What does spatial self-modulation do? A study on two embedded data sets; three hours on two CPU cores:
#
#   bash scripts/study.sh                           all runs, as many at a time as there are cores; then docs/study.md
#   bash scripts/study.sh --list                    which runs are complete; --time: how long all would take here
#   bash scripts/study.sh --datasets shapes64       shapes at 64x64, which take 4 times as long
#   bash scripts/study.sh --rows sagan sagan_voxel --datasets digits --seeds 1
#
# Run again, it goes on from what is there. What the table's sections mean: tools/experiments.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/experiments.sh

table='
[common]   # the widths of the quickstart, a little narrower; after 700 steps no row tried on shapes has learnt classes
--feature_network classifier --G_ch 12 --G_ch_mult 4-4-2-1 --D_ch 12 --D_ch_mult 1-2-4-4 --D_num_down 3
--G_param none --G_attn 16 --D_attn 16 --dim_z 64 --batch_size 32 --num_D_steps 1 --G_lr 4e-4 --D_lr 8e-4
--ema --ema_decay 0.995 --ema_ramp 0.05 --num_iters 1200 --test_every 300 --save_every 600 --sample_every 1200
--log_every 50 --which_best FD --num_save_copies 1 --num_best_copies 1

[data]     # name | flags of make_hdf5.py | flags of train.py
digits     | --dataset digits                                      | --num_inception_images 1797
shapes     | --dataset shapes --resolution 32 --num_images 20000   | --num_inception_images 2000
shapes64   | --dataset shapes --resolution 64 --num_images 20000   | --num_inception_images 2000 --G_ch_mult 4-4-4-2-1 --D_ch_mult 1-2-4-4-4 --D_num_down 4

[rows]     # name | flags | a row to cost as much as
sagan              | --ssm none                                    |
sagan_wide         | --ssm none                                    | sagan_voxel
sagan_voxel        | --ssm voxel                                   |
sagan_voxel_half   | --ssm voxel --ssm_width 0.5                   |
sagan_voxel_4th    | --ssm voxel --ssm_width 0.25                  |
sagan_voxel_0      | --ssm voxel --ssm_width 0                     |
sagan_gain         | --ssm gain                                    |
sagan_global_voxel | --ssm global_voxel                            |
sagan_voxel_zero   | --ssm voxel --ssm_zero_init                   |
biggan             | --G_shared --hier --shared_dim 64             |
biggan_wide        | --G_shared --hier --shared_dim 64             | biggan_voxel
biggan_voxel       | --G_shared --hier --shared_dim 64 --ssm voxel |
deep               | --model BigGANdeep --G_shared --hier --shared_dim 64 --G_ch 16 --D_ch 16 --G_depth 1 --D_depth 1 |
deep_wide          | --model BigGANdeep --G_shared --hier --shared_dim 64 --G_ch 16 --D_ch 16 --G_depth 1 --D_depth 1 | deep_voxel
deep_voxel         | --model BigGANdeep --G_shared --hier --shared_dim 64 --G_ch 16 --D_ch 16 --G_depth 1 --D_depth 1 --ssm voxel |

[compare]  # a row | another | what their difference tells
sagan_voxel        | sagan         | SSM beside the same generator without it, which costs less
sagan_voxel        | sagan_wide    | SSM beside a generator without it that costs the same
sagan_voxel_half   | sagan         | a stream of half the width
sagan_voxel_4th    | sagan         | a stream of a quarter of the width
sagan_voxel        | sagan_voxel_0 | space: maps for every position beside one gain and bias per channel
sagan_voxel_0      | sagan         | gains and biases of a stream without space
sagan_gain         | sagan_voxel   | gains alone, without normalisation and biases
sagan_global_voxel | sagan_voxel   | a normalisation per channel before
sagan_voxel_zero   | sagan_voxel   | a start without modulation
biggan_voxel       | biggan        | SSM on BigGAN, at the same widths
biggan_voxel       | biggan_wide   | SSM on BigGAN, at the same cost
deep_voxel         | deep          | SSM on BigGAN-deep, at the same widths
deep_voxel         | deep_wide     | SSM on BigGAN-deep, at the same cost
'

run_table study "$table" --datasets digits shapes "$@"
for run in "$results"/*/sagan_voxel_seed0; do # the maps on the page
    if [[ -f $run/result.json ]]; then
        "$python" explain.py "$run" --only ssm
    fi
done
"$python" tools/write_study.py "$results" docs/study.md
exit "$failed"
