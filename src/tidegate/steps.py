"""Names every durable step, so that a test can kill the process exactly there.

A step is *declared* once, at import time of the module that performs it, and *reached* right
after its durable effect (or right before, when the name says ``before``). With
``TIDEGATE_CRASH_AT=NAME`` in the environment the process sends itself SIGKILL on reaching the
step; ``NAME#3`` means the third time. ``TIDEGATE_FREEZE_AT`` is the same with SIGSTOP: the process
goes silent and keeps everything it holds. ``tidegate debug steps`` lists the steps.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Literal

CRASH_VARIABLE = "TIDEGATE_CRASH_AT"
FREEZE_VARIABLE = "TIDEGATE_FREEZE_AT"
_SIGNALS = {CRASH_VARIABLE: signal.SIGKILL, FREEZE_VARIABLE: signal.SIGSTOP}


@dataclass(frozen=True)
class Step:
    """One named durable step."""

    name: str
    runs_in: Literal["node", "worker"]
    plan: str
    description: str


_declared: dict[str, Step] = {}
_reached: dict[str, int] = {}


def declare(name: str, *, runs_in: Literal["node", "worker"], plan: str, description: str) -> str:
    """Register a step and return its name, to be kept in a constant.

    Args:
        name: dotted, unique: ``copy.chunk.committed``.
        runs_in: which process performs it.
        plan: what it belongs to: copy, stream, create, switch, reverse, complete, cancel, vdiff.
        description: what has durably happened once it is reached.
    """
    known = _declared.get(name)
    assert known is None or known.description == description, f"step {name} declared twice"
    _declared[name] = Step(name, runs_in, plan, description)
    return name


def declared() -> list[Step]:
    """All steps of the modules imported so far, by name."""
    return [_declared[name] for name in sorted(_declared)]


def reached(name: str) -> None:
    """Note that the step was performed; dies or stops here when a test asked for it."""
    assert name in _declared, f"undeclared step {name}"
    for variable, number in _SIGNALS.items():
        wanted, _, ordinal = os.environ.get(variable, "").partition("#")
        if wanted == name:
            _reached[name] = _reached.get(name, 0) + 1
            if _reached[name] == int(ordinal or 1):
                os.kill(os.getpid(), number)
