#!/usr/bin/env bash
# ImageNet at 64x64 (about 16 GB): writes ILSVRC64.hdf5 and its reference statistics, both under --data_root.
#
#   bash scripts/utils/prepare_data_imagenet_64.sh [IMAGENET_TRAIN] [--data_root DIR]
#
#   IMAGENET_TRAIN  folder with one sub-folder of JPEGs per WordNet id (default: DIR/ImageNet)
#   --data_root     folder of the data sets (default: data)
set -euo pipefail
exec bash "$(dirname "$0")/prepare_data_imagenet.sh" 64 "$@"
