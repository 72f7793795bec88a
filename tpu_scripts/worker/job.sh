#!/usr/bin/env bash
# Usage, on a worker: job.sh launch NUMBER TRAIN-ARGUMENT... | undo NUMBER | status | log | follow | stop
# A worker runs one training job at a time, which holds run.lock until it ends. NUMBER identifies a launch: undo stops
# that one only. setsid and nohup keep the job alive after ssh ends; systemd-run --user would need root.
set -euo pipefail
cd "$(dirname "$0")/../../.."
host=$(hostname) scripts=source/tpu_scripts/worker

is_running() { ! flock --shared --nonblock run.lock true; } # shared: two checks at once do not block each other

launch() { # the same launch again is no error: gcloud repeats a command when its connection breaks
  exec 9>>run.lock
  if ! flock --timeout 1 9; then
    [[ $(printf '%q ' "${@:2}") == "$(<run.command)" ]] && echo "$host is already running this job" && return
    echo "error: $host is running another training job. First run tpu_scripts/stop.sh" >&2 && return 1
  fi
  rm -f run.exit run.command
  (umask 077 && printf '%q ' "${@:2}" >run.command) # it may hold a secret
  echo "$1" >run.number
  setsid nohup bash $scripts/train.sh "${@:2}" </dev/null >>run.log 2>&1 &
  echo $! >run.pid && echo "$host started the training job"
}

status() {
  local state=not-ready
  if is_running; then state=running
  elif [[ -f run.exit ]]; then state="exited $(<run.exit)"
  elif [[ -f run.command ]]; then state=killed # it left no exit code, as after a reboot
  elif [[ -f ready ]]; then state=ready; fi
  echo "$host $state $(tail -n 40 run.log 2>/dev/null | tr '\r' '\n' | awk -f $scripts/last_message.awk)"
}

stop() { is_running && pkill -TERM -P "$(<run.pid)" && echo "$host is told to stop" || echo "$host runs no job"; }

case $1 in
  launch | status | stop) "$1" "${@:2}" ;;
  undo) if [[ -f run.number && $2 == "$(<run.number)" ]]; then stop; fi ;;
  log) tail -n 50 run.log | sed "s/^/$host: /" ;;
  follow) tail -n 50 -f run.log | sed -u "s/^/$host: /" ;;
esac
