#!/usr/bin/env bash
# Sourced by babysit.sh after common.sh and gcloud.sh: what it does before the first poll, at each poll, in each state.
slice_args=() create_args=() run_args=() # the arguments of the other scripts
state="" initiator="" reason="" polls=0  # the state, who caused it, why it failed, for how many polls it has lasted
request_seen=false absent=ABSENT         # whether a request was seen, and the states that do not show one
created=false resume=false               # whether babysit.sh created the slice; whether the next launch resumes the run
restarts_used=0
MAX_POLLS=${TPU_MAX_POLLS:-60} # two hours: all but the first three take two minutes

log() { say "$(date +%H:%M:%S) $name: $*"; }
give_up() { die "$name: $1. A person must decide what to do." 3; } # give_up REASON

prepare() { # sets the arguments of the other scripts, and lets these check them before a slice is billed
  local said word without_resume=()
  slice_args=("$name" --zone="$zone" ${project:+--project="$project"})
  create_args=("${slice_args[@]}" --type="$type" ${valid_until:+--valid-until="$valid_until"})
  if is_given spot; then create_args+=(--spot); fi
  run_args=("${slice_args[@]}" ${bucket:+--bucket="$bucket"})
  said=$(print_commands 2>&1 >/dev/null) || { grep '^error: ' <<<"$said" >&2 || say "$said"; exit 2; }
  if is_given dry-run; then
    print_commands
    say "These are all commands if nothing fails. babysit.sh polls every 15 seconds, later every two minutes, and" \
      "restarts at most ${restarts:-10} times; tpu_scripts/README.md says when."
    exit
  fi
  for word in "${train_args[@]}"; do
    if [[ $word == --resume ]]; then resume=true; else without_resume+=("$word"); fi
  done
  train_args=("${without_resume[@]}") # launch adds --resume when there may be a run to resume
  trap 'say "$name may still be billed. To delete it: $(delete_command)"' EXIT
}

print_commands() { # all commands if nothing fails
  tpu_scripts/create.sh "${create_args[@]}" --dry-run &&
    tpu_scripts/setup.sh "${slice_args[@]}" --type="$type" --dry-run &&
    tpu_scripts/run.sh "${run_args[@]}" --dry-run "${train_args[@]}"
}

poll() { # sets state: the request's; if that is ACTIVE, "slice STATE"; if that is READY, "workers STATE"
  local before=$state answer
  state=unreachable
  if answer=$(request_state); then
    IFS='|' read -r state initiator reason <<<"$answer"
    [[ $state =~ ^($absent)$ ]] || request_seen=true
    if [[ $state == ACTIVE ]]; then
      if answer=$(slice_state); then state="slice $answer"; else state=unreachable; fi
    fi
    if [[ $state == "slice READY" ]]; then
      answer=$(worker_states 2>/dev/null) || answer=""
      state="workers $(awk -f tpu_scripts/lib/workers_state.awk <<<"$answer")"
    fi
  fi
  if [[ $state == "$before" ]]; then polls=$((polls + 1)); else polls=0 && log "$state"; fi
}

wait_for_next_poll() { sleep $((${TPU_POLL_SECONDS:-15} << (polls < 3 ? polls : 3))); }

wait_at_most() { # wait_at_most POLLS REASON: gives up for this reason once the state has lasted so many polls
  ((polls < $1)) || give_up "$2"
  wait_for_next_poll
}

is_about_capacity() { [[ $1 =~ [Pp]reempt|[Cc]apacity|[Uu]navailab ]]; } # is_about_capacity REASON

use_restart() { # use_restart REASON: counts one restart, and gives up if none is left
  local allowed=${restarts:-10}
  ((restarts_used < allowed)) || give_up "$1, and all $allowed restarts are used up (--restarts)"
  restarts_used=$((restarts_used + 1))
  log "$1; restart $restarts_used of $allowed"
}

create_slice() {
  tpu_scripts/create.sh "${create_args[@]}" || give_up "the request was refused"
  request_seen=true created=true
}

replace_slice() { # deletes it; the next poll finds none, and it is created again
  use_restart "the slice was preempted, or there was no capacity for it"
  tpu_scripts/delete.sh "${slice_args[@]}" --yes || give_up "the old slice could not be deleted"
  request_seen=false absent="ABSENT|DELETING"
  if ! $created && ! $resume; then
    log "the slice was there before babysit.sh was started, so its run is resumed if there is one"
    resume=true
  fi
}

set_up_workers() { tpu_scripts/setup.sh "${slice_args[@]}" --type="$type" || use_restart "setup.sh failed"; }

launch() { # every launch after this one resumes, unless a worker finds no run to resume
  if $resume; then set -- --resume; fi
  resume=true
  tpu_scripts/run.sh "${run_args[@]}" "${train_args[@]}" "$@" || use_restart "run.sh failed"
}

stop_remaining_workers() { # they get a quarter of an hour to end by themselves
  wait_at_most "$MAX_POLLS" "some workers are still running, although the others have ended and stop.sh was run"
  ((polls < MAX_POLLS / 6)) || tpu_scripts/stop.sh "${slice_args[@]}" || true
}

finish() { # finish EXIT-CODE
  log "the training job ended with exit code $1"
  exit "$1"
}
