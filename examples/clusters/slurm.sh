#!/usr/bin/env bash
# A campaign under Slurm: sbatch examples/clusters/slurm.sh --model qwen3-8b --run long
# One task a node; the first node holds the head and the driver. Requeued or out of time, the same command goes on:
# Slurm's signal comes two minutes before the end, and the campaign drains (cluster.drain, 30 s).
#SBATCH --job-name=vortex-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
port=${RAY_PORT:-6379}
ray=${RAY:-ray}
search=${VORTEX_SEARCH:-vortex-search}
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')
# The run's folder must be one that this node may lock: see docs/clusters.md on network file systems.
export VORTEX_RUNS=${VORTEX_RUNS:-$PWD/runs} RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 -w "${nodes[0]}" "$ray" start --head --node-ip-address="$head" --port="$port" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --include-dashboard=false --block &
ray_pids=($!)
for node in "${nodes[@]:1}"; do
    until "$ray" health-check --address "$head:$port" >/dev/null 2>&1; do sleep 1; done
    srun --nodes=1 --ntasks=1 -w "$node" "$ray" start --address="$head:$port" \
        --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block &
    ray_pids+=($!)
done
until "$ray" health-check --address "$head:$port" >/dev/null 2>&1; do sleep 1; done

"$search" --address "$head:$port" "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM INT
status=0
while kill -0 "$driver" 2>/dev/null; do wait "$driver" && status=0 || status=$?; done
kill -TERM "${ray_pids[@]}" 2>/dev/null || true
exit "$status"
