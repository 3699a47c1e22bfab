#!/usr/bin/env bash
# The baseline that the published SSM run is compared with: the same SAGAN on ImageNet 64x64, without SSM.
#
# Source     the result table of twice154/Spatial-Self-modulation-on-BigGAN (also found as twice154/BiggerGAN)
# Published  FID 15.70   IS 19.15   precision 0.68   recall 0.69   density 0.75   coverage 0.74
#            (torchvision Inception weights)
# Needs      data/ILSVRC64.hdf5 and its reference statistics: bash scripts/utils/prepare_data_imagenet_64.sh
#
# A training step with SSM costs 1.75 times the multiply-adds (docs/models.md), so a rival of equal cost is wider than this
# one: add --G_ch and an --experiment_name of its own.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SAGAN_res64_ch32_bs128_dstep_1_rr100.sh --ssm none "$@"
