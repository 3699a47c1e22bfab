#!/usr/bin/env bash
# Instance selection: BigGAN, ImageNet 256x256, ch 64, batch 128 x 2 accumulations, 2 steps of D, retention 50 %.
#
# Source     uoguelph-mlrg/instance_selection_for_gans (DeVries et al. 2020), the launch script of this name
# Published  FID 10.6   precision 0.91   recall 0.52; 4 V100, 10.7 days
# Needs      data/ILSVRC256.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_256.sh
#            The first start scores all images and stores that beside the data; later ones read it.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_res128_ch64_bs256_dstep_1_rr50.sh \
    --dataset I256_hdf5 --batch_size 128 --num_G_accumulations 2 --num_D_accumulations 2 --num_D_steps 2 \
    --dim_z 140 --test_every 5000 --save_every 5000 \
    "$@"
