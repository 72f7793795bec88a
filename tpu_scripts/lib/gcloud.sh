#!/usr/bin/env bash
# Sourced after common.sh: accelerator types, calls of gcloud, and the states of the request, the slice and the workers.
exec 3>&1 # where --dry-run prints, even inside $(...)

type_facts() { # --type v5e-16 -> "v5litepod-16 v2-alpha-tpuv5-lite 16 4": full name, runtime version, chips, hosts
  local kind=${type%%-*} size=${type#*-} runtime="" cores=1 sizes="1 4 8 16 32 64 128 256" nearest chips hosts=1
  [[ -n $type ]] || die "The accelerator type is missing: add --type, such as --type v5litepod-8."
  case $kind in # the sizes of v5p and v4 count cores, two on each chip; the other sizes count chips
    v5litepod | v5e | v5lite) kind=v5litepod runtime=v2-alpha-tpuv5-lite ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
    v5p) runtime=v2-alpha-tpuv5 cores=2 sizes="8 16 32 64 $(seq 128 128 12288)" ;;
    v4) runtime=tpu-ubuntu2204-base cores=2 sizes="8 16 32 64 128 256 512 1024 2048 4096" ;;
    tpu7* | v7*) die "The Cloud TPU API does not offer TPU7x; docs/tpu7x.md says how to rent it." ;;
    *6*) nearest=v6e ;;
    *p*) nearest=v5p ;;
    *[234]*) nearest=v4 ;;
    *) nearest=v5litepod ;;
  esac
  [[ -n $runtime ]] ||
    die "An accelerator type is v5litepod, v6e, v5p or v4, a hyphen and a size; got $(quote "$type"). Try $nearest-8."
  [[ $size =~ ^[1-9][0-9]{0,5}$ ]] || die "An accelerator type ends with a size; got $(quote "$type"). Try $kind-8."
  nearest=$(nearest_size "$size" "$sizes")
  ((nearest == size)) || die "There is no $kind-$size. The nearest is $kind-$nearest."
  chips=$((size / cores))
  ((cores == 1 && chips <= 8)) || hosts=$((chips / 4))
  printf '%s %s %s %s\n' "$kind-$size" "$runtime" "$chips" "$hosts"
}

nearest_size() { # nearest_size SIZE "SIZES": of two that are equally near, the smaller
  tr -s ' \n' '\n' <<<"$2" | awk -v n="$1" '
    { d = $1 > n ? $1 - n : n - $1 }
    NR == 1 || d < least { least = d; best = $1 }
    END { print best }'
}

run_or_print() { # run_or_print COMMAND ARGUMENT...: with --dry-run prints the command, so that it can be pasted
  if is_given dry-run; then printf '%s\n' "$(quote "$@")" >&3; else "$@"; fi
}

gcloud_tpu() { run_or_print gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}; }

on_workers() { gcloud_tpu tpu-vm ssh "$name" --worker="$1" --command "$2"; } # on_workers all|NUMBER SHELL-COMMAND

gcloud_tpu_or_explain() { # for short calls: after a failure says what it means, and then what gcloud said
  local said code=0
  { said=$(gcloud_tpu "$@" 2>&1 >&4) || code=$?; } 4>&1 # standard output passes, standard error is kept
  ((code == 0)) || say "error: $(explain_failure "$said")"
  [[ -z $said ]] || say "$said"
  return "$code"
}

explain_failure() { # explain_failure WHAT-GCLOUD-SAID: prints a sentence that says what to do
  local list="gcloud compute tpus queued-resources list $location"
  case $1 in
    *accelerator*"not found in zone"* | *"or it may not exist"* | *"nvalid location"*)
      echo "The zone $zone does not exist or has no TPUs of this type." \
        "To list its types: gcloud compute tpus accelerator-types list $location. $ZONES" ;;
    *[Qq]uota* | *RESOURCE_EXHAUSTED*)
      echo "The quota is too small. Spot has its own quota. Failed and suspended requests use quota too: $list" ;;
    *PERMISSION_DENIED* | *"does not have permission"*)
      echo "This account (gcloud auth list) does not have permission. It needs the role TPU Admin, and the project" \
        "needs the TPU API: gcloud services enable tpu.googleapis.com" ;;
    *ALREADY_EXISTS* | *"already exists"*)
      echo "There already is a $name in $zone. Choose another name, or delete it: $(delete_command)" ;;
    *NOT_FOUND* | *"not found"*) echo "There is no $name in $zone. To list what there is: $list" ;;
    *"attribute [project]"*) echo "The project is missing: add --project ID, or run: gcloud config set project ID" ;;
    *"active account"* | *"auth login"*) echo "gcloud has no active account. Run: gcloud auth login" ;;
    *) echo "gcloud failed. It said:" ;;
  esac
}

request_state() { # prints STATE|INITIATOR|REASON, or ABSENT if there is no such request
  local said fields='value[separator="|"](state.state,state.stateInitiator,state.failedData.error.message)'
  if { said=$(gcloud_tpu_or_explain queued-resources describe "$name" --format "$fields" 2>&1 >&4); } 4>&1; then
    return
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    say "$said" && return 1
  fi
}

slice_state() { gcloud_tpu_or_explain tpu-vm describe "$name" --format 'value(state)'; }

worker_states() { # prints for each worker: HOST not-ready|ready|running|killed|exited [EXIT-CODE] [MESSAGE OF ITS LOG]
  local job=grpo-jax/source/tpu_scripts/worker/job.sh
  on_workers all "if test -f $job; then bash $job status; else hostname | sed 's/$/ not-ready/'; fi"
}
