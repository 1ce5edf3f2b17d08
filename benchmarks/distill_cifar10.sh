#!/usr/bin/env bash
# The student with distillation against the same student without, CIFAR-10, all data, three seeds, two cores.
# COMPRESSION_DATA=PATH benchmarks/distill_cifar10.sh [EPOCHS]
set -euo pipefail
epochs=${1:-3}
run() { mlflow run . -b host --experiment-name distill-cifar10 "$@"; }
run -e train -P task=cifar10 -P model=resnet20 -P epochs=5 --run-name "teacher"
for seed in 0 1 2; do
  run -e train -P task=cifar10 -P model=resnet8 -P epochs="$epochs" -P seed=$seed --run-name "alone seed $seed"
  run -e distill -P task=cifar10 -P model=resnet20 -P student=resnet8 -P epochs="$epochs" -P seed=$seed \
    --run-name "distilled seed $seed"
done
python benchmarks/table.py distill-cifar10
