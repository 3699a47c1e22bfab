#!/usr/bin/env bash
# What can only be seen on a GPU, in 15 minutes at most, without data or network: tests, then speed at published widths.
#
#   bash scripts/gpu_check.sh [--out gpu_check.json] [--minutes 15]     a table, and the same and more in the file
#
# Ends with status 0 if all tests passed, 1 if not, 2 where there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

exec "$(find_python)" benchmarks/gpu_check.py "$@"
