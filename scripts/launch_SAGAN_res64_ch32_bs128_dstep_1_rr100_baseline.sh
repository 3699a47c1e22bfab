#!/usr/bin/env bash
# The baseline that the published SSM run is compared with: the same SAGAN on ImageNet 64x64, without SSM.
#
# Source     the result table of twice154/Spatial-Self-modulation-on-BigGAN (also found as twice154/BiggerGAN); flags as in
#            its launch script. It starts from Instance Selection for GANs (DeVries et al., 2020), whose own script for this
#            model keeps 40 % of the images (rr40) for 500,000 iterations.
# Published  FID 15.70   IS 19.15   precision 0.68   recall 0.69   density 0.75   coverage 0.74
#            (torchvision Inception weights)
# Needs      data/ILSVRC64.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_64.sh
#
#   bash scripts/launch_SAGAN_res64_ch32_bs128_dstep_1_rr100_baseline.sh [any flag of train.py]
#
# Run again, it resumes. Flags that follow replace those below. SSM costs 1.75 times this model's multiply-adds, so a
# rival of equal cost is wider than this one: add --G_ch and an --experiment_name of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

exec "$(find_python)" train.py \
    --experiment_name SAGAN_res64_ch32_bs128_dstep_1_rr100_baseline \
    --ssm none \
    --dataset I64_hdf5 --shuffle --num_workers 8 --batch_size 128 --parallel \
    --num_G_accumulations 1 --num_D_accumulations 1 --num_D_steps 1 \
    --G_lr 1e-4 --D_lr 4e-4 --G_B2 0.999 --D_B2 0.999 --adam_eps 1e-8 \
    --G_ch 32 --D_ch 32 --G_attn 32 --D_attn 32 --G_nl relu --D_nl relu \
    --SN_eps 1e-8 --BN_eps 1e-5 --G_init xavier --D_init xavier --G_ortho 0.0 \
    --ema --use_ema --ema_start 2000 --G_eval_mode \
    --test_every 5000 --save_every 1000 --num_best_copies 5 --num_save_copies 2 --which_best FID \
    --num_iters 1000000 --num_epochs 1000 --seed 0 \
    --embedding inceptionv3 --density_measure gaussian --retention_ratio 100 \
    "$@"
