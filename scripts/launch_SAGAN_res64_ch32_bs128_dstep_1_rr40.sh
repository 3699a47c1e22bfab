#!/usr/bin/env bash
# Instance selection: SAGAN on the 40 % of ImageNet 64x64 that lie where images are densest.
#
# Source     uoguelph-mlrg/instance_selection_for_gans (DeVries et al. 2020), the launch script of this name
# Published  FID 9.07   IS 37.1 (the paper, torchvision Inception weights); 1 GPU of 12 GB, 2 to 3 days
# Needs      data/ILSVRC64.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_64.sh
#            The first start scores all images and stores that beside the data; later ones read it.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SAGAN_res64_ch32_bs128_dstep_1_rr100.sh --ssm none --retention_ratio 40 --num_iters 500000 "$@"
