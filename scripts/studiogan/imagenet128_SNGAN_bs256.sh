#!/usr/bin/env bash
# SNGAN with projection, ImageNet 128x128, batch 256, 2 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/ImageNet/SNGAN-256.yaml; see rows.sh
# Published  IS 31.42, FID 31.49, precision 0.56, recall 0.67 (TensorFlow Inception; we have not repeated it)
# Needs      data/ILSVRC128.hdf5: bash scripts/utils/prepare_data_imagenet_128.sh; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

imagenet_SNGAN --num_iters 500000 "$@"
