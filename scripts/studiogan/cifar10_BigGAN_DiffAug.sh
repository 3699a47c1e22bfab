#!/usr/bin/env bash
# BigGAN with DiffAugment, CIFAR-10, batch 64, 5 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/BigGAN-DiffAug.yaml; see rows.sh
# Published  IS 10.03, FID 3.35, precision 0.74, recall 0.67 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_BigGAN --diffaug color_translation_cutout --num_iters 200000 "$@"
