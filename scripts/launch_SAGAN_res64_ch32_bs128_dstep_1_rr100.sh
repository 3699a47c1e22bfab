#!/usr/bin/env bash
# The published run: SAGAN with spatial self-modulation (SSM), ImageNet 64x64, all of the training images.
#
# Source     twice154/Spatial-Self-modulation-on-BigGAN (also found as twice154/BiggerGAN), the launch script of this name.
#            It has no SSM flag, because there the variant is whatever BigGAN.py holds at the time: --ssm voxel is inferred
#            from the released code and from the run's published name, which ends in "voxelwiseab...".
# Published  FID 14.31   IS 20.10   precision 0.70   recall 0.69   density 0.77   coverage 0.77
#            (torchvision Inception weights; the same without SSM, FID 15.70, is ..._rr100_baseline.sh)
# Needs      data/ILSVRC64.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_64.sh
#
#   bash scripts/launch_SAGAN_res64_ch32_bs128_dstep_1_rr100.sh [any flag of train.py]
#
# Run again, it resumes. Flags that follow replace those below: --data_root /scratch/data, --num_iters 250000, --dry_run ...
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --ssm voxel \
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
