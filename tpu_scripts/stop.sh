#!/usr/bin/env bash
# Usage: tpu_scripts/stop.sh NAME --zone us-west4-a [--project ID] [--dry-run]
# Asks the training job on every worker to save and end (SIGTERM). The slice stays and is still billed. If babysit.sh is
# running, it resumes the run: end it first.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "zone project dry-run!" "$@"
check_arguments no-config
on_workers all "bash grpo-jax/source/tpu_scripts/worker/job.sh stop"
if is_given dry-run; then exit; fi
say_how_to_delete
