#!/usr/bin/env bash
# BigGAN, ImageNet 128x128, ch 96, batch 256 x 8 accumulations = 2048.
#
# Source     flags of ajbrock/BigGAN-PyTorch's launch script of this name; length and numbers of mmgeneration's run of it
#            (biggan_ajbrock-sn_imagenet1k_128x128_b32x8_1500k: 1.5M of its iterations are 187,500 of G)
# Published  best FID 8.69 (IS 101.15), best IS 129.07 (FID 13.51), with the TensorFlow Inception; 8 GPUs
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
#            63 GB of memory for --load_in_mem; --no-load_in_mem reads from the disk's cache instead
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset I128_hdf5 --parallel --shuffle --num_workers 8 --batch_size 256 --load_in_mem \
    --num_G_accumulations 8 --num_D_accumulations 8 --num_D_steps 1 \
    --G_lr 1e-4 --D_lr 4e-4 --G_B2 0.999 --D_B2 0.999 --adam_eps 1e-6 \
    --G_ch 96 --D_ch 96 --G_attn 64 --D_attn 64 --G_nl inplace_relu --D_nl inplace_relu \
    --SN_eps 1e-6 --BN_eps 1e-5 --G_init ortho --D_init ortho --G_ortho 0.0 \
    --G_shared --hier --dim_z 120 --shared_dim 128 \
    --ema --use_ema --ema_start 20000 --G_eval_mode \
    --test_every 2000 --save_every 1000 --num_best_copies 5 --num_save_copies 2 --which_best FID \
    --num_iters 187500 --num_epochs 1000 --seed 0 --use_multiepoch_sampler \
    "$@"
