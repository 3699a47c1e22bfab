#!/usr/bin/env bash
# BigGAN, ImageNet 128x128, batch 512 x 4 accumulations = 2048, 2 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/ImageNet/BigGAN-Mod2048.yaml; see rows.sh
# Published  IS 98.51, FID 8.54, precision 0.75, recall 0.60 (TensorFlow Inception; we have not repeated it)
# Needs      data/ILSVRC128.hdf5: bash scripts/utils/prepare_data_imagenet_128.sh; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

imagenet_BigGAN --batch_size 512 --num_G_accumulations 4 --num_D_accumulations 4 --num_iters 200000 "$@"
