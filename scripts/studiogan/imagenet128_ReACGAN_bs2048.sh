#!/usr/bin/env bash
# ReACGAN, ImageNet 128x128, batch 512 x 4 accumulations = 2048, 2 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/ImageNet/ReACGAN-2048.yaml; see rows.sh
# Published  IS 94.06, FID 8.19, precision 0.80, recall 0.42 (TensorFlow Inception; we have not repeated it)
# Needs      data/ILSVRC128.hdf5: bash scripts/utils/prepare_data_imagenet_128.sh; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

imagenet_ReACGAN --D_aux_margin 0.9 --D_aux_temperature 0.25 --D_aux_weight 0.5 --batch_size 512 \
    --num_G_accumulations 4 --num_D_accumulations 4 --num_iters 200000 "$@"
