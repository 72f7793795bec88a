#!/usr/bin/env bash
# Sourced: gcloud, or with --dry-run only its command lines.
. tpu_scripts/lib/failures.sh
exec 3>&1 # where --dry-run prints, also from inside $(...)

run() { # run COMMAND ARGUMENT...: --dry-run prints it, so that it can be pasted
  if is_given dry-run; then printf '%s\n' "$(quoted "$@")" >&3; else "$@"; fi
}

tpu() { run gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}; }

on_workers() { tpu tpu-vm ssh "$name" --worker="$1" --command "$2"; } # all or a number, and a line for its shell

ask() { # ask GROUP COMMAND ARGUMENT...: a short call; a failure is said in a sentence, then as gcloud says it
  local errors status=0
  errors=$(mktemp)
  tpu "$@" 2>"$errors" || status=$?
  ((status == 0)) || say "error: $(explain <"$errors")"
  cat "$errors" >&2
  rm "$errors"
  return "$status"
}
