"""A small real program in the worker's place: takes a span on stdin, behaves as its name says."""

import json
import signal
import sys
import threading

line = sys.stdin.readline()
if not line:
    raise SystemExit(1)
spec = json.loads(line)
sys.stdout.write(json.dumps({"event": "started", "epoch": spec["epoch"]}) + "\n")
sys.stdout.flush()
behaviour = spec["workflow"]
if behaviour.startswith("exit"):
    raise SystemExit(int(behaviour[4:]))
stopped = threading.Event()
ignore = behaviour == "stubborn"
signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: stopped.set())
sys.stdout.write(json.dumps({"event": "running", "epoch": spec["epoch"]}) + "\n")
sys.stdout.flush()
while not stopped.wait(0.02):
    pass
