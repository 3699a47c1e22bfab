#!/usr/bin/env bash
# SAGAN, CIFAR-10, batch 64, 5 steps of D, attention at 16x16 in both.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/SAGAN.yaml; see rows.sh
# Published  IS 8.64, FID 10.35, precision 0.69, recall 0.63 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_SAGAN "$@"
