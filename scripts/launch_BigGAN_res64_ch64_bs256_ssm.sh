#!/usr/bin/env bash
# SSM on BigGAN, ImageNet 64x64: ours, unpublished. Its rival without SSM: add --ssm none and an --experiment_name.
#
# Source     BigGAN flags of the SSM repository's launch_BigGAN_res64_ch64_bs256_dstep_1_rr40.sh, on all images. As there,
#            --G_attn 64 puts G's attention behind its last block, and --D_attn 64 finds no place in D.
# Needs      data/ILSVRC64.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_64.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_res128_ch64_bs256_dstep_1_rr50.sh --dataset I64_hdf5 --retention_ratio 100 --ssm voxel "$@"
