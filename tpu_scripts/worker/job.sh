#!/usr/bin/env bash
# Usage, on a worker: job.sh launch NUMBER TRAIN-ARGUMENT... | undo NUMBER | status | log | follow | stop
# One training at a time: it holds run.lock for as long as it lives; NUMBER is of the call that started it. setsid and
# nohup take it out of the ssh session; systemd-run --user would need a lingering one, so root, for no more than that.
set -euo pipefail
cd "$(dirname "$0")/../../.."
host=$(hostname)

is_running() { ! flock --shared --nonblock run.lock true; } # looking keeps nobody from launching

launch() { # a second time the same is no mistake: gcloud repeats a command whose connection broke
  exec 9>>run.lock
  if ! flock --timeout 1 9; then
    [[ $(printf '%q ' "${@:2}") == "$(<run.command)" ]] && echo "$host is running it" && return
    echo "error: $host is running another training: tpu_scripts/stop.sh first" >&2 && return 1
  fi
  rm -f run.exit
  printf '%q ' "${@:2}" >run.command
  echo "$1" >run.number
  setsid nohup bash source/tpu_scripts/worker/train.sh "${@:2}" </dev/null >>run.log 2>&1 &
  echo "$host has started it"
}

status() {
  local state=bare
  if is_running; then state=running
  elif [[ -f run.exit ]]; then state="exited $(<run.exit)"
  elif [[ -f run.command ]]; then state=lost # it was killed without a word, as by a reboot
  elif [[ -f ready ]]; then state=ready; fi
  echo "$host $state $(tail -n 40 run.log 2>/dev/null | tr '\r' '\n' | awk -f source/tpu_scripts/worker/said.awk)"
}

stop() { is_running && pkill -TERM -P "$(<run.pid)" && echo "$host is told to stop" || echo "$host runs nothing"; }

case $1 in
  launch | status | stop) "$1" "${@:2}" ;;
  undo) if [[ -f run.number && $2 == "$(<run.number)" ]]; then stop; fi ;;
  log) tail -n 50 run.log | sed "s/^/$host: /" ;;
  follow) tail -n 50 -f run.log | sed -u "s/^/$host: /" ;;
esac
