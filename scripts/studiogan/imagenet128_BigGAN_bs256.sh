#!/usr/bin/env bash
# BigGAN, ImageNet 128x128, batch 256, 2 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/ImageNet/BigGAN-256.yaml; see rows.sh
# Published  IS 40.78, FID 20.57, precision 0.66, recall 0.65 (TensorFlow Inception; we have not repeated it)
# Needs      data/ILSVRC128.hdf5: bash scripts/utils/prepare_data_imagenet_128.sh; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

imagenet_BigGAN --num_iters 200000 "$@"
