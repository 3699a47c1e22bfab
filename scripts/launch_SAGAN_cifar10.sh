#!/usr/bin/env bash
# SAGAN, CIFAR-10, batch 64, 5 steps of D, attention at 16x16 in G and after D's first block, no moving average.
#
# Source     mmgeneration, sagan_32_woReLUinplace_lr-2e-4_ndisc5_cifar10_b64x1: 500,000 of its iterations are 100,000 of G;
#            trained with horizontal flips.
# Published  best FID 9.43 (IS 9.32), best IS 9.32 (FID 10.50), with the TensorFlow Inception; 1 GPU.
#            With in-place ReLU: launch_SAGAN_cifar10_relu_shortcut.sh
# Needs      data/C10.hdf5 and its reference statistics: bash scripts/utils/prepare_data_cifar.sh 10
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SNGAN_cifar10.sh --G_param SN --G_embed_SN --G_attn 16 --D_attn_after 1 "$@"
