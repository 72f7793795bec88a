#!/usr/bin/env bash
# Usage: tpu_scripts/run.sh NAME --zone us-west4-a (--bucket gs://BUCKET | run.root=DIR after CONFIG) [--project ID]
#                           [--dry-run] CONFIG [train options]
# Starts `grpo-jax train CONFIG ...` on all workers, detached: this machine may sleep. The bucket is mounted on every
# worker and keeps the run, so that it outlives the slice; run.root=DIR is for a directory that all workers share.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh

parse "zone bucket project dry-run!" "$@"
check config
root=""
for word in "${words[@]:1}"; do
  case $word in
    run.root=*) root=$word ;;
    --zone* | --bucket* | --project* | --worker* | --dry-run) die "$word goes before the config." ;;
  esac
done
[[ -n $root$bucket ]] || die "The run needs a place that all workers share: add --bucket gs://NAME, or run.root=DIR."
[[ -z $root || -z $bucket ]] || die "Both --bucket and $root say where the run is kept: leave out one."

here=grpo-jax/source/tpu_scripts/worker
if [[ -n $bucket ]]; then
  on_workers all "bash $here/bucket.sh ${bucket#gs://}" || die "$bucket could not be mounted on every worker." 1
  words+=(run.root=../bucket/runs)
fi
number=$(date +%s)$$
if ! on_workers all "bash $here/job.sh launch $number $(quoted "${words[@]}")"; then
  on_workers all "bash $here/job.sh undo $number" || true
  die "It did not start on every worker (gcloud names it above), so it is stopped where it did." 1
fi
if is_given dry-run; then exit; fi
say "" "It runs on every worker. How it is doing:" "  tpu_scripts/status.sh $name $where" \
  "  tpu_scripts/logs.sh $name $where -f"
say_what_is_paid
