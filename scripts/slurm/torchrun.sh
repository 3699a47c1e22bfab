#!/usr/bin/env bash
# One node's share of a job: a process for each of its GPUs, joined to those of the other nodes. For job.sh to call.
set -euo pipefail

exec "$TRAIN_PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$MASTER:$((20000 + SLURM_JOB_ID % 10000))" \
    "$@"
