#!/usr/bin/env bash
# Sourced: what babysit.sh does.
. tpu_scripts/lib/preparing.sh
again=false created=false

create() {
  tpu_scripts/create.sh "${terms[@]}" || person "the request was refused"
  asked=true created=true
}

set_up() { tpu_scripts/setup.sh "${slice[@]}" --type="$type" || spend "setting up failed"; }

launch() { # after the first time it resumes, unless there turned out to be nothing to resume
  if $again; then set -- --resume; fi
  again=true
  tpu_scripts/run.sh "${place[@]}" "${words[@]}" "$@" || spend "launching failed"
}

start_over() {
  spend "the slice was taken away"
  tpu_scripts/delete.sh "${slice[@]}" --yes || person "what is left of it cannot be deleted"
  asked=false gone="ABSENT|DELETING"
  $created || $again || tell "$name was there before this babysitter: if it has trained, that is resumed"
  $created || again=true
}

hurry() { # some workers have ended: the others get a while, then are stopped
  wait_up_to "$PATIENCE" "some workers go on after the others have ended, whatever they are told"
  ((polls < PATIENCE / 6)) || tpu_scripts/stop.sh "${slice[@]}" || true
}

finish() {
  tell "$name: the training ended with exit code $1"
  exit "$1"
}
