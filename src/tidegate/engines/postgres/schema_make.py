"""Makes what a schema plan says, in one transaction: all of it or nothing.

Decides in which order, what is left alone because it is there already, and how a refusal of the
server is told. What is to be made is decided in :mod:`tidegate.engines.postgres.schema_copy`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres import fence, support_kinds
from tidegate.engines.postgres.attempts import Attempt, RefusedError, first_line, named, run
from tidegate.engines.postgres.sqlstates import ends_by_itself, failure
from tidegate.errors import AlreadyExistsError, FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.schema_copy import SchemaPlan, Support

#: Serialises those who make tables in one database; arbitrary, constant.
MAKERS_LOCK: Final = 0x7469_6465_6D61_6B65
MAKERS_WAIT_S: Final = 30


def create_tables(
    target: Connection[TupleRow], plan: SchemaPlan, *, workflow_uuid: str, workflow: str
) -> None:
    """Make everything that comes before the data, and the denying fence, in one transaction.

    ``_tidegate`` must be installed. All or nothing.

    Raises:
        AlreadyExistsError: a table is there already.
        FailedPreconditionError: a role or extension is missing, or a right.
    """
    with refusals_named(target), target.transaction():
        make(target, plan)
        fence.arm_new(target, workflow_uuid, "target", plan.tables, workflow=workflow)


def make(target: Connection[TupleRow], plan: SchemaPlan) -> list[Attempt]:
    """Make everything that comes before the data, in the transaction that is open.

    Returns:
        What was made, in order; support that was there is left out.

    Raises:
        RefusedError: the server refused a statement.
    """
    target.execute("SET LOCAL check_function_bodies = off")
    target.execute("SET LOCAL client_min_messages = warning")
    _take_turns(target)
    made = []
    for attempt in support_attempts(target, plan):
        run(target, [attempt])
        made.append(attempt)
    tables = [named(ddl) for ddl in (*plan.pre_data, *plan.keys)]
    run(target, tables)
    made += tables
    for attempt in late_attempts(target, plan):
        run(target, [attempt])
        made.append(attempt)
    return made


def make_whole(
    target: Connection[TupleRow],
    plan: SchemaPlan,
    more: Sequence[Attempt],
    verify: Callable[[], None],
    *,
    keep: bool,
) -> list[Attempt]:
    """Make a schema without rows: everything of the plan, then more, in one transaction.

    Args:
        target: an autocommit session.
        plan: made with ``rows_follow`` false.
        more: what else is made, after the plan.
        verify: looks at the outcome before it is committed; what it raises takes everything back.
        keep: commit; else everything is taken back.

    Returns:
        What was made, in order.

    Raises:
        AlreadyExistsError: a table is there already.
        FailedPreconditionError: a role or extension is missing, or a right.
    """
    with refusals_named(target), target.transaction(force_rollback=not keep):
        made = make(target, plan)
        late = [named(ddl) for _, ddl in (*plan.after_copy, *plan.after_catchup)] + list(more)
        run(target, late)
        verify()
    return made + late


@contextmanager
def refusals_named(target: Connection[TupleRow]) -> Iterator[None]:
    """Turn what a server refuses to make into an error that names it.

    Raises:
        AlreadyExistsError: a table is there already.
        FailedPreconditionError: a role or extension is missing, or a right.
    """
    database = target.info.dbname
    try:
        yield
    except RefusedError as refused:
        if isinstance(refused.error, psycopg.errors.DuplicateTable):
            raise AlreadyExistsError(
                f"the tables cannot be made in {database}: {first_line(refused.error)}",
                next_step="drop or rename it there, or choose another target",
            ) from None
        if ends_by_itself(refused.error, FailurePhase.WORKFLOW):
            where = f"{database}, {refused.what}"
            raise failure(refused.error, FailurePhase.WORKFLOW, where) from refused.error
        raise FailedPreconditionError(
            f"{refused.what} cannot be made in {database}: {first_line(refused.error)}",
            next_step="correct it there and repeat the command; nothing was left behind",
            sqlstate=refused.error.sqlstate,
            object=refused.what,
        ) from refused.error
    except psycopg.errors.Error as error:
        if target.closed or ends_by_itself(error, FailurePhase.WORKFLOW):
            raise
        raise FailedPreconditionError(
            f"the tables cannot be made in {database}: {first_line(error)}",
            next_step="correct it there and repeat the command; nothing was left behind",
            sqlstate=error.sqlstate,
        ) from error


def _take_turns(target: Connection[TupleRow]) -> None:
    """Two workflows may lean on the same types and functions: the second one finds them made."""
    target.execute("SELECT pg_catalog.set_config('lock_timeout', %s, true)", [f"{MAKERS_WAIT_S}s"])
    target.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [MAKERS_LOCK])


def support_attempts(target: Connection[TupleRow], plan: SchemaPlan) -> Iterator[Attempt]:
    """What makes the schemas, extensions and other support that the target lacks.

    Each is looked up when its turn comes: an extension may have brought it along.
    """
    yield from _missing(target, [s for s in plan.support if s.kind == "SCHEMA"])
    for name in plan.extensions:
        schema = sql.Identifier(plan.extension_schemas[name])
        statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {};")
        ddl = statement.format(sql.Identifier(name), schema).as_string(target)
        yield Attempt(f"extension {name}", ddl)
    others = (s for s in plan.support if s.kind != "SCHEMA" and s.order is None)
    yield from _missing(target, others)


def late_attempts(target: Connection[TupleRow], plan: SchemaPlan) -> Iterator[Attempt]:
    """What makes the support that leans on the tables: views, and functions of row types."""
    yield from _missing(target, (s for s in plan.support if s.order is not None))


def _missing(target: Connection[TupleRow], supports: Iterable[Support]) -> Iterator[Attempt]:
    for support in supports:
        if not support_kinds.exists(target, support.kind, support.identity):
            yield Attempt(f"{support.kind.lower()} {support.identity}", support.ddl)
