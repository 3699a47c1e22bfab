#!/usr/bin/env bash
# SSM on BigGAN-deep, ImageNet 128x128: ours, unpublished. Its rival without SSM: scripts/launch_BigGAN_deep.sh
#
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_deep.sh --ssm voxel "$@"
