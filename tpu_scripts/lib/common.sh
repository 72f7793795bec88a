#!/usr/bin/env bash
# Sourced: how these scripts talk, and how they read their arguments. They keep to bash 3.2, which is what macOS has.
name="" zone="" project="" valid_until="" bucket="" worker="" restarts="" given=" " words=() where=""

say() { printf '%s\n' "$@" >&2; }
die() { say "error: ${1//$'\n'/ }" && exit "${2:-2}"; } # in one line
say_what_is_paid() {
  say "Every chip is paid for, idle or not, until it is deleted:" "  tpu_scripts/delete.sh $name $where"
}
is_given() { [[ $given == *" $1 "* ]]; }
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "tpu_scripts/${0##*/}"; }

parse() { # parse "options, those without a value with a !" ARGUMENT...: what follows the slice's name goes to words
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
          given+="$option "
        elif [[ $accepted == *" $option "* ]]; then
          [[ -n ${2-} ]] || die "--$option needs a value; see ${0##*/} --help."
          printf -v "$(tr - _ <<<"$option")" %s "$2" && shift
        else
          [[ $option != worker ]] || die "A slice's workers wait for each other: leave out --worker, it is always all."
          die "${0##*/} has no option $1; see ${0##*/} --help."
        fi ;;
      *) if [[ -z $name ]]; then name=$1; else words=("$@") && break; fi ;;
    esac
    shift
  done
  where="--zone $zone${project:+ --project $project}" # as the scripts take it, and gcloud
}
