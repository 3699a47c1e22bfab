#!/usr/bin/env bash
# SAGAN, ImageNet 128x128, on BigGAN-PyTorch's schedule: batch 32 on each of 8 GPUs, no flips, xavier, a moving average.
#
# Source     mmgeneration, sagan_128_woReLUinplace_noaug_bigGAN_Glr-1e-4_Dlr-4e-4_ndisc1_imagenet1k_b32x8, after
#            BigGAN-PyTorch's launch_SAGAN_bs128x2_ema.sh
# Published  FID 12.83   IS 69.54 (TensorFlow Inception); 8 GPUs
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SAGAN_res128_bs64x4.sh \
    --no-flip --no-G_embed_SN --BN_eps 1e-5 --output_BN_eps 1e-5 --SN_eps 1e-8 --G_init xavier --D_init xavier \
    --ema --ema_decay 0.999 --ema_start 2000 \
    "$@"
