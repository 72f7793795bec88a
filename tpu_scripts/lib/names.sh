#!/usr/bin/env bash
# Sourced: quotes words for a shell, and refuses names that Google Cloud would refuse.
. tpu_scripts/lib/common.sh
ZONES="All zones: gcloud compute tpus locations list"

quoted() { # words as a shell reads them back, in single quotes where it would take them for something else
  local word line=""
  for word in "$@"; do
    if [[ -z $word || $word == *[!-A-Za-z0-9_=/:.,@%+]* ]]; then
      word=$(printf '%s.' "$word" | sed "s/'/'\\\\''/g") # the dot keeps newlines at the end
      word="'${word%.}'"
    fi
    line+=" $word"
  done
  printf '%s' "${line# }"
}

matches() { # matches VALUE PATTERN RULE
  local LC_ALL=C
  [[ -z $1 || $1 =~ ^($2)$ ]] || die "$3; got $(quoted "$1")"
}

check_name() {
  local LC_ALL=C near
  [[ -n $name ]] || die "The slice's name is missing; see ${0##*/} --help."
  near=$(printf %s "$name" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' - | sed 's/^[^a-z]*//' | cut -c 1-63)
  near=${near%-}
  [[ $name == "$near" ]] ||
    die "A slice is named by lower-case letters, digits and single hyphens; got $(quoted "$name"). Try ${near:-tpu}."
}

check_zone() {
  local LC_ALL=C near=us-west4-a
  [[ -n $zone ]] || die "The zone is missing: add --zone, such as --zone $near. $ZONES"
  [[ ! $zone =~ ^[a-z]+-[a-z]+[0-9]+ ]] || near=${BASH_REMATCH[0]}-a
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] ||
    die "A zone is a region and a letter; got $(quoted "$zone"). Try $near. $ZONES"
}
