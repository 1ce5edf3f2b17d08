#!/usr/bin/env bash
# CIFAR-10: one trained MODEL, cut to half its MACs by l1, fpgm, taylor and group sparsity, each followed by the same
# EPOCHS of finetune; beside them the whole model with as much finetune. group trains SPARSE epochs with its penalty
# before it cuts. LIMIT=0 takes all examples.
# COMPRESSION_DATA=PATH benchmarks/prune_cifar10.sh [EPOCHS [SPARSE [LIMIT [THREADS [MODEL]]]]]
set -euo pipefail
epochs=${1:-4} sparse=${2:-4} limit=${3:-0} threads=${4:-2} model=${5:-resnet20}
run() { mlflow run . -b host --experiment-name "prune-cifar10" -P task=cifar10 -P model="$model" -P threads="$threads" \
  $([ "$limit" = 0 ] || echo "-P limit=$limit") "$@"; }
compress() { run -e compress -P recipe="$2" --run-name "$1"; }
again="finetune:epochs=$epochs,learning_rate=0.05"
run -e train -P epochs="$((2 * epochs))" --run-name "trained"
compress "trained on, whole" "$again"
for criterion in l1 fpgm taylor; do
  compress "$criterion" "structured:criterion=$criterion+$again"
done
compress "group" "structured:criterion=group,epochs=$sparse,learning_rate=0.05+$again"
python benchmarks/table.py prune-cifar10 \
  --column accuracy --column params --column macs --column size_mb --column latency_ms --column throughput --column seconds
