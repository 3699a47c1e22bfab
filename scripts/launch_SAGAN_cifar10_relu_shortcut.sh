#!/usr/bin/env bash
# SAGAN, CIFAR-10, where D's shortcuts see relu(x): what an in-place ReLU does.
#
# Source     mmgeneration, sagan_32_wReLUinplace_lr-2e-4_ndisc5_cifar10_b64x1
# Published  best FID 10.78 (IS 9.21), best IS 9.23 (FID 11.78), with the TensorFlow Inception; 1 GPU
# Needs      data/C10.hdf5 and its reference statistics, as launch_SAGAN_cifar10.sh says
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

variant launch_SAGAN_cifar10.sh --D_relu_shortcut "$@"
