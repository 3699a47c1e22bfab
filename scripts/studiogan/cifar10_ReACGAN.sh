#!/usr/bin/env bash
# ReACGAN, CIFAR-10, batch 128, 5 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/ReACGAN.yaml; see rows.sh
# Published  IS 9.85, FID 3.87, precision 0.75, recall 0.62 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_ReACGAN "$@"
