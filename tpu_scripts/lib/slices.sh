#!/usr/bin/env bash
# Sourced after gcloud.sh: what an accelerator type is made of.
type="" # --type

slice_facts() { # slice_facts v5e-16 -> "v5litepod-16 v2-alpha-tpuv5-lite 16 4": type, runtime, chips and hosts
  local kind=${1%%-*} size=${1#*-} runtime="" cores=1 sizes="1 4 8 16 32 64 128 256" nearest chips hosts=1
  [[ -n $1 ]] || die "The accelerator type is missing: add --type, such as --type v5litepod-8."
  case $kind in
    v5litepod | v5e | v5lite) kind=v5litepod runtime=v2-alpha-tpuv5-lite ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
    v5p) runtime=v2-alpha-tpuv5 cores=2 sizes="8 16 32 64 $(seq 128 128 12288)" ;; # they count cores, as v4's do
    v4) runtime=tpu-ubuntu2204-base cores=2 sizes="8 16 32 64 128 256 512 1024 2048 4096" ;;
    tpu7* | v7*) die "The Cloud TPU API does not rent TPU7x; docs/tpu7x.md says what does." ;;
    *6*) nearest=v6e ;;
    *p*) nearest=v5p ;;
    *[234]*) nearest=v4 ;;
    *) nearest=v5litepod ;;
  esac
  [[ -n $runtime ]] || die "A type is v5litepod, v6e, v5p or v4 and a size; got $(quoted "$1"). Try $nearest-8."
  [[ $size =~ ^[1-9][0-9]{0,5}$ ]] || die "A type ends in its size; got $(quoted "$1"). Try $kind-8."
  nearest=$(nearest "$size" "$sizes")
  ((nearest == size)) || die "There is no $kind-$size. The nearest is $kind-$nearest."
  chips=$((size / cores))
  ((cores == 1 && chips <= 8)) || hosts=$((chips / 4))
  printf '%s %s %s %s\n' "$kind-$size" "$runtime" "$chips" "$hosts"
}

nearest() { # nearest NUMBER "NUMBERS": the smaller of two that are equally near
  tr -s ' \n' '\n' <<<"$2" | awk -v n="$1" '
    { d = $1 > n ? $1 - n : n - $1 }
    NR == 1 || d < least { least = d; best = $1 }
    END { print best }'
}
