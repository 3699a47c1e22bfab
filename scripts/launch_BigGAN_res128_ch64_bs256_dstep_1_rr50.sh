#!/usr/bin/env bash
# Instance selection: BigGAN, ImageNet 128x128, ch 64, batch 256, on the 50 % of the images that lie where images are densest.
#
# Source     uoguelph-mlrg/instance_selection_for_gans (DeVries et al. 2020), the launch script of this name
# Published  FID 9.6   precision 0.88   recall 0.50; 8 V100, 3.7 days
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
#            The first start scores all images and stores that beside the data; later ones read it.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_bs256x8.sh \
    --G_ch 64 --D_ch 64 --num_G_accumulations 1 --num_D_accumulations 1 --no-load_in_mem --num_iters 300000 \
    --embedding inceptionv3 --density_measure gaussian --retention_ratio 50 \
    "$@"
