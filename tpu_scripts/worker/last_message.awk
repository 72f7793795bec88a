# The end of a log -> one line: the error of the last launch, which other lines may follow, or else the last line.
/^--- / { error = "" } # the line that train.sh prints first
/^error: / { error = $0 }
NF { last = $0 }
END { print error ? error : last }
