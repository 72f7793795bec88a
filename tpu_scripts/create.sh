#!/usr/bin/env bash
# Usage: tpu_scripts/create.sh NAME --type v5litepod-8 --zone us-west4-a [--spot] [--valid-until 6h] [--project ID]
#                              [--dry-run]
# Queues a request for a slice of TPU chips and returns. --spot is cheaper and may be taken away at any time;
# --valid-until gives up if there is none by then. --dry-run prints the command and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/gcloud.sh
. tpu_scripts/lib/slices.sh

parse "type zone valid-until project spot! dry-run!" "$@"
check nothing
facts=$(slice_facts "$type")
read -r accelerator runtime chips hosts <<<"$facts"
terms="on demand" asks=asks
if is_given dry-run; then asks="would ask"; fi
options=(--node-id="$name" --accelerator-type="$accelerator" --runtime-version="$runtime" --async)
if is_given spot; then terms="as spot" && options+=(--spot); fi
[[ -z $valid_until ]] || options+=(--valid-until-duration="$valid_until")
ask queued-resources create "$name" "${options[@]}" || exit 1

slice="$name $where"
say "" "$name $asks for $chips chip(s) on $hosts host(s), $terms." \
  "Nothing is paid while it waits. From ACTIVE on every chip is paid for until it is deleted, idle or not:" \
  "  tpu_scripts/delete.sh $slice" \
  "Where it is:" "  tpu_scripts/status.sh $slice" \
  "Once it is ACTIVE:" "  tpu_scripts/setup.sh $slice --type $accelerator"
