#!/usr/bin/env bash
# The image's entry point: started as root, goes on as an ordinary user.
#
# Which one? RUN_AS=UID:GID; without it the owner of the store that `mlflow run` mounts at /mlflow/tmp/mlruns, so that
# the files written beside it are theirs; without one, `lab`. Folders that Docker made for a mount are root's: given over.
set -euo pipefail

if [ "$(id -u)" = 0 ]; then
  store=/mlflow/tmp/mlruns
  if [ -n "${RUN_AS:-}" ]; then IFS=: read -r uid gid <<<"$RUN_AS"
  elif [ -e "$store" ]; then uid=$(stat --format %u "$store") gid=$(stat --format %g "$store")
  else uid=$(id --user lab) gid=$(id --group lab)
  fi
  awk '$5 ~ /mlruns|artifacts|compression/ {print $5}' /proc/self/mountinfo | while read -r folder; do
    if [ -d "$folder" ] && [ "$(stat --format %u "$folder")" = 0 ]; then chown "$uid:$gid" "$folder"; fi
  done
  HOME=$(getent passwd "$uid" | cut --delimiter=: --fields=6 || true)
  export HOME=${HOME:-/tmp}
  exec setpriv --reuid="$uid" --regid="$gid" --clear-groups "$@"
fi
exec "$@"
