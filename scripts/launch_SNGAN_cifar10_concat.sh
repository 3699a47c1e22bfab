#!/usr/bin/env bash
# SNGAN whose D joins an embedded label to its features after the first block, CIFAR-10; no spectral norm in G, conditional
# batch norm also at its output.
#
# Source     settings as published for a conditional SNGAN ResNet with concatenated labels; initial weights are our choice
# Published  IS 8.43 +- 0.12 (by the older formula)
# Needs      data/C10.hdf5 and its reference statistics: bash scripts/utils/prepare_data_cifar.sh 10
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch \
    --dataset C10 --dequantise --batch_size 64 --G_batch_size 128 --num_D_steps 5 --D_fake_labels real \
    --G_lr 2e-4 --D_lr 2e-4 --G_B1 0.0 --D_B1 0.0 --G_B2 0.9 --D_B2 0.9 \
    --lr_decay_start 0 --lr_decay_end 50000 --lr_decay_to 0.5 \
    --G_ch 64 --G_ch_mult 16-4-4-4 --G_param none --G_attn 0 --G_out_cbn \
    --D_ch 64 --D_ch_mult 2-2-2-2 --D_num_down 2 --D_attn 0 \
    --D_cond concat --D_label_dim 300 --D_label_ch 128 --D_pool mean \
    --G_init xavier --D_init xavier \
    --test_every 2000 --which_best IS --num_iters 100000 --seed 0 \
    "$@"
