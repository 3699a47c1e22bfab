#!/usr/bin/env bash
# ImageNet at one resolution, ready for training: the HDF5 file, then its reference statistics.
# Called by prepare_data_imagenet_64.sh, _128.sh and _256.sh.
#
#   bash scripts/utils/prepare_data_imagenet.sh RESOLUTION [IMAGENET_TRAIN] [--data_root DIR]
#
#   IMAGENET_TRAIN  folder with one sub-folder of JPEGs per WordNet id (default: DIR/ImageNet)
#   --data_root     where ILSVRC<RESOLUTION>.hdf5 and its statistics are written (default: data)
#
# PYTHON=... chooses the interpreter (default: .venv/bin/python if it exists, python3 otherwise).
set -euo pipefail

refuse() {
    echo "$(basename "$0"): error: $1 (see --help)" >&2
    exit 2
}

resolution=${1:-}
[[ $resolution =~ ^[0-9]+$ ]] || refuse "the first argument is the resolution"
shift
images=
data_root=data
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            sed -n '2,/^set/ s/^# \{0,1\}//p' "$0"
            exit
            ;;
        --data_root)
            [ $# -ge 2 ] || refuse "--data_root needs a folder"
            data_root=$(realpath -m -- "$2")
            shift
            ;;
        --data_root=*) data_root=$(realpath -m -- "${1#*=}") ;;
        -*) refuse "unknown flag $1" ;;
        *)
            [ -z "$images" ] || refuse "one folder is enough, got $images and $1"
            images=$(realpath -m -- "$1")
            ;;
    esac
    shift
done

cd "$(dirname "$0")/../.."
source scripts/venv.sh
python=$(find_python)
"$python" make_hdf5.py --dataset "I$resolution" --images "${images:-$data_root/ImageNet}" --data_root "$data_root"
"$python" calculate_inception_moments.py --dataset "I${resolution}_hdf5" --data_root "$data_root"
