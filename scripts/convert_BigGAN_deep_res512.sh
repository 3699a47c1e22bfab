#!/usr/bin/env bash
# BigGAN-deep, ImageNet 512x512, from DeepMind's weights as huggingface's pytorch-pretrained-BigGAN has them: converts them,
# draws samples at truncation 0.4, and evaluates.
#
# Source     https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-512-pytorch_model.bin and -config.json: put them
#            in one folder as pytorch_model.bin and config.json, by default weights/biggan-deep-512 (else WEIGHTS=FOLDER)
# Published  FID 16.87   IS 124.37, by mmgeneration with the TensorFlow Inception
# Needs      reference statistics of ImageNet at 512x512:
#            python make_hdf5.py --dataset folder --images IMAGENET_TRAIN --resolution 512 --out data/I512.hdf5
#            python calculate_inception_moments.py --dataset I512
#
#   bash scripts/convert_BigGAN_deep_res512.sh [any flag of evaluate.py]
WEIGHTS=$(realpath -m -- "${WEIGHTS:-$(dirname "${BASH_SOURCE[0]}")/../weights/biggan-deep-512}")
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

convert_and_evaluate huggingface I512 \
    "--model BigGANdeep --G_ch 128 --D_ch 128 --G_attn 64 --D_attn 64 --G_shared --hier --dim_z 128 --BN_eps 1e-4 --SN_eps 1e-4" \
    "$@"
