#!/usr/bin/env bash
# SNGAN with projection, CIFAR-10, batch 64, 5 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/SNGAN.yaml; see rows.sh
# Published  IS 8.83, FID 9.01, precision 0.70, recall 0.62 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_SNGAN "$@"
