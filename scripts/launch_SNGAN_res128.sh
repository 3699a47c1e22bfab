#!/usr/bin/env bash
# SNGAN with projection, ImageNet 128x128, batch 256, 5 steps of D, no moving average.
#
# Source     mmgeneration, sngan_proj_128_woReLUinplace_Glr-2e-4_Dlr-5e-5_ndisc5_imagenet1k_b128x2: 1M of its iterations are
#            200,000 of G; trained with horizontal flips
# Published  best FID 32.62, best IS 30.07 (TensorFlow Inception; each at its own iteration); 2 GPUs. StudioGAN's weights of
#            its own run score FID 29.82, IS 30.22 in mmgeneration, FID 26.79, IS 32.25 by StudioGAN.
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset I128_hdf5 --flip --parallel --num_workers 8 --batch_size 256 --num_D_steps 5 \
    --G_lr 2e-4 --D_lr 5e-5 --G_B1 0.0 --D_B1 0.0 --G_B2 0.999 --D_B2 0.999 \
    --G_ch 64 --G_param none --G_attn 0 --D_ch 64 --D_attn 0 \
    --BN_eps 1e-4 --output_BN_eps 1e-4 --SN_eps 1e-6 --G_init ortho --D_init ortho \
    --test_every 10000 --save_every 10000 --which_best FID --num_iters 200000 --seed 0 \
    "$@"
