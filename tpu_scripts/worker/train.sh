#!/usr/bin/env bash
# Usage, by job.sh: train.sh TRAIN-ARGUMENT...
# Runs the training to its end and leaves its exit code.
set -euo pipefail
cd "$(dirname "$0")/../../.."

echo $$ >run.pid
trap : TERM # when the machine goes down the training hears of it too, and this waits until it has saved
code=0
cd source
echo "--- $(date) grpo-jax train $(printf '%q ' "$@")"
../venv/bin/grpo-jax train "$@" || code=$?
echo "$code" >../run.exit
