#!/usr/bin/env bash
# Usage: tpu_scripts/logs.sh NAME --zone us-west4-a [-f | --follow] [--worker N] [--project ID] [--dry-run]
# Prints the last lines of the training log of every worker, or of one. --follow then prints new lines until it is
# interrupted, which does not interrupt the training job.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "zone worker project follow! dry-run!" "$@"
check_arguments no-config
if is_given follow; then command=follow; else command=log; fi
on_workers "${worker:-all}" "bash grpo-jax/source/tpu_scripts/worker/job.sh $command"
