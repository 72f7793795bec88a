#!/usr/bin/env bash
# Sourced: how babysit.sh looks, waits and gives up.
. tpu_scripts/lib/states.sh
situation="" who="" why="" polls=0 used=0
asked=false gone=ABSENT # whether there has been a request, and the states that do not tell of one
PATIENCE=${TPU_PATIENCE:-60} # polls, of two minutes at last, for what should be a matter of minutes

tell() { say "$(date +%H:%M:%S) $*"; }

look() { # sets the situation: the request's state, or once that is ACTIVE the slice's, or once that is READY the run's
  local before=$situation answer
  situation=unreachable
  if answer=$(request_state); then
    IFS='|' read -r situation who why <<<"$answer"
    [[ $situation =~ ^($gone)$ ]] || asked=true
    if [[ $situation == ACTIVE ]]; then
      if answer=$(node_state); then situation="slice $answer"; else situation=unreachable; fi
    fi
    if [[ $situation == "slice READY" ]]; then
      answer=$(worker_states 2>/dev/null) || answer=""
      situation="run $(awk -f tpu_scripts/lib/verdict.awk <<<"$answer")"
    fi
  fi
  if [[ $situation == "$before" ]]; then polls=$((polls + 1)); else polls=0 && tell "$name: $situation"; fi
}

pause() { sleep $((${TPU_POLL_SECONDS:-15} << (polls < 3 ? polls : 3))); } # the tests poll without waiting

wait_up_to() { # wait_up_to POLLS COMPLAINT
  ((polls < $1)) || person "$2"
  pause
}

spend() { # spend REASON: one of the restarts
  ((used < ${restarts:-10})) || person "$1, and all ${restarts:-10} restarts are used up (--restarts)"
  used=$((used + 1))
  tell "$1; restart $used of ${restarts:-10}"
}

person() { die "$name: $1. This needs a person." 3; }
