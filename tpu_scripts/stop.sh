#!/usr/bin/env bash
# Usage: tpu_scripts/stop.sh NAME --zone us-west4-a [--project ID] [--dry-run]
# Asks the training on every worker to save and end (SIGTERM); a babysitter that still runs resumes it. The slice
# stays, and is paid for.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh

parse "zone project dry-run!" "$@"
check nothing
on_workers all "bash grpo-jax/source/tpu_scripts/worker/job.sh stop"
if is_given dry-run; then exit; fi
say_what_is_paid
