#!/usr/bin/env bash
# Usage: tpu_scripts/create.sh NAME --type v5litepod-8 --zone us-west4-a [--spot] [--valid-until 6h] [--project ID]
#                              [--dry-run]
# Requests a slice of TPU chips and returns without waiting for it. A --spot slice is cheaper, and Google Cloud may
# preempt it at any time. --valid-until cancels the request if there is no slice by then. --dry-run only prints the
# command.
set -euo pipefail
cd "$(dirname "$0")/.."
. tpu_scripts/lib/common.sh
. tpu_scripts/lib/gcloud.sh

parse_arguments "type zone valid-until project spot! dry-run!" "$@"
check_arguments no-config
facts=$(type_facts)
read -r type runtime chips hosts <<<"$facts"
price="on demand" requested="requested"
if is_given dry-run; then requested="would request"; fi
options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" --async)
if is_given spot; then price="spot" && options+=(--spot); fi
[[ -z $valid_until ]] || options+=(--valid-until-duration="$valid_until")
gcloud_tpu_or_explain queued-resources create "$name" "${options[@]}" || exit 1

say "" "create.sh $requested $name: $chips chip(s) on $hosts host(s), $price." \
  "To see its state:" "  tpu_scripts/status.sh $name $location" \
  "Once that is ACTIVE:" "  tpu_scripts/setup.sh $name $location --type $type"
say_how_to_delete
