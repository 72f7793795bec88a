#!/usr/bin/env bash
# Usage, on a worker: bucket.sh BUCKET
# Mounts the bucket at ~/grpo-jax/bucket, and installs gcsfuse first if it is missing. Directories can be renamed, as
# checkpoints are once they are complete, and no metadata is cached, so a worker sees at once what the others write.
set -euo pipefail
cd "$(dirname "$0")/../../.."

if mountpoint --quiet bucket; then
  [[ $(findmnt --noheadings --output SOURCE --target bucket) == "$1" ]] && exit
  echo "error: $(hostname) has another bucket mounted. Unmount it first: fusermount -u ~/grpo-jax/bucket" >&2
  exit 1
fi
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl --fail --silent --show-error "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install --yes gcsfuse
fi
mkdir -p bucket
gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "$1" bucket >&2
echo "$(hostname) mounted $1"
