#!/usr/bin/env bash
# BigGAN-deep, ImageNet 128x128, ch 128, batch 256 x 8 accumulations = 2048.
#
# Source     ajbrock/BigGAN-PyTorch, the launch script of this name. Its --skip_init keeps PyTorch's own initial weights;
#            here they are orthogonal, as its other flags say.
# Published  no numbers there; of released weights: scripts/convert_BigGAN_deep_res128.sh
# Needs      data/ILSVRC128.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_BigGAN_bs256x8.sh \
    --model BigGANdeep --G_ch 128 --D_ch 128 --G_depth 2 --D_depth 2 --dim_z 128 --no-load_in_mem --save_every 500 \
    "$@"
