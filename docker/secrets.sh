#!/usr/bin/env bash
# secrets.sh [FILE]: fills the empty lines of docker/.env, or of FILE, with random passwords; what is filled stays. Lines
# that the example has got since the file was made are added.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
file=${1:-$here/.env}
umask 077
[ -e "$file" ] || cp "$here/.env.example" "$file"
chmod 600 "$file"
added=$(while IFS= read -r line; do
  case $line in [A-Z]*=*) grep --quiet "^${line%%=*}=" "$file" || echo "$line" ;; esac
done <"$here/.env.example")
while IFS= read -r line; do
  case $line in
    *PASSWORD= | *SECRET= | *KEY=) echo "$line$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')" ;;
    *) echo "$line" ;;
  esac
done < <(cat "$file"; [ -z "$added" ] || echo "$added") >"$file.half"
mv "$file.half" "$file"
echo "$file has a password for everything; the administrator of MLflow is admin."
