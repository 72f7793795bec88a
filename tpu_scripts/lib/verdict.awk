# The workers' lines, HOST STATE [EXIT-CODE] ..., -> what they amount to: the table in README.md says what follows.
# 75 is a training that was told to stop and has saved; 76 one that missed another worker; 134 to 143 are killed ones, as
# is a worker that lost its run.
# Such a one decides, unless there was no run: whatever the others ended with, they may have ended because they missed it.
$2 ~ /^(bare|ready|running|lost|exited)$/ { workers++; state[$2]++ }
$2 == "exited" && $3 == 2 && /There is no run/ { fresh++ } # as the first host said to all
$2 == "exited" && $3 ~ /^(75|76|134|137|139|143)$/ { cut++ }
$2 == "exited" && $3 > worst { worst = $3 }
END {
  if (!workers) print "silent"
  else if (state["bare"]) print "bare"
  else if (state["running"]) print state["running"] == workers ? "running" : "split"
  else if (state["ready"] == workers) print "ready"
  else if (fresh) print "fresh"
  else if (cut || state["lost"] || state["ready"]) print "cut"
  else print "ended " worst + 0
}
