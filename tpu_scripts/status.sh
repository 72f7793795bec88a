#!/usr/bin/env bash
# Usage: tpu_scripts/status.sh NAME --zone us-west4-a [--project ID] [--dry-run]
# Prints the state of the request and, once that is ACTIVE, of the slice and of every worker.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "zone project dry-run!" "$@"
check_arguments no-config
answer=$(request_state)
if ! is_given dry-run; then
  IFS='|' read -r state _ reason <<<"$answer"
  echo "request: $state${reason:+, $reason}"
  [[ $state == ACTIVE ]] || exit 0
fi
answer=$(slice_state)
is_given dry-run || echo "slice: $answer"
worker_states
