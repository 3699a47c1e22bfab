#!/usr/bin/env bash
# BigGAN-deep, ImageNet 128x128, from DeepMind's weights as huggingface's pytorch-pretrained-BigGAN has them: converts them,
# draws samples at truncation 0.4, and evaluates.
#
# Source     https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-128-pytorch_model.bin and -config.json: put them
#            in one folder as pytorch_model.bin and config.json, by default weights/biggan-deep-128 (else WEIGHTS=FOLDER)
# Published  FID 5.95   IS 107.16, by mmgeneration with the TensorFlow Inception
# Needs      data/ILSVRC128.hdf5's reference statistics: bash scripts/utils/prepare_data_imagenet_128.sh
#
#   bash scripts/convert_BigGAN_deep_res128.sh [any flag of evaluate.py]
WEIGHTS=$(realpath -m -- "${WEIGHTS:-$(dirname "${BASH_SOURCE[0]}")/../weights/biggan-deep-128}")
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

convert_and_evaluate huggingface I128_hdf5 \
    "--model BigGANdeep --G_ch 128 --D_ch 128 --G_attn 64 --D_attn 64 --G_shared --hier --dim_z 128 --BN_eps 1e-4 --SN_eps 1e-4" \
    "$@"
