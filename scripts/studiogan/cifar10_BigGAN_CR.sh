#!/usr/bin/env bash
# BigGAN with consistency regularisation, CIFAR-10, batch 64, 5 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/BigGAN-Mod-CR.yaml; see rows.sh
# Published  IS 10.09, FID 3.16, precision 0.74, recall 0.66 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_BigGAN --cr 10 "$@"
