#!/usr/bin/env bash
# Installs what pyproject.toml names into /opt/lab; FLAVOUR, OVERRIDES and /wheels as the Dockerfile says.
set -euo pipefail

options=(--python /opt/lab/bin/python --no-cache)
ls /wheels/*.whl >/dev/null 2>&1 && options+=(--find-links /wheels)
if [ -e /run/ca.crt ]; then export SSL_CERT_FILE=/run/ca.crt; fi
index=$(python3 -m pip config get global.index-url 2>/dev/null || true)
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
case $FLAVOUR in
  cuda) ;;
  cpu) [ -n "$OVERRIDES" ] || options+=(--torch-backend cpu) ;;
  *) echo "FLAVOUR is cuda or cpu, not $FLAVOUR." >&2; exit 1 ;;
esac
printf '%s\n' $OVERRIDES >/build/overrides.txt # one a word

python3 -m venv --without-pip /opt/lab
/opt/uv/bin/uv pip install "${options[@]}" --override /build/overrides.txt \
  --requirements /build/pyproject.toml --extra all 'setuptools>=77'

# Tests, C++ headers, compilers and Arrow's own protocol: 260 MB that nothing here reads.
site=$(/opt/lab/bin/python -c 'import site; print(site.getsitepackages()[0])')
rm -rf "$site"/torch/include "$site"/torch/share "$site"/torch/bin/protoc* "$site"/onnx/backend/test
rm -rf "$site"/pyarrow/include "$site"/pyarrow/*flight*
find "$site" -type d -name tests -not -path '*/torch/*' -prune -exec rm -rf {} +
# Bytecode for what runs load, since nobody may write it later: seconds at every start for 150 MB.
/opt/lab/bin/python -m compileall -q -j 0 -x 'transformers/models/|torch/(_inductor|testing|distributed)/' "$site" \
  >/dev/null || true  # templates among the packages are no Python
