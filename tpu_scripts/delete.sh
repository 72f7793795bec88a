#!/usr/bin/env bash
# Usage: tpu_scripts/delete.sh NAME --zone us-west4-a [--yes] [--async] [--project ID] [--dry-run]
# Deletes the request with its slice and everything on its disks, after a question; --yes asks none. This is what ends
# the costs. It waits until it is done; with --async it does not.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh

parse "zone project yes! async! dry-run!" "$@"
check nothing
if ! is_given yes && ! is_given dry-run; then
  read -r -p "Delete $name in $zone and everything on its disks? [y/N] " answer || answer=""
  [[ $answer == [yY]* ]] || die "Nothing is deleted, and $name is paid for as before. Without the question: --yes" 1
fi
options=(--force --quiet) # --force: the slice as well; --quiet: gcloud does not ask again
if is_given async; then options+=(--async); fi
ask queued-resources delete "$name" "${options[@]}" || exit 1
if is_given dry-run; then
  is_given yes || say "Without --dry-run it asks first; with --yes it does not."
  exit
fi
say "$name is deleted, or about to be. What else is paid for: gcloud compute tpus queued-resources list $where"
