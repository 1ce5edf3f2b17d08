#!/usr/bin/env bash
# restore.sh FOLDER: puts what backup.sh wrote in place of what the running stack holds.
set -euo pipefail
from=${1:?say where from: make restore FROM=FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
compose() { docker compose -f "$here/compose.yaml" "$@"; }
gzip --test "$from/databases.sql.gz" "$from/artifacts.tar.gz"
compose stop server dashboard study
gunzip --stdout "$from/databases.sql.gz" | compose exec -T postgres psql --quiet --username=lab --dbname=postgres >/dev/null
compose run --rm -T --no-deps server bash -c \
  'find /artifacts -mindepth 1 -delete && tar --extract --gzip --directory /artifacts' <"$from/artifacts.tar.gz"
compose up --detach --wait server dashboard study
echo "Restored $from."
