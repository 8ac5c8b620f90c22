"""Names every bounded wait, and says while it lasts who or what is waited for.

A wait is *declared* once, at import time of the module that waits, like a step
(:mod:`tidegate.steps`). While it lasts it stands on this process's board, with the transactions in
the way as far as they are known; displays read the board. Whose wait it is comes from the context:
:func:`on_behalf_of` names the workflow or VDiff, :func:`at` the shard. Threads that work for it get
the context through :func:`carried`.

It decides nothing, and must never fail: whoever waits goes on whether somebody looks or not.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LOOK_AFTER_S: Final = 0.3
"""A wait that has lasted so long is shown, looks who is in the way, and looks again so often."""


@dataclass(frozen=True)
class WaitName:
    """One named wait: what is waited for, and which bound ends it."""

    name: str
    description: str


_declared: dict[str, WaitName] = {}


def declare(name: str, *, description: str) -> str:
    """Register a wait and return its name, to be kept in a constant."""
    known = _declared.get(name)
    assert known is None or known.description == description, f"wait {name} declared twice"
    _declared[name] = WaitName(name, description)
    return name


def declared() -> list[WaitName]:
    """All waits of the modules imported so far, by name."""
    return [_declared[name] for name in sorted(_declared)]


@dataclass(frozen=True)
class Wait:
    """One wait that lasts now.

    Attributes:
        name: as declared.
        what: what is waited for, in words.
        where: the shard, as ``keyspace/shard``; empty where none is meant.
        since: when it began, ISO 8601.
        in_the_way: the transactions or processes waited for, in words; empty while unknown.
        next_step: what ends them.
        holders: the same for programs.
        subjects: whose it is.
        began: on the monotonic clock of this process.
    """

    name: str
    what: str
    where: str = ""
    since: str = ""
    in_the_way: str = ""
    next_step: str = ""
    holders: tuple[Mapping[str, Any], ...] = ()
    subjects: tuple[str, ...] = field(default=(), compare=False)
    began: float = field(default_factory=time.monotonic, compare=False)

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        held = f": {self.in_the_way}" if self.in_the_way else ""
        return f"waits for {self.what}{where}{held}"

    def to_json(self) -> dict[str, Any]:
        """As API answers and workers' reports carry it."""
        return {
            "name": self.name,
            "what": self.what,
            "where": self.where,
            "since": self.since,
            "in_the_way": self.in_the_way,
            "next_step": self.next_step,
            "holders": [dict(holder) for holder in self.holders],
        }


@dataclass(frozen=True)
class _Context:
    subjects: tuple[str, ...] = ()
    where: str = ""


_context: ContextVar[_Context] = ContextVar("waits", default=_Context())  # noqa: B039 - frozen
_lock = threading.Lock()
_numbers = itertools.count()
_board: dict[int, Wait] = {}
_listeners: list[Callable[[], None]] = []


class Waiting:
    """A wait that has begun; made by :func:`waiting`."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._look_at = time.monotonic() + LOOK_AFTER_S

    def due(self) -> bool:
        """Whether it is time to look, or to look again, who is in the way."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_AFTER_S
        return True

    def held_by(
        self, in_the_way: str, next_step: str = "", holders: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Say who or what is in the way now."""
        with _lock:
            now = _board[self._number]
            then = replace(now, in_the_way=in_the_way, next_step=next_step, holders=tuple(holders))
            _board[self._number] = then
        if then != now:
            _tell()


@contextmanager
def waiting(name: str, what: str, where: str = "") -> Iterator[Waiting]:
    """Stand on the board while the block lasts."""
    assert name in _declared, f"undeclared wait {name}"
    context = _context.get()
    number = next(_numbers)
    since = datetime.now(UTC).isoformat(timespec="milliseconds")
    with _lock:
        _board[number] = Wait(name, what, where or context.where, since, subjects=context.subjects)
    try:
        yield Waiting(number)
    finally:
        with _lock:
            gone = _board.pop(number)
        if gone.in_the_way:
            _tell()


def current(subject: str | None = None) -> list[Wait]:
    """The waits that last, oldest first; of one subject, or of the whole process.

    Most waits are over at once: one that nobody is known to be in the way of, and that has only
    just begun, is left out.
    """
    with _lock:
        found = [_board[number] for number in sorted(_board)]
    lasting = time.monotonic() - LOOK_AFTER_S
    return [
        wait
        for wait in found
        if (wait.in_the_way or wait.began <= lasting)
        and (subject is None or subject in wait.subjects)
    ]


@contextmanager
def on_behalf_of(*subjects: str) -> Iterator[None]:
    """Waits in this block are a workflow's (its uuid) or a VDiff's (``vdiff:`` and its uuid)."""
    before = _context.get()
    token = _context.set(replace(before, subjects=(*before.subjects, *subjects)))
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def at(where: str) -> Iterator[None]:
    """Waits in this block are at a shard."""
    token = _context.set(replace(_context.get(), where=where))
    try:
        yield
    finally:
        _context.reset(token)


def carried[**P, T](work: Callable[P, T]) -> Callable[P, T]:
    """``work``, to be called by another thread on behalf of the same and at the same place."""
    context = _context.get()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _context.set(context)
        try:
            return work(*args, **kwargs)
        finally:
            _context.reset(token)

    return call


def listen(listener: Callable[[], None]) -> None:
    """Be called, in the waiting thread, whenever what the board says of holders has changed."""
    _listeners.append(listener)


def _tell() -> None:
    for listener in _listeners:
        listener()
