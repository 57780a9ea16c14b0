#!/usr/bin/env bash
# A sweep on nodes of a Slurm cluster: one Ray over all nodes of a job.
#   sbatch --nodes=2 --gpus-per-node=4 --time=12:00:00 cluster/slurm.sh FILE     FILE: a run's YAML file, its storage s3:// or a disk all nodes share
# Called in the repository's folder, whose .venv (`make .venv`) is on a disk that all nodes share.
# Two minutes before the time is up the trials save, and the job goes back into the queue, until the sweep is finished.
#SBATCH --job-name=fewshot-ray
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: sbatch --nodes=N --gpus-per-node=G --time=T $0 FILE" >&2; exit 2; }
file=$1
export PATH=${SLURM_SUBMIT_DIR:?is not set: this is for sbatch}/.venv/bin:$PATH
ended='' driver='' ray_head='' ray_workers=''

# This script gets the signal (B:), not the sweep, and hands it on.
trap 'ended=1; [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true' TERM
finish() {
  kill $ray_workers $ray_head 2>/dev/null || true
  rm -rf "$secret"
}

# Others are on this network: who has no token can neither submit nor join.
umask 077
secret=$(mktemp -d "$SLURM_SUBMIT_DIR/.ray-$SLURM_JOB_ID-XXXXXX")
trap finish EXIT
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$secret/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secret/token RAY_USAGE_STATS_ENABLED=0 RAY_enable_metrics_collection=0
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID  # on each node's own disk, and short: sockets are in it

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Every step gets the node's CPUs: a task has one of them otherwise.
step=(srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --overlap)
address=$("${step[@]}" --nodes=1 --nodelist="$head" hostname -I | cut -d' ' -f1)
start="mkdir -p $RAY_TMPDIR; exec ray start --block --num-cpus=$SLURM_CPUS_ON_NODE"

"${step[@]}" --nodes=1 --nodelist="$head" \
  bash -c "$start --head --node-ip-address=$address --port=6379 --dashboard-host=127.0.0.1" &
ray_head=$!
for _ in $(seq 60); do
  ray status --address "$address:6379" >/dev/null 2>&1 && break
  sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  "${step[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" bash -c "$start --address=$address:6379" &
  ray_workers=$!
fi

code=143
if [ -z "$ended" ]; then
  fewshot-ray run "$file" --address "$address:6379" &  # the same file again goes on where it was left
  driver=$!
  # A signal ends `wait`, not the sweep: it is still saving.
  while kill -0 "$driver" 2>/dev/null; do wait "$driver" && code=0 || code=$?; done
fi
if [ -n "$ended" ] && [ "$code" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
