#!/usr/bin/env bash
# Usage: tpu_scripts/setup.sh NAME --type v5litepod-8 --zone us-west4-a [--project ID] [--dry-run]
# Copies the last commit to every worker, installs it there, and checks that the workers together see all chips.
# Each worker downloads uv and the packages from PyPI, and Python 3.12 from GitHub if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "type zone project dry-run!" "$@"
check_arguments no-config
facts=$(type_facts)
read -r _ _ chips _ <<<"$facts"
[[ -e .git ]] ||
  die "setup.sh copies the last commit, and this folder is not a git clone: run it in a clone of the repository."
changed=$(git status --porcelain | wc -l)
((changed == 0)) || say "note: the last commit is copied; $((changed)) file(s) have changes that are not committed"

run_or_print mkdir -p build
run_or_print git archive --format=tar.gz --output=build/grpo-jax.tar.gz HEAD
gcloud_tpu tpu-vm scp build/grpo-jax.tar.gz "$name:" --worker=all ||
  die "Copying to the workers failed. Check that the slice is READY: tpu_scripts/status.sh $name $location" 1
new=grpo-jax/incoming
unpack="rm -rf $new && mkdir -p $new && tar -xzf grpo-jax.tar.gz -C $new"
on_workers all "$unpack && bash $new/tpu_scripts/worker/setup.sh" ||
  die "Installing failed on a worker that gcloud names above. Remove the cause and run setup.sh again." 1

ssh="gcloud compute tpus tpu-vm ssh $name --zone=$zone${project:+ --project=$project} --worker=all"
on_workers all "bash grpo-jax/source/tpu_scripts/worker/devices.sh $chips" ||
  die "The workers do not see all $chips chips. What uses them: $ssh --command='sudo fuser -v /dev/accel* /dev/vfio/*'
If nothing does, a killed process left its lock file. To remove it: $ssh --command='sudo rm -f /tmp/libtpu_lockfile'" 1
if is_given dry-run; then exit; fi
say "" "Every worker is ready. To start training:" "  tpu_scripts/run.sh $name $location --bucket gs://BUCKET CONFIG"
say_how_to_delete
