#!/usr/bin/env bash
# ImageNet at one resolution, ready for training: the HDF5 file, then its reference statistics.
# Called by prepare_data_imagenet_64.sh, _128.sh and _256.sh.
#
#   bash scripts/utils/prepare_data_imagenet.sh RESOLUTION [IMAGENET_TRAIN] [--data_root DIR]
#
#   IMAGENET_TRAIN  folder (or zip) with one sub-folder of JPEGs per WordNet id (default: DIR/ImageNet)
#   --data_root     where ILSVRC<RESOLUTION>.hdf5 and its statistics are written (default: data)
#
# PYTHON=... chooses the interpreter (default: .venv/bin/python if it exists, python3 otherwise).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
resolution=${1:-}
[[ $resolution =~ ^[0-9]+$ ]] || refuse "the first argument is the resolution"
parse_arguments "${@:2}"

cd "$(dirname "$0")/../.."
source scripts/venv.sh
python=$(find_python)
"$python" make_hdf5.py --dataset "I$resolution" --images "${images:-$data_root/ImageNet}" --data_root "$data_root"
"$python" calculate_inception_moments.py --dataset "I${resolution}_hdf5" --data_root "$data_root"
