# One line for each worker, HOST STATE [EXIT-CODE] [MESSAGE] -> one state for all. README.md says what each leads to.
# 75: the training job was told to stop, and saved. 76: another worker was missing. 124: a phase of a step did not end.
# 134 to 143: it was killed. If one worker was interrupted in such a way, all count as interrupted: the others may have
# failed because it was missing.
$2 ~ /^(not-ready|ready|running|killed|exited)$/ { workers++; count[$2]++ }
$2 == "exited" && $3 == 2 && /There is no run/ { no_run++ } # the first host looks for the run and tells the others
$2 == "exited" && $3 ~ /^(75|76|124|134|137|139|143)$/ { interrupted++ }
$2 == "exited" && $3 > highest { highest = $3 }
END {
  if (!workers) print "unreachable"
  else if (count["not-ready"]) print "not-ready"
  else if (count["running"]) print count["running"] == workers ? "running" : "partly-ended"
  else if (count["ready"] == workers) print "ready"
  else if (no_run) print "without-a-run"
  else if (interrupted || count["killed"] || count["ready"]) print "interrupted"
  else print "ended " highest + 0
}
