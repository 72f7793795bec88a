#!/usr/bin/env bash
# Sourced: what gcloud's failures mean.
. tpu_scripts/lib/checks.sh

explain() { # what gcloud said, on stdin -> a sentence with a way out
  local list="gcloud compute tpus queued-resources list $where" said
  said=$(cat)
  case $said in
    *accelerator*"not found in zone"* | *"or it may not exist"* | *"nvalid location"*)
      echo "$zone has no such TPU. It has: gcloud compute tpus accelerator-types list $where. $ZONES" ;;
    *[Qq]uota* | *RESOURCE_EXHAUSTED*)
      echo "The quota is too small. Spot has one of its own; failed and suspended requests hold it too: $list" ;;
    *PERMISSION_DENIED* | *"does not have permission"*)
      echo "This account (gcloud auth list) may not do that; it needs the role TPU Admin, the project the TPU API." ;;
    *ALREADY_EXISTS* | *"already exists"*)
      echo "There is a $name in $zone. Take another name, or: tpu_scripts/delete.sh $name $where" ;;
    *NOT_FOUND* | *"not found"*) echo "There is no $name in $zone. What there is: $list" ;;
    *"attribute [project]"*) echo "Which project? Add --project ID, or: gcloud config set project ID" ;;
    *"active account"* | *"auth login"*) echo "gcloud does not know who you are: gcloud auth login" ;;
    *) echo "gcloud failed." ;;
  esac
}
