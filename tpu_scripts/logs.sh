#!/usr/bin/env bash
# Usage: tpu_scripts/logs.sh NAME --zone us-west4-a [-f | --follow] [--worker N] [--project ID] [--dry-run]
# The last lines of the training's log on every worker, or on one; --follow goes on until it is interrupted (the
# training does not mind).
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh

parse "zone worker project follow! dry-run!" "$@"
check nothing
if is_given follow; then what=follow; else what=log; fi
on_workers "${worker:-all}" "bash grpo-jax/source/tpu_scripts/worker/job.sh $what"
