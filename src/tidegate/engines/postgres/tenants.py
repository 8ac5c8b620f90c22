"""One tenant's transaction: its settings, its lock, its version table, its script.

Decides what is sent, in as few round trips as correctness allows: one that begins, takes the
tenant's lock and reads its versions, one that runs the script, records the versions and commits.
The lock makes two that upgrade the same tenant take turns, whoever they are; the second one reads
what the first has committed. It must not decide what is to be run.

A script is sent whole, through the simple protocol: the server cuts it. It runs under the role's
own settings, as it would in psql, but for the search path, which is the tenant's, and the bounds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import errors, sql

from tidegate.engines.postgres import holders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.holders import Holder
    from tidegate.engines.postgres.script import Piece

LOCK_PREFIX: Final = "tidegate tenant "
DEFAULT_SCHEMA: Final = "public"
COPY_CHARACTERS: Final = 65_536
"""Of the rows of a COPY, sent at once."""
#: A version is stored elsewhere after the COMMIT, so that has to survive a crash of the server.
_DURABLE: Final = (
    "pg_catalog.set_config('synchronous_commit',"
    " CASE pg_catalog.current_setting('synchronous_commit')"
    " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
)
_OWN_SCHEMAS: Final = "^(pg_|information_schema$|_tidegate)"


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """How one tenant's transactions run."""

    schema: str
    """Empty when the tenant is its whole database; its search path is then left alone."""
    also_search: tuple[str, ...]
    role: str
    version_table: str
    lock_timeout_s: float
    statement_timeout_s: float

    @property
    def version_schema(self) -> str:
        """The schema of the version table."""
        return self.schema or DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class Recorded:
    """One version as the tenant has it recorded."""

    id: str
    name: str
    sha256: str


class TenantMissingError(Exception):
    """The tenant's schema is not there."""


class ScriptError(Exception):
    """A script failed; nothing of its transaction is left."""

    sqlstate: str | None

    def __init__(self, sqlstate: str | None, message: str, line: int | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.line = line
        """The line of the script, when the server said where."""


def begin(
    connection: Connection[TupleRow], settings: TenantSettings
) -> tuple[tuple[str, str], ...]:
    """Begin the tenant's transaction, take its lock, and read its versions: id and hash.

    The transaction is left open; the version table is there.

    Raises:
        TenantMissingError: there is no such schema; no transaction is open.
        psycopg.Error: the lock was not free in time, or the server failed.
    """
    table = sql.Identifier(settings.version_schema, settings.version_table)
    read = sql.SQL("SELECT version, sha256 FROM {}").format(table)
    cursor = connection.cursor()
    try:
        cursor.execute(f"{_opening(settings)}; {read.as_string()}".encode())
    except errors.UndefinedTable:
        connection.execute("ROLLBACK")
        return _begin_first(connection, settings)
    while cursor.nextset():
        pass
    return tuple(cursor.fetchall())


def _begin_first(
    connection: Connection[TupleRow], settings: TenantSettings
) -> tuple[tuple[str, str], ...]:
    """The same for a tenant without a version table, which is made."""
    schema = settings.version_schema
    connection.execute(_opening(settings).encode())
    found = connection.execute(
        sql.SQL("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = {}").format(
            sql.Literal(schema)
        )
    ).fetchone()
    if found is None:
        connection.execute("ROLLBACK")
        raise TenantMissingError(schema)
    table = sql.Identifier(schema, settings.version_table)
    connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (version text NOT NULL PRIMARY KEY,"
            " name text NOT NULL, sha256 text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())"
        ).format(table)
    )
    read = sql.SQL("SELECT version, sha256 FROM {}").format(table)
    return tuple(connection.execute(read).fetchall())


def _opening(settings: TenantSettings) -> str:
    """BEGIN, the settings of this transaction, the tenant's lock."""
    calls = [_bounds(settings.lock_timeout_s, settings.statement_timeout_s, settings.role)]
    if settings.schema:
        path = sql.Literal(search_path(settings)).as_string()
        calls.append(f"pg_catalog.set_config('search_path', {path}, true)")
    key = sql.Literal(f"{LOCK_PREFIX}{settings.version_schema}").as_string()
    return (
        f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT {', '.join(calls)};"
        f" SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({key}, 0))"
    )


@functools.cache
def _bounds(lock_timeout_s: float, statement_timeout_s: float, role: str) -> str:
    """The settings that are the same for all tenants of a run, as text: it is sent for each."""
    values = {
        "lock_timeout": _milliseconds(lock_timeout_s),
        "statement_timeout": _milliseconds(statement_timeout_s),
        "idle_in_transaction_session_timeout": _milliseconds(statement_timeout_s),
        "client_min_messages": "warning",
        # Scripts are cut by the rules that this setting makes the server's, too.
        "standard_conforming_strings": "on",
    }
    if role:
        values["role"] = role
    calls = [
        sql.SQL("pg_catalog.set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in values.items()
    ]
    return ", ".join([*(call.as_string() for call in calls), _DURABLE])


def search_path(settings: TenantSettings) -> str:
    """The search path as a setting's value: the tenant's schema, then the shared ones."""
    return ", ".join(quoted(schema) for schema in (settings.schema, *settings.also_search))


def quoted(identifier: str) -> str:
    """An identifier in double quotes."""
    return '"' + identifier.replace('"', '""') + '"'


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def commit_script(
    connection: Connection[TupleRow],
    settings: TenantSettings,
    script: str,
    versions: Sequence[Recorded],
) -> None:
    """Run a script in the open transaction, record its versions and commit; in one round trip.

    Raises:
        ScriptError: it failed and was rolled back.
        psycopg.OperationalError: the connection broke; whether it was committed is unknown.
    """
    # The line feed ends a comment, the semicolon a statement, that the script may end with.
    whole = f"{script}\n;{_recording(connection, settings, versions)}; COMMIT"
    try:
        connection.execute(whole.encode())
    except errors.Error as error:
        if connection.closed or connection.broken:
            raise
        connection.execute("ROLLBACK")
        raise _script_error(error, script) from None


def run_pieces(connection: Connection[TupleRow], pieces: Sequence[Piece]) -> None:
    """Run the pieces of a script one after another in the open transaction.

    Raises:
        ScriptError: one failed; everything was rolled back. Its line is that of the script.
        psycopg.OperationalError: the connection broke.
    """
    for piece in pieces:
        try:
            _run_piece(connection, piece)
        except errors.Error as error:
            if connection.closed or connection.broken:
                raise
            connection.execute("ROLLBACK")
            raise _script_error(error, piece.text, piece.line) from None


def _run_piece(connection: Connection[TupleRow], piece: Piece) -> None:
    cursor = connection.cursor()
    if piece.rows is None:
        cursor.execute(piece.text.encode())
        return
    with cursor.copy(piece.text.encode()) as copy:
        for at in range(0, len(piece.rows), COPY_CHARACTERS):
            copy.write(piece.rows[at : at + COPY_CHARACTERS])


def run_alone(
    connection: Connection[TupleRow],
    settings: TenantSettings,
    pieces: Sequence[Piece],
    version: Recorded,
) -> None:
    """Run statements one by one outside of a transaction, then record their version.

    The transaction that :func:`begin` opened is ended; the tenant's lock is held by the session
    meanwhile.

    Raises:
        ScriptError: a statement failed; those before it stay.
        psycopg.OperationalError: the connection broke.
    """
    key = sql.SQL("pg_catalog.hashtextextended({}, 0)").format(
        sql.Literal(f"{LOCK_PREFIX}{settings.version_schema}")
    )
    connection.execute(sql.SQL("SELECT pg_catalog.pg_advisory_lock({})").format(key))
    connection.execute("COMMIT")
    piece: Piece | None = None
    try:
        connection.execute(_session(settings))
        for piece in pieces:
            _run_piece(connection, piece)
        _refuse_invalid_indexes(connection, settings)
        connection.execute(_recording(connection, settings, [version]).encode())
    except errors.Error as error:
        if connection.closed or connection.broken:
            raise
        text, line = (piece.text, piece.line) if piece is not None else ("", 1)
        raise _script_error(error, text, line) from None
    finally:
        if not (connection.closed or connection.broken):
            clean(connection)


def _session(settings: TenantSettings) -> sql.Composed:
    """The settings of a session, for statements outside of a transaction."""
    values = {
        "lock_timeout": _milliseconds(settings.lock_timeout_s),
        "statement_timeout": _milliseconds(settings.statement_timeout_s),
        "standard_conforming_strings": "on",
    }
    if settings.schema:
        values["search_path"] = search_path(settings)
    if settings.role:
        values["role"] = settings.role
    calls = [
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(
            sql.Literal(name), sql.Literal(value)
        )
        for name, value in values.items()
    ]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls))


def _refuse_invalid_indexes(connection: Connection[TupleRow], settings: TenantSettings) -> None:
    """An index whose concurrent creation was interrupted is there, is kept up, and is not used."""
    rows = connection.execute(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_index i"
        " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE NOT i.indisvalid AND n.nspname = %s ORDER BY 2",
        [settings.version_schema],
    ).fetchall()
    if rows:
        named = ", ".join(f"{schema}.{name}" for schema, name in rows)
        raise ScriptError(
            "XX002",
            f"an interrupted CREATE INDEX CONCURRENTLY left invalid: {named};"
            " drop it (DROP INDEX CONCURRENTLY), then try again",
            None,
        )


def _recording(
    connection: Connection[TupleRow], settings: TenantSettings, versions: Sequence[Recorded]
) -> str:
    table = sql.Identifier(settings.version_schema, settings.version_table)
    rows = [
        sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, (v.id, v.name, v.sha256))))
        for v in versions
    ]
    statement = sql.SQL("INSERT INTO {} (version, name, sha256) VALUES {}").format(
        table, sql.SQL(", ").join(rows)
    )
    return statement.as_string(connection)


def _script_error(error: errors.Error, script: str, first_line: int = 1) -> ScriptError:
    position = error.diag.statement_position
    line = None
    if position is not None and position.isdigit() and int(position) <= len(script):
        line = script.count("\n", 0, int(position) - 1) + first_line
    # The detail is left out: it holds values of rows.
    parts = (error.diag.message_primary or str(error), error.diag.context)
    text = "; ".join(" ".join(part.split()) for part in parts if part)
    return ScriptError(error.sqlstate, text, line)


def rollback(connection: Connection[TupleRow]) -> None:
    """End an open transaction without an effect."""
    connection.execute("ROLLBACK")


def commit(connection: Connection[TupleRow]) -> None:
    """Commit a transaction in which nothing but the version table was made."""
    connection.execute("COMMIT")


def clean(connection: Connection[TupleRow]) -> None:
    """Make a used session like a new one: settings, role, temporary tables, locks."""
    connection.execute("DISCARD ALL")


def schemas_like(connection: Connection[TupleRow], pattern: str) -> list[str]:
    """The schemas whose names are LIKE the pattern; those of the system are left out."""
    rows = connection.execute(
        "SELECT nspname::text FROM pg_catalog.pg_namespace"
        " WHERE nspname LIKE %s AND nspname !~ %s ORDER BY nspname",
        [pattern, _OWN_SCHEMAS],
    )
    return [row[0] for row in rows]


def databases_like(connection: Connection[TupleRow], pattern: str) -> list[str]:
    """The databases of the server whose names are LIKE the pattern and that can be connected to."""
    rows = connection.execute(
        "SELECT datname::text FROM pg_catalog.pg_database"
        " WHERE datname LIKE %s AND datallowconn AND NOT datistemplate ORDER BY datname",
        [pattern],
    )
    return [row[0] for row in rows]


def databases_named(connection: Connection[TupleRow], name: str) -> list[str]:
    """The database of exactly that name, if it is there."""
    rows = connection.execute(
        "SELECT datname::text FROM pg_catalog.pg_database WHERE datname = %s", [name]
    )
    return [row[0] for row in rows]


def lock_holders(connection: Connection[TupleRow], schema: str) -> list[Holder]:
    """Sessions that hold locks on relations of a schema now: who may have been in the way."""
    pids = connection.execute(
        "SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l"
        " JOIN pg_catalog.pg_class c ON c.oid = l.relation"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE l.granted AND n.nspname = %s AND l.pid <> pg_catalog.pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_catalog.pg_database"
        " WHERE datname = pg_catalog.current_database())",
        [schema],
    ).fetchall()
    return holders.of_sessions(connection, [pid for (pid,) in pids])
