#!/usr/bin/env bash
# BigGAN with LeCam regularisation, CIFAR-10, batch 64, 5 steps of D.
#
# Source     PyTorch-StudioGAN's benchmark; configs/CIFAR10/BigGAN-Mod-LeCam.yaml (its decay is 0.9, here 0.99 as in
#            BigGAN-DiffAug-LeCam.yaml); see rows.sh
# Published  IS 10.17, FID 3.23, precision 0.73, recall 0.67 (TensorFlow Inception; we have not repeated it)
# Needs      data/C10.hdf5: bash scripts/utils/prepare_data_cifar.sh 10; statistics of inception_tf: see rows.sh
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"

cifar10_BigGAN --lecam 0.3 --lecam_start 1000 "$@"
