#!/usr/bin/env bash
# backup.sh FOLDER: all databases and artifacts of the running stack, into a folder that does not exist yet.
set -euo pipefail
into=${1:?say where to: make backup TO=FOLDER}
[ ! -e "$into" ] || { echo "$into exists already; name a folder that does not." >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
compose() { docker compose -f "$here/compose.yaml" "$@"; }
umask 077
mkdir -p "$into.half"
compose exec -T postgres pg_dumpall --username=lab --clean --if-exists | gzip >"$into.half/databases.sql.gz"
compose exec -T server tar --create --gzip --directory /artifacts . >"$into.half/artifacts.tar.gz"
mv "$into.half" "$into"
echo "Wrote $(du -sh "$into" | cut -f1) to $into."
