# Sourced by dist_train.sh and dist_test.sh: the launch itself.
#
# Environment:
#   NNODES, NODE_RANK, MASTER_ADDR   for several machines (1, 0, 127.0.0.1)
#   PORT     rendezvous port (a free one; 29500 when NNODES > 1)
#   MAX_RESTARTS   how often all processes are started again after one died (0);
#                  with --resume they go on from the last checkpoint
#   PYTHON   interpreter (python)

# launch GPUS SCRIPT [args]: start GPUS processes of a script of this folder.
launch() {
  local gpus=$1 script=$2
  shift 2
  local here python=${PYTHON:-python} nnodes=${NNODES:-1} port=${PORT:-}
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

  if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS must be a positive number, not '$gpus'" >&2
    exit 2
  fi
  if ! [[ ${MAX_RESTARTS:-0} =~ ^[0-9]+$ ]]; then
    echo "error: MAX_RESTARTS must be a number, not '$MAX_RESTARTS'" >&2
    exit 2
  fi
  if [[ -z $port && $nnodes == 1 ]]; then
    # Two runs on one machine must not meet at one port.
    port=$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
  fi
  # Without a GPU the threads do the work: share the cores out. With one,
  # torchrun's single thread per process is left alone.
  if [[ -z ${OMP_NUM_THREADS:-} ]] && ! nvidia-smi -L >/dev/null 2>&1; then
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=$((cores > gpus ? cores / gpus : 1))
    # Nor shall threads that wait keep a core (docs/training.md).
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
    export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
  fi

  local address=${MASTER_ADDR:-127.0.0.1}
  local meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address"
    --master_port="${port:-29500}")
  if ((${MAX_RESTARTS:-0})); then
    # Or those that start again would be given the addresses of those that
    # died, by a store that lives on.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(--max_restarts="$MAX_RESTARTS" --rdzv_backend=c10d
      --rdzv_id="mmdge-${port:-29500}" --rdzv_endpoint="$address:${port:-29500}")
  fi

  # torchrun, run by the environment's own interpreter.
  PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" \
    exec "$python" -m torch.distributed.run \
    --nnodes="$nnodes" \
    "${meeting[@]}" \
    --nproc_per_node="$gpus" \
    "$here/$script" "$@" --launcher pytorch
}
