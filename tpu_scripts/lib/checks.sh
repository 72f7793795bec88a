#!/usr/bin/env bash
# Sourced: refuses arguments that could not work before anything is rented.
. tpu_scripts/lib/names.sh

check() { # check config, or check nothing: what follows the slice's name
  check_name
  check_zone
  matches "$project" '([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]' "--project is a project's id (gcloud projects list)"
  matches "$bucket" 'gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]' "--bucket is gs://NAME and no folder (gcloud storage ls)"
  matches "$valid_until" '([0-9]+[smhd])+' "--valid-until is a time such as 90m or 6h"
  matches "$worker" '[0-9]+' "--worker is the number of one worker, such as 0"
  matches "$restarts" '0|[1-9][0-9]{0,5}' "--restarts is a number, such as 10"
  if [[ $1 == config ]]; then
    [[ -n ${words-} ]] || die "The config is missing: add one of $(echo configs/*.yaml)."
    [[ -f ${words[0]} ]] || die "There is no config $(quoted "${words[0]}"). There are $(echo configs/*.yaml)."
  else
    [[ -z ${words-} ]] || die "${0##*/} does not know what to do with $(quoted "${words[0]}"); see ${0##*/} --help."
  fi
}
