#!/usr/bin/env bash
# Usage, by job.sh: train.sh TRAIN-ARGUMENT...
# Runs `grpo-jax train` and writes its exit code to run.exit.
set -euo pipefail
cd "$(dirname "$0")/../../.."

trap : TERM # at a shutdown the training job gets SIGTERM too, and this script waits until it has saved
code=0
cd source
echo "--- $(date) grpo-jax train $(printf '%q ' "$@")"
../venv/bin/grpo-jax train "$@" || code=$?
echo "$code" >../run.exit
