#!/usr/bin/env bash
# CIFAR-10 or CIFAR-100, ready for training: C10.hdf5 or C100.hdf5 (0.15 GB), then its reference statistics.
#
#   bash scripts/utils/prepare_data_cifar.sh [10|100] [CIFAR] [--data_root DIR]
#
#   10|100       which of them (default: 10)
#   CIFAR        folder that holds torchvision's files: the folder or .tar.gz of the Python or binary version, as
#                https://www.cs.toronto.edu/~kriz/cifar.html has them (default: DIR)
#   --data_root  where C10.hdf5 and its statistics are written (default: data)
#
# PYTHON=... chooses the interpreter (default: .venv/bin/python if it exists, python3 otherwise).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
classes=10
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    [[ $1 == 10 || $1 == 100 ]] || refuse "there is CIFAR-10 and CIFAR-100, no CIFAR-$1"
    classes=$1
    shift
fi
parse_arguments "$@"

cd "$(dirname "$0")/../.."
source scripts/venv.sh
python=$(find_python)
"$python" make_hdf5.py --dataset "C$classes" --images "${images:-$data_root}" --data_root "$data_root"
"$python" calculate_inception_moments.py --dataset "C$classes" --data_root "$data_root"
