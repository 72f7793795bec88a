#!/usr/bin/env bash
# Usage: tpu_scripts/setup.sh NAME --type v5litepod-8 --zone us-west4-a [--project ID] [--dry-run]
# Copies the last commit to every worker, installs it there, and checks that the workers see all chips together.
# Each worker downloads uv and the packages from PyPI and, where it is missing, Python 3.12 from GitHub.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh
. tpu_scripts/lib/slices.sh

parse "type zone project dry-run!" "$@"
check nothing
facts=$(slice_facts "$type")
read -r _ _ chips _ <<<"$facts"
[[ -e .git ]] ||
  die "This is no clone, and what is copied is the last commit: run setup.sh in a git clone of the repository."
changed=$(git status --porcelain | wc -l)
((changed == 0)) || say "note: only what is committed is copied; $((changed)) file(s) here differ from the last commit"

run mkdir -p build
run git archive --format=tar.gz --output=build/grpo-jax.tar.gz HEAD
tpu tpu-vm scp build/grpo-jax.tar.gz "$name:" --worker=all ||
  die "Copying failed; is the slice ACTIVE? tpu_scripts/status.sh $name $where" 1
new=grpo-jax/incoming
unpack="rm -rf $new && mkdir -p $new && tar -xzf grpo-jax.tar.gz -C $new"
on_workers all "$unpack && bash $new/tpu_scripts/worker/setup.sh" ||
  die "Setting up failed; gcloud names the worker above. It may be repeated once the cause is gone." 1

ssh="gcloud compute tpus tpu-vm ssh $name --zone=$zone${project:+ --project=$project} --worker=all"
on_workers all "bash grpo-jax/source/tpu_scripts/worker/devices.sh $chips" ||
  die "The workers do not see all $chips chips. Who holds them: $ssh --command='sudo fuser -v /dev/accel* /dev/vfio/*'
If nobody does, a dead process left its lock: $ssh --command='sudo rm -f /tmp/libtpu_lockfile'" 1
if is_given dry-run; then exit; fi
say "" "Every worker is ready. Next:" "  tpu_scripts/run.sh $name $where --bucket gs://YOURS CONFIG"
say_what_is_paid
