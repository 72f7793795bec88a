# The end of a log -> one line: what was wrong with the last launch, which other lines may follow, or else its last.
/^--- / { wrong = "" } # train.sh begins
/^error: / { wrong = $0 }
NF { last = $0 }
END { print wrong ? wrong : last }
