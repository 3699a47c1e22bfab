#!/usr/bin/env bash
# SSM on BigGAN, ImageNet 128x128, ch 64, batch 256: ours, unpublished. Its rival without SSM: add --ssm none and an
# --experiment_name.
#
# Source     flags of Instance Selection's BigGAN-128 (launch_BigGAN_res128_ch64_bs256_dstep_1_rr50.sh), on all images
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_res128_ch64_bs256_dstep_1_rr50.sh --retention_ratio 100 --ssm voxel "$@"
