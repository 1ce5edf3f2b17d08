#!/usr/bin/env bash
# Fills the empty lines of docker/.env with random passwords; what is filled stays.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
[ -e .env ] || cp .env.example .env
chmod 600 .env
while IFS= read -r line; do
  case $line in
    *PASSWORD= | *SECRET= | *KEY=) echo "$line$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')" ;;
    *) echo "$line" ;;
  esac
done <.env >.env.half
mv .env.half .env
echo "docker/.env has a password for everything; the administrator of MLflow is admin."
