#!/usr/bin/env bash
# BigGAN-deep, ImageNet 256x256, from DeepMind's weights as huggingface's pytorch-pretrained-BigGAN has them: converts them,
# draws samples at truncation 0.4, and evaluates.
#
# Source     https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-256-pytorch_model.bin and -config.json: put them
#            in one folder as pytorch_model.bin and config.json, by default weights/biggan-deep-256 (else WEIGHTS=FOLDER)
# Published  FID 11.32   IS 135.11, by mmgeneration with the TensorFlow Inception
# Needs      data/ILSVRC256.hdf5's reference statistics: bash scripts/utils/prepare_data_imagenet_256.sh
#
#   bash scripts/convert_BigGAN_deep_res256.sh [any flag of evaluate.py]
WEIGHTS=$(realpath -m -- "${WEIGHTS:-$(dirname "${BASH_SOURCE[0]}")/../weights/biggan-deep-256}")
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

convert_and_evaluate huggingface I256_hdf5 \
    "--model BigGANdeep --G_ch 128 --D_ch 128 --G_attn 64 --D_attn 64 --G_shared --hier --dim_z 128 --BN_eps 1e-4 --SN_eps 1e-4" \
    "$@"
