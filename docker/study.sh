#!/usr/bin/env bash
# The study's web app. A database without a study gets the shipped one; `compression study create FILE` amends it.
set -euo pipefail
compression study create --once
exec compression study web --host 0.0.0.0 --port 8090 --name "$STUDY_NAMES"
