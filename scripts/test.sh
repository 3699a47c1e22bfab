#!/usr/bin/env bash
# Lint, format check and tests, in a .venv made on the way:  bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

ensure_venv requirements-dev.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m pytest -n auto --maxprocesses 4 "$@" # a test has one thread, a process most of 1 GB
