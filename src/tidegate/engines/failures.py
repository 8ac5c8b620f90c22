"""What a failure of a database means: one rule for each kind of failure in each phase of work.

Decides what is done about a failure and what the user reads. Which kind an error is of, its engine
knows (for PostgreSQL: :mod:`tidegate.engines.postgres.sqlstates`). The rules are total: every kind
has one in every phase, and :data:`EXCEPTIONS` names the few places where phases differ. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.errors import (
    ConnectError,
    CopyError,
    DatabaseFaultError,
    DatabaseUnableError,
    DivergenceError,
    FailedPreconditionError,
    StreamFailedError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.errors import TidegateError


class Treatment(StrEnum):
    """What is done about a failure."""

    PASSING = "passing"
    """It ends by itself; the work is tried again."""
    RESOURCES = "resources"
    """The server lacks room, memory, connections or locks; tried again, and the user reads what."""
    REFUSED = "refused"
    """Trying again cannot help before somebody changes something; the user is told what."""
    DIVERGENCE = "divergence"
    """The target's rows are not those that the log expects."""
    FATAL = "fatal"
    """Not expected to happen; the work ends, and the code is reported."""

    @property
    def ends_by_itself(self) -> bool:
        """Whether trying again can help without anybody changing anything."""
        return self in {Treatment.PASSING, Treatment.RESOURCES}


class FailurePhase(StrEnum):
    """The work during which a database failed."""

    COPY = "copy"
    STREAM = "stream"
    VDIFF = "VDiff"
    WORKFLOW = "workflow"
    SHARD_UPGRADE = "shard upgrade"
    TENANT_UPGRADE = "tenant upgrade"
    PREFLIGHT = "preflight"


class FailureKind(StrEnum):
    """What happened at the server, in words that follow "failed: "."""

    CONNECTION = "the connection was lost"
    LOCK = "a lock was not to be had in time"
    IN_USE = "somebody else uses an object"
    DEADLOCK = "the server ended a deadlock by rolling this transaction back"
    SERIALIZATION = "a concurrent change forced the transaction to be rolled back"
    TIMEOUT = "a timeout or an operator cancelled the statement"
    READ_ONLY = "the server takes no writes"
    DISK_FULL = "the server's disk is full"
    MEMORY = "the server has no memory, or no room in its lock table"
    CONNECTIONS = "the server has no connection left"
    LIMIT = "a limit of the server is reached"
    SYSTEM = "the server met an error of its operating system"
    STATE = "an object is in a state that does not allow it"
    ACCESS = "the role is not allowed to do this"
    FENCED = "the fence of a switch refuses writes"
    CONSTRAINT = "a row breaks a constraint"
    VALUE = "a value cannot be taken"
    DEFINITION = "a table, column, type or function is not as expected"
    USER_CODE = "a function or trigger in the database raised an error"
    DAMAGE = "the server reports damaged data"
    INTERNAL = "the server or Tidegate is in a state that should not occur"
    UNLISTED = "the error is not one that Tidegate knows"


@dataclass(frozen=True, slots=True)
class _Meaning:
    treatment: Treatment
    remedy: str


_PASSING, _RESOURCES = Treatment.PASSING, Treatment.RESOURCES
_REFUSED, _FATAL = Treatment.REFUSED, Treatment.FATAL
_REPORT: Final = "read the server's log; please report it with the code"

_MEANINGS: Final = {
    FailureKind.CONNECTION: _Meaning(_PASSING, "check that the server runs"),
    FailureKind.LOCK: _Meaning(_PASSING, "see who holds it in pg_locks there"),
    FailureKind.IN_USE: _Meaning(_PASSING, "see who uses it, and let that end"),
    FailureKind.DEADLOCK: _Meaning(_PASSING, "nothing needs to be corrected"),
    FailureKind.SERIALIZATION: _Meaning(_PASSING, "nothing needs to be corrected"),
    FailureKind.TIMEOUT: _Meaning(
        _PASSING,
        "see statement_timeout and transaction_timeout of the role and the database, and the"
        " server's log for who cancelled it",
    ),
    FailureKind.READ_ONLY: _Meaning(
        _PASSING,
        "see whether the server is a standby now, or what set default_transaction_read_only",
    ),
    FailureKind.DISK_FULL: _Meaning(_RESOURCES, "free disk space at the server"),
    FailureKind.MEMORY: _Meaning(
        _RESOURCES,
        "give the server more memory, or raise max_locks_per_transaction (restart) if it says so",
    ),
    FailureKind.CONNECTIONS: _Meaning(
        _RESOURCES, "raise max_connections of the server (restart), or end sessions there"
    ),
    FailureKind.LIMIT: _Meaning(_RESOURCES, "raise the limit that the server names"),
    FailureKind.SYSTEM: _Meaning(
        _PASSING, "read the server's log for what its disk or system said"
    ),
    FailureKind.STATE: _Meaning(_REFUSED, "correct the state that the server names"),
    FailureKind.ACCESS: _Meaning(_REFUSED, "give the role the privilege that the server names"),
    FailureKind.FENCED: _Meaning(_REFUSED, "let the switch end, or: tidegate workflow show"),
    FailureKind.CONSTRAINT: _Meaning(_REFUSED, "correct the row that the server names"),
    FailureKind.VALUE: _Meaning(_REFUSED, "correct the value, or the column's type at the target"),
    FailureKind.DEFINITION: _Meaning(_REFUSED, "make the object as it is at the source"),
    FailureKind.USER_CODE: _Meaning(_REFUSED, "correct the function or trigger"),
    FailureKind.DAMAGE: _Meaning(
        _REFUSED, "check the server's storage, and restore what is damaged"
    ),
    FailureKind.INTERNAL: _Meaning(_FATAL, _REPORT),
    FailureKind.UNLISTED: _Meaning(_FATAL, _REPORT),
}

#: Where a phase treats a kind otherwise, and why.
EXCEPTIONS: Final[Mapping[tuple[FailureKind, FailurePhase], tuple[Treatment, str]]] = {
    (FailureKind.CONSTRAINT, FailurePhase.STREAM): (
        Treatment.DIVERGENCE,
        "the row has satisfied the constraint at the source, so a row at the target is not its own",
    ),
    (FailureKind.TIMEOUT, FailurePhase.TENANT_UPGRADE): (
        _REFUSED,
        "a migration that takes too long takes as long the next time",
    ),
    (FailureKind.READ_ONLY, FailurePhase.TENANT_UPGRADE): (
        _REFUSED,
        "a migration may have set it, and each attempt would meet it again",
    ),
    (FailureKind.IN_USE, FailurePhase.TENANT_UPGRADE): (
        _REFUSED,
        "what a migration has in use itself stays in use",
    ),
    (FailureKind.READ_ONLY, FailurePhase.PREFLIGHT): (
        _REFUSED,
        "a finding names it before anything is made",
    ),
    (FailureKind.SYSTEM, FailurePhase.PREFLIGHT): (
        _REFUSED,
        "an extension's files are not at the target server",
    ),
    (FailureKind.IN_USE, FailurePhase.PREFLIGHT): (
        _REFUSED,
        "a finding names it before anything is made",
    ),
}


@dataclass(frozen=True, slots=True)
class _Frame:
    """How a phase tells a failure: who was hit, and what follows the remedy."""

    failed: str
    follows: str


_INTERRUPTED: Final = {
    FailurePhase.COPY: _Frame("the copy was interrupted", "the copy goes on where it was"),
    FailurePhase.STREAM: _Frame("the stream was interrupted", "the stream goes on where it was"),
    FailurePhase.VDIFF: _Frame(
        "the comparison was interrupted", "the VDiff goes on where it was; if not, resume it"
    ),
    FailurePhase.WORKFLOW: _Frame("the work{at} was interrupted", "then repeat the command"),
    FailurePhase.SHARD_UPGRADE: _Frame(
        "the upgrade{at} was interrupted", "the upgrade tries again by itself"
    ),
    FailurePhase.TENANT_UPGRADE: _Frame("the attempt was interrupted", "the attempt is repeated"),
    FailurePhase.PREFLIGHT: _Frame("this could not be tried", "then repeat the command"),
}

_FAILED: Final = {
    FailurePhase.COPY: _Frame("the copy failed", "then start the workflow again"),
    FailurePhase.STREAM: _Frame("the stream failed", "then start the workflow again"),
    FailurePhase.VDIFF: _Frame("the comparison failed", "then resume the VDiff"),
    FailurePhase.WORKFLOW: _Frame("the work{at} failed", "then repeat the command"),
    FailurePhase.SHARD_UPGRADE: _Frame("the upgrade{at} failed", "then repeat the command"),
    FailurePhase.TENANT_UPGRADE: _Frame("the attempt failed", "then retry the tenant"),
    FailurePhase.PREFLIGHT: _Frame("this was refused", "then repeat the command"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of failure means in one phase.

    Attributes:
        treatment: what is done.
        error: what is raised; tenant upgrades and the preflight record the failure instead.
        message: with places for ``{at}`` and for what the server said, ``{said}``.
        next_step: what to do.
    """

    treatment: Treatment
    error: type[TidegateError]
    message: str
    next_step: str


def treatment_of(kind: FailureKind, phase: FailurePhase) -> Treatment:
    """What is done about such a failure in that phase."""
    exception = EXCEPTIONS.get((kind, phase))
    return _MEANINGS[kind].treatment if exception is None else exception[0]


def rule(kind: FailureKind, phase: FailurePhase) -> Rule:
    """What such a failure means in that phase."""
    treatment = treatment_of(kind, phase)
    frame = (_INTERRUPTED if treatment.ends_by_itself else _FAILED)[phase]
    return Rule(
        treatment,
        _error(kind, phase, treatment),
        f"{frame.failed}: {kind}: {{said}}",
        f"{_MEANINGS[kind].remedy}; {frame.follows}",
    )


def _error(kind: FailureKind, phase: FailurePhase, treatment: Treatment) -> type[TidegateError]:
    if treatment.ends_by_itself:
        if kind is FailureKind.CONNECTION:
            return ConnectError
        return WaitTimeoutError if kind is FailureKind.LOCK else DatabaseUnableError
    if treatment is Treatment.DIVERGENCE:
        return DivergenceError
    if phase is FailurePhase.COPY:
        return CopyError
    if phase is FailurePhase.STREAM:
        return StreamFailedError
    return DatabaseFaultError if treatment is _FATAL else FailedPreconditionError
