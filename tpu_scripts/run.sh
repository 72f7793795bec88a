#!/usr/bin/env bash
# Usage: tpu_scripts/run.sh NAME --zone us-west4-a (--bucket gs://BUCKET | run.root=DIR after CONFIG) [--project ID]
#                           [--dry-run] CONFIG [train options]
# Starts `grpo-jax train CONFIG ...` on all workers. It keeps running when this machine disconnects. --bucket mounts the
# bucket on every worker and saves the run there; run.root=DIR saves it in another directory that all workers share.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "zone bucket project dry-run!" "$@"
check_arguments config
root=""
for word in "${train_args[@]:1}"; do
  case $word in
    run.root=*) root=$word ;;
    --zone* | --bucket* | --project* | --worker* | --dry-run) die "$word must come before the config." ;;
  esac
done
[[ -n $root$bucket ]] ||
  die "All workers need one place to save the run: add --bucket gs://NAME before the config, or run.root=DIR after it."
[[ -z $root || -z $bucket ]] || die "Both --bucket and $root say where the run is saved: leave out one."

worker_scripts=grpo-jax/source/tpu_scripts/worker
if [[ -n $bucket ]]; then
  on_workers all "bash $worker_scripts/bucket.sh ${bucket#gs://}" || die "Not every worker could mount $bucket." 1
  train_args+=(run.root=../bucket/runs)
fi
launch_number=$(date +%s)$$
if ! on_workers all "bash $worker_scripts/job.sh launch $launch_number $(quote "${train_args[@]}")"; then
  on_workers all "bash $worker_scripts/job.sh undo $launch_number" || true
  die "Not every worker started (gcloud's message above names them); those that did start were told to stop." 1
fi
if is_given dry-run; then exit; fi
say "" "The training job runs on every worker. To watch it:" "  tpu_scripts/status.sh $name $location" \
  "  tpu_scripts/logs.sh $name $location -f"
say_how_to_delete
