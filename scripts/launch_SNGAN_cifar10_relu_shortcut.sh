#!/usr/bin/env bash
# SNGAN with projection, CIFAR-10, where D's shortcuts see relu(x): what an in-place ReLU does.
#
# Source     mmgeneration, sngan_proj_32_wReLUinplace_lr-2e-4_ndisc5_cifar10_b64x1
# Published  best FID 8.35, best IS 9.56 (TensorFlow Inception; each at its own iteration); 1 GPU
# Needs      data/C10.hdf5 and its reference statistics, as launch_SNGAN_cifar10.sh says
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SNGAN_cifar10.sh --D_relu_shortcut "$@"
