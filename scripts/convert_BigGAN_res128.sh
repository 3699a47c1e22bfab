#!/usr/bin/env bash
# BigGAN, ImageNet 128x128, ch 96, from the weights that BigGAN-PyTorch released: converts them, draws samples at truncation
# 0.4, and evaluates.
#
# Source     https://drive.google.com/open?id=1nAle7FCVFZdix2--ks0r5JBkFnKw8ctW: unpack it to a folder that holds G.pth,
#            G_ema.pth and D.pth, by default weights/biggan-128 (else WEIGHTS=FOLDER)
# Published  FID 10.14   IS 96.73, by mmgeneration with the TensorFlow Inception
# Needs      data/ILSVRC128.hdf5's reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
#
#   bash scripts/convert_BigGAN_res128.sh [any flag of evaluate.py]
WEIGHTS=$(realpath -m -- "${WEIGHTS:-$(dirname "${BASH_SOURCE[0]}")/../weights/biggan-128}")
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

convert_and_evaluate ajbrock I128_hdf5 \
    "--G_ch 96 --D_ch 96 --G_attn 64 --D_attn 64 --G_shared --hier --dim_z 120 --shared_dim 128 --SN_eps 1e-6" \
    "$@"
