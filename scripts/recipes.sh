#!/usr/bin/env bash
# What does each regulariser do? Each alone, and some together, on the quickstart's SAGAN with SSM, at equal steps, three
# seeds, with all of the digits and with a tenth of them:
#
#   bash scripts/recipes.sh                         all runs, as many at a time as there are cores; then docs/recipes.md
#   bash scripts/recipes.sh --list                  which runs are complete; --time: how long all would take here
#   bash scripts/recipes.sh --rows plain diffaug --datasets digits_tenth --seeds 1
#
# Run again, it goes on from what is there. What the table's sections mean: tools/experiments.py. What a short run has in
# place of the published setting: LeCam from step 100 on, and ADA's strength rising in 20 thousand images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/experiments.sh

table='
[common]   # the quickstart, with fewer steps
--feature_network classifier --ssm voxel --G_ch 16 --G_ch_mult 4-4-2-1 --D_ch 16 --D_ch_mult 1-2-4-4 --D_num_down 3
--G_param none --G_attn 0 --D_attn 0 --dim_z 64 --batch_size 32 --num_D_steps 1 --G_lr 4e-4 --D_lr 8e-4
--ema --ema_decay 0.995 --num_iters 600 --test_every 150 --save_every 300 --sample_every 600 --log_every 50
--num_inception_images 1797 --which_best FD --num_save_copies 1 --num_best_copies 1

[data]     # name | flags of make_hdf5.py | flags of train.py
digits       | --dataset digits |
digits_tenth | --dataset digits | --dataset digits --data_fraction 0.1

[rows]     # name | flags
plain        |
relativistic | --loss relativistic
r3gan        | --loss relativistic --r1_gamma 1 --r2_gamma 1 --r1_gamma_to 0.1 --r2_gamma_to 0.1 --lr_decay_to 0.25 --lr_decay_shape cosine --lr_decay_start 0 --lr_decay_end 600
r1           | --r1_gamma 1
r1_lazy      | --r1_gamma 1 --r1_every 4
r1_approx    | --r1_gamma 1 --r1_approx
diffaug      | --diffaug translation
diffaug_cut  | --diffaug translation_cutout
ada          | --ada_target 0.6 --ada_kimg 20 --ada_policy geometry_color
lecam        | --lecam 0.3 --lecam_start 100
cr           | --cr 10
bcr          | --bcr 10
zcr          | --zcr 20
d2dce        | --D_cond none --D_aux d2dce --D_aux_weight 0.5
diffaug_r1   | --diffaug translation --r1_gamma 1
diffaug_cr   | --diffaug translation --cr 10
ema_ramp     | --ema_ramp 0.05
ramp_r3gan   | --ema_ramp 0.05 --loss relativistic --r1_gamma 1 --r2_gamma 1

[compare]  # a row | another | what their difference tells
relativistic | plain    | the relativistic loss alone
r3gan        | plain    | the relativistic loss with R1 and R2, whose weight and learning rates fall
r1           | plain    | a gradient penalty at real images
r1_lazy      | r1       | every fourth update, four times as strong
r1_approx    | r1       | by a difference, without second derivatives
diffaug      | plain    | shifts of all that D sees
diffaug_cut  | diffaug  | squares cut out as well
ada          | plain    | augmentation whose strength follows D
lecam        | plain    | logits held to their averages
cr           | plain    | consistency of D on real images
bcr          | plain    | on real and generated ones
zcr          | plain    | on noise
d2dce        | plain    | an auxiliary classifier in place of the projection
diffaug_r1   | diffaug  | a gradient penalty beside augmentation
diffaug_cr   | diffaug  | consistency beside augmentation
ema_ramp     | plain    | an average of G that is short at first
ramp_r3gan   | ema_ramp | the relativistic loss with R1 and R2, seen through that average
ramp_r3gan   | plain    | all of this together
'

run_table recipes "$table" "$@"
"$python" tools/write_study.py "$results" docs/recipes.md
exit "$failed"
