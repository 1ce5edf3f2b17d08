#!/usr/bin/env bash
# CIFAR-10: one trained MODEL at W8A8, W4A4, W2A2 and W1A1 by every method that has the width, those that train with the
# same EPOCHS. LIMIT=0 takes all examples. BASELINE is a trained model to take instead of training one.
# COMPRESSION_DATA=PATH benchmarks/quantize_bits.sh [EPOCHS [LIMIT [THREADS [MODEL [BASELINE]]]]]
set -euo pipefail
epochs=${1:-2} limit=${2:-0} threads=${3:-2} model=${4:-resnet8} baseline=${5:-}
run() { mlflow run . -b host --experiment-name quantize-bits -P task=cifar10 -P model="$model" -P threads="$threads" \
  $([ "$limit" = 0 ] || echo "-P limit=$limit") "$@"; }
quantize() { run -e quantize -P method="$1" $([ -z "$baseline" ] || echo "-P baseline=$baseline") "${@:3}" \
  --run-name "$1 $2"; }
trained="-P epochs=$epochs -P learning_rate=0.01"
least_error="-P observer=mse -P weight_observer=mse" # ranges from end to end are too wide for few bits
[ -n "$baseline" ] || run -e train -P epochs="$((3 * epochs))" --run-name "trained"
quantize static W8A8 -P bits=8 -P activation_bits=8
quantize static W4A4 -P bits=4 -P activation_bits=4 $least_error
quantize static W2A2 -P bits=2 -P activation_bits=2 $least_error
quantize static W1A1 -P bits=1 -P activation_bits=1 $least_error
for bits in 8 4 2; do
  quantize qat "W${bits}A$bits" -P bits=$bits -P activation_bits=$bits $trained $([ $bits = 8 ] || echo "$least_error")
  for method in lsq dorefa; do
    quantize "$method" "W${bits}A$bits" -P bits=$bits -P activation_bits=$bits $trained
  done
done
quantize qat W1A1 -P bits=1 -P activation_bits=1 $trained $least_error
quantize dorefa W1A1 -P bits=1 -P activation_bits=1 $trained
quantize bnn W1A1 $trained
python benchmarks/table.py quantize-bits \
  --column accuracy --column size_mb --column compression_ratio --column latency_ms --column speedup --column seconds
python benchmarks/bits_picture.py quantize-bits docs/accuracy-against-bits.png
