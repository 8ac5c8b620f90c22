"""A file that cannot run in a transaction: statement by statement, with a mark before each.

Decides what is to be done with a statement whose outcome is unknown, because the process or the
connection ended in it. Two sessions take part. The file's session runs its statements. The *keeper*
holds the tenant's lock, so that nothing in the file can give it up, and writes the marks: before a
statement its number, after one that failed the negative of it, after the last one that the version
is complete.

An index that is built concurrently stays invalid when its statement fails. Before the mark of such
a statement the name must be free, so what is found under it afterwards is this file's own: a valid
index means that the statement is done, an invalid one is dropped and built again. Any other
statement that was interrupted is run again; it has to be written so that this does no harm.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from psycopg import errors, sql

from tidegate import steps
from tidegate.engines.postgres import alone_statements, tenant_records, tenants
from tidegate.engines.postgres.tenants import ScriptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.alone_statements import Index
    from tidegate.engines.postgres.script import Piece
    from tidegate.engines.postgres.tenant_records import Recorded
    from tidegate.engines.postgres.tenants import TenantSettings

BEGUN: Final = steps.declare(
    "tenant.statement.begun",
    runs_in="node",
    plan="tenant",
    description="a statement outside a transaction is marked as begun, and has not been sent",
)
RAN: Final = steps.declare(
    "tenant.statement.ran",
    runs_in="node",
    plan="tenant",
    description="a statement outside a transaction has run; no mark says so yet",
)


class Before(Enum):
    """What is known of an earlier attempt at a statement."""

    NOTHING = "nothing"
    """There was none; whatever is there is not this file's."""
    UNKNOWN = "unknown"
    """It was begun; how it ended is unknown."""
    FAILED = "failed"
    """It failed; what is there and invalid is this file's, and nothing else."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What is to be run, and where."""

    settings: TenantSettings
    pieces: Sequence[Piece]
    version: Recorded


def run(session: Connection[TupleRow], keeper: Connection[TupleRow], work: Alone) -> bool:
    """Run a file's statements, and record its version.

    Args:
        session: of the file; no transaction is open.
        keeper: another session of the same database.
        work: what is to be run.

    Returns:
        Whether it was run; false when another session had done it before the lock was ours.

    Raises:
        ScriptError: a statement failed; those before it stay, and are not run again. Or the
            tenant's lock was not free.
        psycopg.OperationalError: a connection broke.
    """
    keeper.execute(tenants.session_settings(work.settings))
    tenants.take_session_lock(keeper, work.settings)
    found = _mark_of(keeper, work)
    if found is not None and found[0] is None:
        return False
    session.execute(tenants.session_settings(work.settings))
    first, before = 1, Before.NOTHING
    if found is not None and found[0] is not None:
        before = Before.UNKNOWN if found[0] > 0 else Before.FAILED
        is_same = found[1] == work.version.sha256
        first, before = (abs(found[0]), before) if is_same else (1, Before.FAILED)
    for number, piece in enumerate(work.pieces, 1):
        if number < first:
            continue
        try:
            _run_one(session, keeper, work, number, before)
        except errors.Error as error:
            if session.closed or session.broken or keeper.closed or keeper.broken:
                raise
            _tidy(session, piece, work.settings)
            keeper.execute(_marking(work, -number))
            failed = tenants.script_error(error, piece.text, piece.line)
            if before is Before.UNKNOWN and alone_statements.built_by(piece.text) is None:
                failed = _unknown(failed)
            raise failed from None
        before = Before.NOTHING
    keeper.execute(_marking(work, None))
    return True


def _unknown(failed: ScriptError) -> ScriptError:
    return ScriptError(
        failed.sqlstate,
        f"{failed.message}; the statement was interrupted before, and whether it had taken effect"
        " then is unknown; if it had, run what is left of the file by hand and record the version:"
        " tidegate tenant stamp",
        failed.line,
    )


def _run_one(
    session: Connection[TupleRow],
    keeper: Connection[TupleRow],
    work: Alone,
    number: int,
    before: Before,
) -> None:
    piece = work.pieces[number - 1]
    index = alone_statements.built_by(piece.text)
    if before is not Before.NOTHING:
        is_built = _drop_invalid(session, piece, work.settings)
        if is_built and before is Before.UNKNOWN:
            return
    if index is not None:
        _refuse_taken(session, index)
    keeper.execute(_marking(work, number))
    steps.reached(BEGUN)
    tenants.run_piece(session, piece)
    steps.reached(RAN)


def _mark_of(keeper: Connection[TupleRow], work: Alone) -> tuple[int | None, str] | None:
    """The statement begun last, None when the version is complete, and of which text."""
    row = keeper.execute(
        sql.SQL("SELECT begun, sha256 FROM {} WHERE source = {} AND version = {}").format(
            _table(work), sql.Literal(work.settings.source), sql.Literal(work.version.id)
        )
    ).fetchone()
    return None if row is None else (row[0], row[1].removeprefix(tenant_records.UNFINISHED))


def _marking(work: Alone, number: int | None) -> sql.Composed:
    """The statement that marks one as begun, or the version as complete."""
    # An incomplete version has no hash that any file has: programs that do not know marks
    # must not take it for done.
    sha256 = work.version.sha256
    values = (
        work.settings.source,
        work.version.id,
        work.version.name,
        sha256 if number is None else f"{tenant_records.UNFINISHED}{sha256}",
        number,
    )
    return sql.SQL(
        "INSERT INTO {} (source, version, name, sha256, begun) VALUES ({})"
        " ON CONFLICT (source, version) DO UPDATE SET name = excluded.name,"
        " sha256 = excluded.sha256, begun = excluded.begun,"
        " applied_at = pg_catalog.clock_timestamp()"
    ).format(_table(work), sql.SQL(", ").join(map(sql.Literal, values)))


def _table(work: Alone) -> sql.Identifier:
    return tenant_records.table_of(work.settings.version_schema, work.settings.version_table)


_INDEXES: Final = (
    "SELECT n.nspname::text, c.relname::text, i.indisvalid FROM pg_catalog.pg_index i"
    " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
)


def _found(session: Connection[TupleRow], index: Index) -> list[tuple[str, str, bool]]:
    """The index as it is there; of one without a name, the invalid ones of its table."""
    if index.name:
        return session.execute(
            f"{_INDEXES}"  # noqa: S608 - a constant
            " WHERE c.relname = %s AND c.relnamespace ="
            " (SELECT relnamespace FROM pg_catalog.pg_class"
            " WHERE oid = pg_catalog.to_regclass(%s))",
            [index.name, index.table],
        ).fetchall()
    return session.execute(
        f"{_INDEXES} WHERE NOT i.indisvalid AND i.indrelid = pg_catalog.to_regclass(%s)",
        [index.table],
    ).fetchall()


def _refuse_taken(session: Connection[TupleRow], index: Index) -> None:
    """Refuse to build an index under a name that is taken by one that is not ours."""
    for schema, name, is_valid in _found(session, index):
        if not is_valid:
            raise ScriptError(
                "XX002",
                f"the index {schema}.{name} is there and invalid, and not by this file;"
                " drop it (DROP INDEX CONCURRENTLY), then try again",
                None,
            )
        if not index.may_be_there:
            raise ScriptError("42P07", f'relation "{name}" already exists', None)


def _drop_invalid(session: Connection[TupleRow], piece: Piece, settings: TenantSettings) -> bool:
    """Drop what an earlier attempt at a statement left invalid; whether its index is valid."""
    index = alone_statements.built_by(piece.text)
    if index is None:
        if alone_statements.rebuilds(piece.text):
            _drop(session, _left_by_reindex(session, settings))
        return False
    found = _found(session, index)
    _drop(session, [(schema, name) for schema, name, is_valid in found if not is_valid])
    return bool(index.name) and any(is_valid for _, _, is_valid in found)


def _left_by_reindex(
    session: Connection[TupleRow], settings: TenantSettings
) -> list[tuple[str, str]]:
    rows = session.execute(
        f"{_INDEXES} WHERE NOT i.indisvalid AND n.nspname = %s"
        " AND c.relname ~ '_cc(new|old)[0-9]*$'",
        [settings.version_schema],
    ).fetchall()
    return [(schema, name) for schema, name, _ in rows]


def _drop(session: Connection[TupleRow], indexes: Sequence[tuple[str, str]]) -> None:
    for name in indexes:
        session.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(*name))
        )


def _tidy(session: Connection[TupleRow], piece: Piece, settings: TenantSettings) -> None:
    """Drop what a failed statement left invalid; an invalid index costs every write.

    If that cannot be done now, the next attempt does it.
    """
    with contextlib.suppress(errors.Error):
        _drop_invalid(session, piece, settings)
