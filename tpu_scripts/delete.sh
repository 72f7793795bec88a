#!/usr/bin/env bash
# Usage: tpu_scripts/delete.sh NAME --zone us-west4-a [--yes] [--async] [--project ID] [--dry-run]
# Deletes the request, its slice and everything on the slice's disks; from then on nothing is billed for them. It asks
# first, unless --yes is given, and waits until all is deleted, unless --async is given.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "zone project yes! async! dry-run!" "$@"
check_arguments no-config
if ! is_given yes && ! is_given dry-run; then
  read -r -p "Delete $name in $zone and everything on its disks? [y/N] " answer || answer=""
  [[ $answer == [yY]* ]] || die "Nothing was deleted, and $name is still billed. --yes skips this question." 1
fi
options=(--force --quiet) outcome="is deleted" # --force: the slice too; --quiet: gcloud does not ask again
if is_given async; then options+=(--async) outcome="is being deleted"; fi
gcloud_tpu_or_explain queued-resources delete "$name" "${options[@]}" || exit 1
if is_given dry-run; then
  is_given yes || say "Without --dry-run, delete.sh asks before it runs this command; with --yes it does not ask."
  exit
fi
say "$name $outcome. To list what else may be billed: gcloud compute tpus queued-resources list $location"
