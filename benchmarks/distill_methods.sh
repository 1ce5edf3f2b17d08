#!/usr/bin/env bash
# CIFAR-10: a resnet8 under every distillation method, beside the same resnet8 alone. The teacher is one resnet20 of
# TEACHER epochs (several teachers: with a cnn5 of as many); each student trains for EPOCHS, assistants for as many more.
# born again and teacher-free start from the resnet8 alone of the same seed. LIMIT=0 takes all examples.
# COMPRESSION_DATA=PATH benchmarks/distill_methods.sh [SEEDS [EPOCHS [TEACHER [LIMIT [THREADS]]]]]
set -euo pipefail
seeds=${1:-3} epochs=${2:-3} teacher=${3:-8} limit=${4:-0} threads=${5:-2}
run() { mlflow run . -b host --experiment-name distill-methods -P task=cifar10 -P threads="$threads" \
  $([ "$limit" = 0 ] || echo "-P limit=$limit") "$@"; }
distill() { run -e distill -P epochs="$epochs" -P seed="$seed" --run-name "$1 seed $seed" -P method="${@:2}"; }
taught() { distill "$1" "$2" -P model=resnet20 -P student=resnet8 "${@:3}"; }
for model in resnet20 cnn5; do
  run -e train -P model=$model -P epochs="$teacher" --run-name "teacher alone"
done
for seed in $(seq 0 $((seeds - 1))); do
  run -e train -P model=resnet8 -P epochs="$epochs" -P seed="$seed" --run-name "student alone seed $seed"
  distill "born again" self_distill -P model=resnet8
  distill "teacher-free" self_distill -P model=resnet8 -P style=teacher_free
  taught "response" response
  taught "decoupled" decoupled
  taught "two teachers, mean" multi_teacher -P teachers=resnet20//cnn5
  taught "two teachers, confidence" multi_teacher -P teachers=resnet20//cnn5 -P weighting=confidence
  taught "mutual" mutual
  taught "mutual, with a resnet20" mutual -P peers=resnet20
  taught "feature" feature
  taught "attention" attention
  taught "relational" relational
  taught "one assistant" progressive
  taught "block by block" progressive -P style=blocks
done
python benchmarks/table.py distill-methods --column accuracy --column teacher_time_share --column seconds
