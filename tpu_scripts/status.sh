#!/usr/bin/env bash
# Usage: tpu_scripts/status.sh NAME --zone us-west4-a [--project ID] [--dry-run]
# The state of the request; once it is ACTIVE, that of the slice and what each worker is doing.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/states.sh

parse "zone project dry-run!" "$@"
check nothing
answer=$(request_state)
if ! is_given dry-run; then
  IFS='|' read -r state _ why <<<"$answer"
  echo "request: $state${why:+, $why}"
  [[ $state == ACTIVE ]] || exit 0
fi
answer=$(node_state)
is_given dry-run || echo "slice: $answer"
worker_states
