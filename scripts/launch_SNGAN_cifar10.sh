#!/usr/bin/env bash
# SNGAN with projection, CIFAR-10, batch 64, 5 steps of D, no moving average.
#
# Source     mmgeneration, sngan_proj_32_woReLUinplace_lr-2e-4_ndisc5_cifar10_b64x1: 500,000 of its iterations are 100,000
#            of G; trained with horizontal flips
# Published  best FID 8.12, best IS 9.69 (TensorFlow Inception; each at its own iteration); 1 GPU.
#            With in-place ReLU: launch_SNGAN_cifar10_relu_shortcut.sh
# Needs      data/C10.hdf5 and its reference statistics: bash scripts/utils/prepare_data_cifar.sh 10
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset C10 --flip --batch_size 64 --num_D_steps 5 \
    --G_lr 2e-4 --D_lr 2e-4 --G_B1 0.5 --D_B1 0.5 --G_B2 0.999 --D_B2 0.999 \
    --G_ch 64 --G_ch_mult 4-4-4-4 --G_param none --G_attn 0 \
    --D_ch 64 --D_ch_mult 2-2-2-2 --D_num_down 2 --D_attn 0 \
    --BN_eps 1e-4 --output_BN_eps 1e-4 --SN_eps 1e-6 --G_init ortho --D_init ortho \
    --test_every 2000 --which_best FID --num_iters 100000 --seed 0 \
    "$@"
