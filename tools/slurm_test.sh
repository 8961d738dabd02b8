#!/usr/bin/env bash
# Test under Slurm.
#
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (more
# options for srun, split at blanks), PYTHON (python), PORT (any).
set -euo pipefail
if (($# < 4)); then
  echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT" \
    "[options of test.py]" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Two jobs on one node must not meet at one port.
export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))}
# SRUN_ARGS is unquoted on purpose: it holds several options.
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec srun \
  --partition="$1" \
  --job-name="$2" \
  --gres=gpu:"${GPUS_PER_NODE:-8}" \
  --ntasks="${GPUS:-8}" \
  --ntasks-per-node="${GPUS_PER_NODE:-8}" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$here/test.py" "$3" "$4" \
  "${@:5}" --launcher slurm
