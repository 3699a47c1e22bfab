#!/usr/bin/env bash
# SAGAN, ImageNet 128x128, batch 64 on each of 4 GPUs, 1 step of D, attention at 64x64, no moving average.
#
# Source     mmgeneration, sagan_128_woReLUinplace_Glr-1e-4_Dlr-4e-4_ndisc1_imagenet1k_b64x4; trained with horizontal flips.
#            There batch norm is synchronised over the GPUs, here it is not.
# Published  best FID 34.78 (IS 28.49), best IS 31.59 (FID 36.77), with the TensorFlow Inception; 4 GPUs
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset I128_hdf5 --flip --parallel --num_workers 8 --batch_size 256 --num_D_steps 1 \
    --G_lr 1e-4 --D_lr 4e-4 --G_B1 0.0 --D_B1 0.0 --G_B2 0.999 --D_B2 0.999 \
    --G_ch 64 --D_ch 64 --G_embed_SN --G_attn 64 --D_attn 64 \
    --BN_eps 1e-4 --output_BN_eps 1e-4 --SN_eps 1e-6 --G_init ortho --D_init ortho \
    --test_every 10000 --save_every 10000 --which_best FID --num_iters 1000000 --num_epochs 1000 --seed 0 \
    "$@"
