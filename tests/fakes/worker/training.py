"""A fake grpo-jax: records its arguments, then ends as $SLICE/trainings/NUMBER says. It waits for that file.

NUMBER counts the launches of this worker. The file has one line for all workers, or one for each: the exit code, then
optionally the last lines of the log, with \\n between them. "on" instead of an exit code: it does not end.
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
signal.alarm(120)  # so that it ends even if a test fails
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
