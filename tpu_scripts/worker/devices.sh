#!/usr/bin/env bash
# Usage, on all workers at once: devices.sh CHIPS
# Fails unless the workers together see this number of chips. A worker waits at most 300 seconds for the others. If all
# is well, it creates the file `ready`.
set -euo pipefail
cd "$(dirname "$0")/../../.."

timeout 300 venv/bin/python - "$1" <<'P'
import sys

import jax

wanted, found = int(sys.argv[1]), jax.device_count()
kind = f"{jax.default_backend()}, {jax.devices()[0].device_kind}"
print(f"worker {jax.process_index()}: {found} of {wanted} chips, {jax.local_device_count()} of them here ({kind})")
sys.exit(found != wanted or jax.default_backend() != "tpu")
P
touch ready
