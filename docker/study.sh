#!/usr/bin/env bash
# The study's web app. A database without a study gets the shipped one; `compression study create FILE` amends it.
set -euo pipefail
compression study upgrade
compression study people >/dev/null 2>&1 || compression study create
exec compression study web --host 0.0.0.0 --port 8090 --name "$STUDY_NAMES"
