#!/usr/bin/env bash
# Train on several GPUs, or on several CPU processes without a GPU.
set -euo pipefail
if (($# < 2)); then
  echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

launch "$2" train.py "$1" "${@:3}"
