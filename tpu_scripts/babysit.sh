#!/usr/bin/env bash
# Usage: tpu_scripts/babysit.sh NAME --type v5litepod-8 --zone us-west4-a (--bucket gs://BUCKET | run.root=DIR after
#            CONFIG) [--spot] [--valid-until 6h] [--restarts 10] [--project ID] [--dry-run] CONFIG [train options]
# Creates a slice, sets it up and trains on it; after a preemption creates a new one and resumes. Its exit code is that
# of the training job, or 3 if a person must decide what to do. It does not delete the slice: delete.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh
. tpu_scripts/lib/babysit.sh

parse_arguments "type zone bucket valid-until restarts project spot! dry-run!" "$@"
check_arguments config
prepare
while poll; do
  case $state in
    ABSENT) if $request_seen; then wait_at_most 5 "somebody deleted the request"; else create_slice; fi ;;
    ACCEPTED | WAITING_FOR_RESOURCES) wait_for_next_poll ;; # in the queue, where nothing is billed
    CREATING | PROVISIONING | SUSPENDING | DELETING) wait_at_most "$MAX_POLLS" "the request stays $state" ;;
    SUSPENDED) if [[ $initiator == USER ]]; then give_up "somebody suspended the slice"; else replace_slice; fi ;;
    FAILED) if is_about_capacity "$reason"; then replace_slice; else give_up "the request failed: $reason"; fi ;;
    "slice PREEMPTED" | "slice TERMINATED") replace_slice ;;
    "slice "CREATING | "slice "STARTING | "slice "DELETING | "slice "RE*ING)
      wait_at_most "$MAX_POLLS" "the slice stays ${state#slice }" ;;
    "slice STOPPING" | "slice STOPPED") give_up "somebody stopped the slice" ;;
    "workers not-ready") set_up_workers ;;
    "workers ready") launch ;;
    "workers running") resume=true && wait_for_next_poll ;;
    "workers partly-ended") stop_remaining_workers ;;
    "workers interrupted") use_restart "the training job was interrupted" && resume=true && launch ;;
    "workers without-a-run") use_restart "there was no run to resume" && resume=false && launch ;;
    "workers ended "*) finish "${state#workers ended }" ;;
    unreachable | "workers unreachable")
      wait_at_most $((MAX_POLLS / 6)) "gcloud or the workers do not answer; see tpu_scripts/status.sh" ;;
    *) give_up "babysit.sh does not know the state \"$state\"" ;;
  esac
done
