#!/usr/bin/env bash
# ReACGAN, ImageNet 128x128, batch 256, 2 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/ImageNet/ReACGAN-256.yaml; see rows.sh
# Published  IS 66.67, FID 15.65, precision 0.77, recall 0.38 (TensorFlow Inception; we have not repeated it)
# Needs      data/ILSVRC128.hdf5: bash scripts/utils/prepare_data_imagenet_128.sh; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

imagenet_ReACGAN --D_aux_margin 0.98 --D_aux_temperature 0.5 --D_aux_weight 1 --num_iters 500000 "$@"
