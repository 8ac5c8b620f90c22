"""The one table of PostgreSQL's SQLSTATEs: which kind of failure each of them is.

A code is looked up in :data:`CODES`, then its class, the first two characters, in :data:`CLASSES`.
One that is in neither is :data:`FailureKind.UNLISTED`: fatal, and reported with its code. What a
kind means for the work is in :mod:`tidegate.engines.failures`.

Codes that answer a question (is this lock free? is that table there?) are handled where the
question is asked; whatever ends a piece of work is judged here and nowhere else.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.engines.failures import FailureKind, FailurePhase, Treatment, rule, treatment_of
from tidegate.topology.connections import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tidegate.errors import TidegateError

#: Codes that mean something else than the rest of their class.
CODES: Final[Mapping[str, FailureKind]] = {
    "25006": FailureKind.READ_ONLY,  # read_only_sql_transaction
    "25P03": FailureKind.TIMEOUT,  # idle_in_transaction_session_timeout
    "25P04": FailureKind.TIMEOUT,  # transaction_timeout
    "40P01": FailureKind.DEADLOCK,
    "42501": FailureKind.ACCESS,  # insufficient_privilege
    "53100": FailureKind.DISK_FULL,
    "53200": FailureKind.MEMORY,
    "53300": FailureKind.CONNECTIONS,
    "55006": FailureKind.IN_USE,
    "55P03": FailureKind.LOCK,
    "57014": FailureKind.TIMEOUT,  # query_canceled
    "TG001": FailureKind.FENCED,
    "XX001": FailureKind.DAMAGE,  # data_corrupted
    "XX002": FailureKind.DAMAGE,  # index_corrupted
}

CLASSES: Final[Mapping[str, FailureKind]] = {
    "02": FailureKind.VALUE,  # no data
    "03": FailureKind.INTERNAL,  # statement not yet complete
    "08": FailureKind.CONNECTION,
    "09": FailureKind.USER_CODE,  # triggered action
    "0A": FailureKind.DEFINITION,  # feature not supported
    "0B": FailureKind.INTERNAL,  # transaction initiation
    "0F": FailureKind.INTERNAL,  # locator
    "0L": FailureKind.ACCESS,  # grantor
    "0P": FailureKind.ACCESS,  # role specification
    "0Z": FailureKind.USER_CODE,  # diagnostics
    "10": FailureKind.VALUE,  # XQuery
    "20": FailureKind.USER_CODE,  # case not found
    "21": FailureKind.VALUE,  # cardinality
    "22": FailureKind.VALUE,  # data exception
    "23": FailureKind.CONSTRAINT,
    "24": FailureKind.INTERNAL,  # cursor state
    "25": FailureKind.INTERNAL,  # transaction state
    "26": FailureKind.INTERNAL,  # statement name
    "27": FailureKind.USER_CODE,  # triggered data change
    "28": FailureKind.ACCESS,  # authorization
    "2B": FailureKind.DEFINITION,  # dependent privileges
    "2D": FailureKind.INTERNAL,  # transaction termination
    "2F": FailureKind.USER_CODE,  # SQL routine
    "34": FailureKind.INTERNAL,  # cursor name
    "38": FailureKind.USER_CODE,  # external routine
    "39": FailureKind.USER_CODE,  # external routine invocation
    "3B": FailureKind.INTERNAL,  # savepoint
    "3D": FailureKind.DEFINITION,  # catalogue name
    "3F": FailureKind.DEFINITION,  # schema name
    "40": FailureKind.SERIALIZATION,  # transaction rollback
    "42": FailureKind.DEFINITION,  # syntax or access rule
    "44": FailureKind.CONSTRAINT,  # WITH CHECK OPTION
    "53": FailureKind.LIMIT,  # insufficient resources
    "54": FailureKind.VALUE,  # program limit exceeded
    "55": FailureKind.STATE,  # object not in prerequisite state
    "57": FailureKind.CONNECTION,  # operator intervention: the server ends sessions
    "58": FailureKind.SYSTEM,
    "72": FailureKind.SERIALIZATION,  # snapshot too old
    "F0": FailureKind.STATE,  # configuration file
    "HV": FailureKind.USER_CODE,  # foreign data wrapper
    "P0": FailureKind.USER_CODE,  # PL/pgSQL
    "XX": FailureKind.INTERNAL,
}


def kind_of(sqlstate: str | None) -> FailureKind:
    """The kind of failure that a code stands for; None: the connection broke without one."""
    if sqlstate is None:
        return FailureKind.CONNECTION
    found = CODES.get(sqlstate) or CLASSES.get(sqlstate[:2])
    return FailureKind.UNLISTED if found is None else found


def failure_of(error: psycopg.Error) -> FailureKind:
    """The kind of failure that an error of the driver is.

    Those without a code are the driver's own: a connection that broke, or a call that was wrong.
    """
    if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
        return FailureKind.INTERNAL
    return kind_of(error.sqlstate)


def ends_by_itself(error: psycopg.Error, phase: FailurePhase) -> bool:
    """Whether trying again can help without anybody changing anything."""
    return treatment_of(failure_of(error), phase).ends_by_itself


def failure(error: psycopg.Error, phase: FailurePhase, where: str = "") -> TidegateError:
    """What the driver's error means for the work, in our words and without secrets.

    Args:
        error: as it was raised.
        phase: the work that met it.
        where: the shard, for people.
    """
    kind = failure_of(error)
    meant = rule(kind, phase)
    said = redacted(" ".join(str(error).split())) or type(error).__name__
    if meant.treatment is Treatment.FATAL and error.sqlstate is not None:
        said += f" (SQLSTATE {error.sqlstate})"
    at = f" at {where}" if where else ""
    return meant.error(
        meant.message.format(at=at, said=said), next_step=meant.next_step, sqlstate=error.sqlstate
    )


@contextmanager
def translated(phase: FailurePhase, where: str = "") -> Iterator[None]:
    """Turn the driver's errors into what they mean for the work.

    Raises:
        TidegateError: see :func:`failure`.
    """
    try:
        yield
    except psycopg.Error as error:
        raise failure(error, phase, where) from error
