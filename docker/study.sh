#!/usr/bin/env bash
# study.sh [OPTION…]: the study's web app; options are those of `compression study web`, --https behind TLS, say, which
# STUDY_HTTPS=1 says as well. A database without a study gets the shipped one; `compression study create FILE` amends it.
set -euo pipefail
compression study create --once
exec compression study web --host 0.0.0.0 --port 8090 --name "$STUDY_NAMES" ${STUDY_HTTPS:+--https} "$@"
