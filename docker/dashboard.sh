#!/usr/bin/env bash
# optuna-dashboard, which cannot start on a database without Optuna's tables: they are made first.
set -euo pipefail
python -c 'import os, optuna; optuna.storages.RDBStorage(os.environ["OPTUNA_STORAGE"])'
exec optuna-dashboard --host 0.0.0.0 --port 8080 "$OPTUNA_STORAGE"
