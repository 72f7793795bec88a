#!/usr/bin/env bash
# Sourced: what the request, the slice and its workers are doing.
. tpu_scripts/lib/gcloud.sh

request_state() { # STATE|INITIATOR|REASON; ABSENT if there is no such request
  local errors fields='value[separator="|"](state.state,state.stateInitiator,state.failedData.error.message)'
  errors=$(mktemp)
  if tpu queued-resources describe "$name" --format "$fields" 2>"$errors"; then
    rm "$errors"
  elif grep -q NOT_FOUND "$errors"; then
    rm "$errors" && echo ABSENT
  else
    say "error: $(explain <"$errors")" "$(cat "$errors")" && rm "$errors" && return 1
  fi
}

node_state() { ask tpu-vm describe "$name" --format 'value(state)'; }

worker_states() { # a line for each worker: HOST bare|ready|running|lost|exited [EXIT-CODE] [what its log says]
  local job=grpo-jax/source/tpu_scripts/worker/job.sh
  on_workers all "if test -f $job; then bash $job status; else hostname | sed 's/$/ bare/'; fi"
}
