#!/usr/bin/env bash
# Usage: tpu_scripts/babysit.sh NAME --type v5litepod-8 --zone us-west4-a (--bucket gs://BUCKET | run.root=DIR after
#            CONFIG) [--spot] [--valid-until 6h] [--restarts 10] [--project ID] [--dry-run] CONFIG [train options]
# Sees a training through: creates the slice, sets it up, runs, and starts over and resumes when it is taken away. Ends
# with the training's exit code, or with 3 where a person has to decide. The slice stays until delete.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/babysitting.sh

parse "type zone bucket valid-until restarts project spot! dry-run!" "$@"
check config
prepare
while look; do
  case $situation in
    ABSENT) if $asked; then wait_up_to 5 "somebody has deleted it"; else create; fi ;;
    ACCEPTED | WAITING_FOR_RESOURCES) pause ;; # in the queue, where nothing is paid
    CREATING | PROVISIONING | SUSPENDING | DELETING) wait_up_to "$PATIENCE" "it stays $situation" ;;
    SUSPENDED) if [[ $who == USER ]]; then person "somebody has suspended it"; else start_over; fi ;;
    FAILED) if [[ $why =~ [Pp]reempt|[Cc]apacity|[Uu]navailab ]]; then start_over; else person "it failed: $why"; fi ;;
    "slice PREEMPTED" | "slice TERMINATED") start_over ;;
    "slice "CREATING | "slice "STARTING | "slice "DELETING | "slice "RE*ING) wait_up_to "$PATIENCE" "the $situation" ;;
    "slice STOPPING" | "slice STOPPED") person "somebody has stopped it" ;;
    "run bare") set_up ;;
    "run ready") launch ;;
    "run running") again=true && pause ;;
    "run split") hurry ;;
    "run cut") spend "the training was cut off" && again=true && launch ;;
    "run fresh") spend "there was nothing to resume yet" && again=false && launch ;;
    "run ended "*) finish "${situation#run ended }" ;;
    unreachable | "run silent") wait_up_to $((PATIENCE / 6)) "it does not answer; see tpu_scripts/status.sh" ;;
    *) person "no script here knows the state \"$situation\"" ;;
  esac
done
