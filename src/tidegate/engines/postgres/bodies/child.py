"""Runs the program that parses bodies, and turns its crashes into words.

A parser written in C may abort, crash or hang at one body. Then the process ends, the body is
reported as unread, and a new process goes on with the next. What was read is kept for the life of
this process: a dry run and the create after it read the same bodies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres.bodies.names import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.engines.postgres.bodies.names import Body

#: CPU time for one body; the program ends itself when it is over.
BODY_CPU_MAX_S: Final = 2.0
#: Time for one body on a busy machine.
BODY_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 20.0
#: Time for all bodies together.
ALL_TIMEOUT_S: Final = 120.0
CRASHES_MAX: Final = 20
#: How it is said that the program ended by itself; before any answer, no body is to blame.
NOT_STARTED: Final = "the parser ended"
MEMORY_BYTES_MAX: Final = 2 << 30
KEPT_MAX: Final = 10_000

COMMAND: Final = (sys.executable, "-m", "tidegate.engines.postgres.bodies.reader")

_kept: OrderedDict[Body, Reading] = OrderedDict()
_lock = Lock()


def read_all(bodies: Iterable[Body], command: Sequence[str] = COMMAND) -> dict[Body, Reading]:
    """What each body refers to; one that could not be read says why in ``error``.

    ``command``: the program, for tests that need one which crashes.
    """
    wanted = list(dict.fromkeys(bodies))
    with _lock:
        found = {body: _kept[body] for body in wanted if body in _kept}
    rest = [body for body in wanted if body not in found]
    crashes = 0
    while rest:
        answers, why = _run(rest, command)
        for body, reading in zip(rest, answers, strict=False):
            found[body] = reading
            _keep(body, reading)
        rest = rest[len(answers) :]
        if rest:
            if not answers and why.startswith(NOT_STARTED):
                return found | dict.fromkeys(rest, Reading(error=why))
            found[rest.pop(0)] = Reading(error=why)
            crashes += 1
        if crashes >= CRASHES_MAX:
            found |= {
                body: Reading(error="the parser had crashed too often before") for body in rest
            }
            break
    return found


def _keep(body: Body, reading: Reading) -> None:
    with _lock:
        _kept[body] = reading
        _kept.move_to_end(body)
        while len(_kept) > KEPT_MAX:
            _kept.popitem(last=False)


def _run(bodies: Sequence[Body], command: Sequence[str]) -> tuple[list[Reading], str]:
    """The readings up to the first body at which the program ended, and why it did."""
    lines = "".join(json.dumps(body.to_json()) + "\n" for body in bodies)
    environment = {
        k: v for k, v in os.environ.items() if k in ("HOME", "PATH") or k[:6] == "PYTHON"
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            check=False,
            input=lines.encode(),
            capture_output=True,
            env=environment,
            timeout=min(START_TIMEOUT_S + BODY_TIMEOUT_S * len(bodies), ALL_TIMEOUT_S),
        )
        output, why = done.stdout, _why(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        output, why = error.stdout or b"", "the parser did not answer"
    complete = output[: output.rfind(b"\n") + 1].splitlines()
    return [Reading.from_json(json.loads(line)) for line in complete], why


def _why(status: int, errors: bytes) -> str:
    if status == -signal.SIGPROF:
        return f"the parser took longer than {BODY_CPU_MAX_S:g} s"
    if status < 0:
        return f"the parser crashed ({signal.Signals(-status).name})"
    said = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return f"{NOT_STARTED} with status {status}: {said}"
