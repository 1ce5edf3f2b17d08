#!/usr/bin/env bash
# The student with distillation against the same student without: CIFAR-10, all data, three seeds, two cores at most.
# COMPRESSION_DATA=PATH benchmarks/distill_cifar10.sh [EPOCHS [THREADS]]
set -euo pipefail
epochs=${1:-3} threads=${2:-2}
run() { mlflow run . -b host --experiment-name distill-cifar10 -P task=cifar10 -P threads="$threads" "$@"; }
run -e train -P model=resnet20 -P epochs=4 --run-name "teacher alone"
for seed in 0 1 2; do
  run -e train -P model=resnet8 -P epochs="$epochs" -P seed=$seed --run-name "student alone seed $seed"
  run -e distill -P model=resnet20 -P student=resnet8 -P epochs="$epochs" -P seed=$seed \
    --run-name "student distilled seed $seed"
done
python benchmarks/table.py distill-cifar10
