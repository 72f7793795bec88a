#!/usr/bin/env bash
# Sourced: what babysit.sh tells the other scripts.
. tpu_scripts/lib/watching.sh
type="" slice=() terms=() place=()

prepare() { # the arguments of the other scripts, which refuse bad ones before anything is rented
  local said word kept=()
  slice=("$name" --zone="$zone" ${project:+--project="$project"})
  terms=("${slice[@]}" --type="$type" ${valid_until:+--valid-until="$valid_until"})
  if is_given spot; then terms+=(--spot); fi
  place=("${slice[@]}" ${bucket:+--bucket="$bucket"})
  said=$(rehearse 2>&1 >/dev/null) || { grep '^error: ' <<<"$said" >&2 || say "$said" >&2; exit 2; }
  if is_given dry-run; then
    rehearse
    say "That is all if all goes well. It looks how things are every 15 seconds, later every two minutes, and starts" \
      "over at most ${restarts:-10} times; tpu_scripts/README.md says when."
    exit
  fi
  for word in "${words[@]}"; do if [[ $word == --resume ]]; then again=true; else kept+=("$word"); fi; done
  words=("${kept[@]}") # a launch adds --resume as long as there may be something to resume
  trap 'say "$name may still be paid for: tpu_scripts/delete.sh $name $where"' EXIT
}

rehearse() { # what happens if all goes well
  tpu_scripts/create.sh "${terms[@]}" --dry-run &&
    tpu_scripts/setup.sh "${slice[@]}" --type="$type" --dry-run &&
    tpu_scripts/run.sh "${place[@]}" --dry-run "${words[@]}"
}
