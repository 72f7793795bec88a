"""Stands in for grpo-jax: records its arguments, then ends as $SLICE/trainings/NUMBER says.

NUMBER counts the launches at this worker's place in the slice. The file has the exit code, and perhaps a last line for
the log (or several: \\n), for all workers, or a line for each of them; "on" is no end. Without a file the training goes
on, too.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

SLICE, WORKER = Path(os.environ["SLICE"]), int(os.environ["WORKER"])
record = SLICE / f"trained-{WORKER}.jsonl"
with record.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
script = SLICE / "trainings" / str(len(record.read_text().splitlines()))
signal.alarm(120)  # a test that fails may leave it behind
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("training", flush=True)
while not script.exists():
    time.sleep(0.02)
lines = script.read_text().splitlines()
code, _, text = lines[WORKER if len(lines) > 1 else 0].partition(" ")
while code == "on":
    time.sleep(0.02)
print(text.replace("\\n", "\n") or "done", flush=True)
sys.exit(int(code))
