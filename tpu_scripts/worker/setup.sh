#!/usr/bin/env bash
# Usage, on a worker: setup.sh
# Moves the copied files to ~/grpo-jax/source and installs them. The TPU images have Python 3.10, so uv (from PyPI)
# downloads Python 3.12.
set -euo pipefail
cd "$(dirname "$0")/../../.."

if ! flock --shared --nonblock run.lock true; then
  echo "error: $(hostname) runs a training job, whose files would change. First run tpu_scripts/stop.sh" >&2
  exit 1
fi
rm -rf source ready
mv incoming source
[[ -x uv/bin/uv ]] || python3 -m pip install --quiet --target=uv uv
[[ -x venv/bin/python ]] || uv/bin/uv venv --quiet --seed --python 3.12 venv # --seed: with pip, which fetches smollm2
uv/bin/uv pip install --quiet --python venv/bin/python --reinstall-package grpo-jax "./source[tpu]"
echo "$(hostname) installed grpo-jax"
