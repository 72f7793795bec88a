#!/usr/bin/env bash
# Usage, on a worker: setup.sh
# Puts the tree that was copied in its place and installs it. uv comes from PyPI; it fetches Python 3.12 where there is
# none, because the TPU images have Python 3.10.
set -euo pipefail
cd "$(dirname "$0")/../../.."

if ! flock --shared --nonblock run.lock true; then
  echo "error: $(hostname) is training, and what it runs would change under it: tpu_scripts/stop.sh first" >&2
  exit 1
fi
rm -rf source ready
mv incoming source
[[ -x uv/bin/uv ]] || python3 -m pip install --quiet --target=uv uv
[[ -x venv/bin/python ]] || uv/bin/uv venv --quiet --python 3.12 venv
uv/bin/uv pip install --quiet --python venv/bin/python --reinstall-package grpo-jax "./source[tpu]"
echo "$(hostname) has installed it"
