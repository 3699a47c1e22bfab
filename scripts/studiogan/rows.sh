# What the scripts of StudioGAN's benchmark share, for them to source: a function for each of its backbones, which takes
# further flags of train.py. SSM=voxel bash scripts/studiogan/ROW.sh is the row with SSM, in a run folder of its own.
#
# Source     PyTorch-StudioGAN's src/configs (MIT licence), src/config.py (what they leave out: random flips, Adam's epsilon
#            1e-6), src/models/resnet.py and big_resnet.py (widths; ReLU in place, which D's shortcuts see). It changed its
#            configurations over time; which of them made the numbers is not recorded, each script names its own.
# Needs      the TensorFlow Inception's statistics: python calculate_inception_moments.py --dataset C10 --feature_network
#            inception_tf (ImageNet: --dataset I128_hdf5)
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

name=studiogan_$name
ssm=()
[[ -z ${SSM:-} ]] || ssm=(--ssm "$SSM" --name_suffix "ssm-$SSM")
common=(
    --feature_network inception_tf --flip --adam_eps 1e-6 --G_B2 0.999 --D_B2 0.999 --G_init ortho --D_init ortho
    --BN_eps 1e-4 --output_BN_eps 1e-4 --SN_eps 1e-6 --D_relu_shortcut --which_best FID --seed 0
)
big=(--G_ch 96 --D_ch 96 --G_shared --hier --shared_dim 128 --ema --ema_decay 0.9999)

cifar10() {
    launch "${common[@]}" --dataset C10 --batch_size 64 --num_D_steps 5 --G_lr 2e-4 --D_lr 2e-4 --G_B1 0.5 --D_B1 0.5 \
        --G_ch_mult 4-4-4-4 --D_ch_mult 2-2-2-2 --D_num_down 2 --G_attn 0 --D_attn 0 \
        --test_every 2000 --num_iters 100000 "$@"
}

cifar10_SNGAN() {
    cifar10 --G_ch 64 --D_ch 64 --G_param none "${ssm[@]}" "$@"
}

cifar10_SAGAN() {
    cifar10 --G_ch 64 --D_ch 64 --G_embed_SN --G_attn_after 2 --D_attn_after 1 "${ssm[@]}" "$@"
}

cifar10_BigGAN() {
    cifar10 "${big[@]}" --ema_start 1000 --dim_z 80 --G_attn_after 2 --D_attn_after 1 "${ssm[@]}" "$@"
}

cifar10_ReACGAN() {
    cifar10_BigGAN --D_cond none --D_aux d2dce --D_aux_margin 0.98 --D_aux_temperature 0.5 --D_aux_weight 0.5 \
        --batch_size 128 --G_lr 2.8284271e-4 --D_lr 2.8284271e-4 "$@"
}

imagenet() {
    launch "${common[@]}" --dataset I128_hdf5 --parallel --num_workers 8 --cross_replica \
        --batch_size 256 --num_D_steps 2 --G_lr 5e-5 --D_lr 2e-4 --G_B1 0.0 --D_B1 0.0 \
        --test_every 10000 --save_every 5000 "$@"
}

imagenet_SNGAN() {
    imagenet --G_ch 64 --D_ch 64 --G_param none --G_attn 0 --D_attn 0 "${ssm[@]}" "$@"
}

imagenet_BigGAN() {
    imagenet "${big[@]}" --ema_start 20000 --dim_z 120 --G_attn 64 --D_attn 64 "${ssm[@]}" "$@"
}

imagenet_ReACGAN() {
    imagenet_BigGAN --D_cond none --D_aux d2dce "$@"
}
