#!/usr/bin/env bash
# Sourced first by every script: messages, quoting, reading and checking the arguments. It must run in macOS's bash 3.2.
name="" zone="" project="" type="" valid_until="" bucket="" worker="" restarts="" # the slice's name; values of options
given_flags=" " train_args=() location="" # CONFIG [train options]; --zone ZONE [--project ID]
ZONES="To list all zones: gcloud compute tpus locations list"

say() { printf '%s\n' "$@" >&2; }
die() { say "error: ${1//$'\n'/ }" && exit "${2:-2}"; } # die MESSAGE [EXIT-CODE]: prints the message on one line
delete_command() { echo "tpu_scripts/delete.sh $name $location"; }
say_how_to_delete() {
  say "From ACTIVE on, every chip is billed until the slice is deleted, even when idle:" "  $(delete_command)"
}

quote() { # prints the words so that a shell reads them back unchanged, in single quotes where that is needed
  local word line=""
  for word in "$@"; do
    if [[ -z $word || $word == *[!-A-Za-z0-9_=/:.,@%+]* ]]; then
      word=$(printf '%s.' "$word" | sed "s/'/'\\\\''/g") # the dot protects newlines at the end from $(...)
      word="'${word%.}'"
    fi
    line+=" $word"
  done
  printf '%s' "${line# }"
}

is_given() { [[ $given_flags == *" $1 "* ]]; } # is_given FLAG
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "tpu_scripts/${0##*/}"; }

parse_arguments() { # parse_arguments "OPTION... FLAG!..." ARGUMENT...: a flag is an option without a value
  local accepted=" $1 " option
  shift
  while (($#)); do
    option=${1#--}
    case $1 in
      -h | --help) usage && exit 0 ;;
      -f) set -- --follow "${@:2}" && continue ;;
      --?*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --*)
        if [[ $accepted == *" $option! "* ]]; then
          given_flags+="$option "
        elif [[ $accepted == *" $option "* ]]; then
          [[ -n ${2-} ]] || die "--$option needs a value; see ${0##*/} --help."
          printf -v "$(tr - _ <<<"$option")" %s "$2" && shift
        else
          [[ $option != worker ]] || die "${0##*/} always uses all workers of the slice: leave out --worker."
          die "${0##*/} has no option $1; see ${0##*/} --help."
        fi ;;
      *) if [[ -z $name ]]; then name=$1; else train_args=("$@") && break; fi ;;
    esac
    shift
  done
  location="--zone $zone${project:+ --project $project}"
}

check_arguments() { # check_arguments config | no-config: refuses bad arguments before gcloud is called
  check_name
  check_zone
  check_value "$project" '([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]' \
    "--project must be a project ID (to list yours: gcloud projects list)"
  check_value "$bucket" 'gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]' \
    "--bucket must be gs://NAME, without a folder (to list yours: gcloud storage ls)"
  check_value "$valid_until" '([0-9]+[smhd])+' "--valid-until must be a duration such as 90m or 6h"
  check_value "$worker" '[0-9]+' "--worker must be the number of one worker, such as 0"
  check_value "$restarts" '0|[1-9][0-9]{0,5}' "--restarts must be a whole number without leading zeros, such as 10"
  if [[ $1 == config ]]; then
    [[ -n ${train_args-} ]] || die "The config is missing: add one of $(echo configs/*.yaml)."
    [[ -f ${train_args[0]} ]] || die "There is no config $(quote "${train_args[0]}"). Use one of $(echo configs/*.yaml)"
  else
    [[ -z ${train_args-} ]] || die "${0##*/} takes one name and options; got also $(quote "${train_args[0]}")"
  fi
}

check_value() { # check_value VALUE PATTERN RULE: an option that was not given has no value and passes
  local LC_ALL=C
  [[ -z $1 || $1 =~ ^($2)$ ]] || die "$3; got $(quote "$1")"
}

check_name() {
  local LC_ALL=C valid
  [[ -n $name ]] || die "The slice's name is missing; see ${0##*/} --help."
  valid=$(printf %s "$name" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' - | sed 's/^[^a-z]*//' | cut -c 1-63)
  valid=${valid%-}
  [[ $name == "$valid" ]] ||
    die "A name has only lower-case letters, digits and single hyphens; got $(quote "$name"). Try ${valid:-tpu}."
}

check_zone() {
  local LC_ALL=C valid=us-west4-a
  [[ -n $zone ]] || die "The zone is missing: add --zone, such as --zone $valid. $ZONES"
  [[ ! $zone =~ ^[a-z]+-[a-z]+[0-9]+ ]] || valid=${BASH_REMATCH[0]}-a
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] ||
    die "A zone is a region, a hyphen and a letter; got $(quote "$zone"). Try $valid. $ZONES"
}
