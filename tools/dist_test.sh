#!/usr/bin/env bash
# Test on several GPUs, or on several CPU processes without a GPU.
set -euo pipefail
if (($# < 3)); then
  echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

launch "$3" test.py "$1" "$2" "${@:4}"
