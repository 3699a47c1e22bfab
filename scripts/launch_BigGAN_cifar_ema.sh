#!/usr/bin/env bash
# BigGAN, CIFAR-10, batch 50, 4 steps of D: no shared embedding, no hierarchical z, no attention.
#
# Source     flags of ajbrock/BigGAN-PyTorch's launch_cifar_ema.sh; length and numbers of mmgeneration's run of it
#            (biggan_cifar10_32x32_b25x2_500k: 500,000 of its iterations are 125,000 of G)
# Published  FID 9.78   IS 8.70 (TensorFlow Inception); 2 GPUs
# Needs      data/C10.hdf5 and its reference statistics: bash scripts/utils/prepare_data_cifar.sh 10
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset C10 --shuffle --batch_size 50 --parallel \
    --num_G_accumulations 1 --num_D_accumulations 1 --num_D_steps 4 \
    --G_lr 2e-4 --D_lr 2e-4 --G_B2 0.999 --D_B2 0.999 \
    --G_ch 64 --D_ch 64 --G_attn 0 --D_attn 0 --G_init N02 --D_init N02 --G_ortho 0.0 \
    --ema --use_ema --ema_start 1000 \
    --test_every 5000 --save_every 2000 --num_best_copies 5 --num_save_copies 2 --which_best FID \
    --num_iters 125000 --num_epochs 500 --seed 0 \
    "$@"
