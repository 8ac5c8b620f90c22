"""One tenant's transaction: its settings, its lock, its version table, its script.

Decides what is sent, in as few round trips as correctness allows: one that begins, takes the
tenant's lock and reads its versions, one that runs the script, records the versions and commits.
The lock makes two that upgrade the same tenant take turns, whoever they are; the second one reads
what the first has committed. It must not decide what is to be run.

The lock is never waited for inside a transaction: one that waits holds a snapshot, and whoever has
the lock may be building an index concurrently, which waits for every older snapshot. It is tried,
and the transaction is rolled back between two attempts.

A script is sent whole, through the simple protocol: the server cuts it. It runs under the role's
own settings, as it would in psql, but for the search path, which is the tenant's, and the bounds.
What it sets, holds or becomes ends with it: between two scripts the session is made like a new one,
and a version is recorded under our settings, not under those the script left.
"""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors, sql

from tidegate.engines.postgres import holders, tenant_records
from tidegate.engines.postgres.quoting import quoted
from tidegate.engines.postgres.tenant_places import has_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.holders import Holder
    from tidegate.engines.postgres.script import Piece
    from tidegate.engines.postgres.tenant_records import Recorded

#: A row of the version table: source, version, name, hash, the statement begun last, if any.
type FoundRow = tuple[str, str, str, str, int | None]

LOCK_PREFIX: Final = "tidegate tenant "
DEFAULT_SCHEMA: Final = "public"
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.25
"""Between two attempts at the tenant's lock."""
COPY_CHARACTERS: Final = 65_536
"""Of the rows of a COPY, sent at once."""


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """How one tenant's transactions run."""

    schema: str
    """Empty when the tenant is its whole database; its search path is then left alone."""
    also_search: tuple[str, ...]
    role: str
    source: str
    """Whose versions are recorded."""
    version_table: str
    lock_timeout_s: float
    statement_timeout_s: float

    @property
    def version_schema(self) -> str:
        """The schema of the version table."""
        return self.schema or DEFAULT_SCHEMA

    @property
    def statements(self) -> tenant_records.Statements:
        """What is sent to its version table."""
        return _statements(self.version_schema, self.version_table)

    @property
    def lock_key(self) -> str:
        """What the tenant's advisory lock is named by, before it is hashed."""
        return f"{LOCK_PREFIX}{self.version_schema}"


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


@functools.lru_cache(maxsize=64)
def _statements(schema: str, table: str) -> tenant_records.Statements:
    return tenant_records.statements(schema, table)


def begin(connection: Connection[TupleRow], settings: TenantSettings) -> tuple[FoundRow, ...]:
    """Begin the tenant's transaction, take its lock, and read its versions.

    The transaction is left open; the version table is there.

    Raises:
        TenantMissingError: there is no such schema; no transaction is open.
        ScriptError: the tenant's lock was not free within the bound of locks.
        psycopg.Error: the server failed.
    """
    turn = _Turn(settings.lock_timeout_s)
    while True:
        try:
            found = _attempt(connection, settings)
        except (errors.UndefinedTable, errors.UndefinedColumn) as error:
            connection.execute("ROLLBACK")
            found = _attempt_first(connection, settings, is_old=error.sqlstate == "42703")
        if found is not None:
            return found
        connection.execute("ROLLBACK")
        turn.wait()


class _Turn:
    """Pauses between attempts at a tenant's lock, and the end of them."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._deadline = time.monotonic() + bound_s
        self._pause_s = FIRST_PAUSE_S

    def wait(self) -> None:
        """Pause before the next attempt.

        Raises:
            ScriptError: the bound is reached.
        """
        if time.monotonic() >= self._deadline:
            raise ScriptError(
                errors.LockNotAvailable.sqlstate,
                f"another session has been upgrading the tenant for {self._bound_s:g} s",
                None,
            )
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _attempt(
    connection: Connection[TupleRow], settings: TenantSettings
) -> tuple[FoundRow, ...] | None:
    """One attempt, in one round trip; None when the lock is another's."""
    cursor = connection.execute(f"{_opening(settings)}; {settings.statements.read}".encode())
    locked, rows = _results(cursor)[-2:]
    return tuple(rows) if locked[0][0] else None


def _results(cursor: Any) -> list[list[Any]]:
    """The rows of each statement of a script that answers with some."""
    found = []
    while True:
        if cursor.description is not None:
            found.append(cursor.fetchall())
        if not cursor.nextset():
            return found


def _attempt_first(
    connection: Connection[TupleRow], settings: TenantSettings, *, is_old: bool
) -> tuple[FoundRow, ...] | None:
    """The same for a tenant whose version table is to be made, or to be brought up to date."""
    locked = _results(connection.execute(_opening(settings).encode()))[-1]
    if not locked[0][0]:
        return None
    schema = settings.version_schema
    if not has_schema(connection, schema):
        connection.execute("ROLLBACK")
        raise TenantMissingError(schema)
    statements = settings.statements
    connection.execute((statements.renew if is_old else statements.make).encode())
    return tuple(connection.execute(statements.read.encode()).fetchall())


def _opening(settings: TenantSettings) -> str:
    """BEGIN, the settings of this transaction, an attempt at the tenant's lock."""
    key = sql.Literal(settings.lock_key).as_string()
    return (
        f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT {_calls(settings)};"
        f" SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended({key}, 0))"
    )


def _calls(settings: TenantSettings, *, is_local: bool = True) -> str:
    """The calls that set the settings, for a transaction or for the session."""
    bounds = (settings.lock_timeout_s, settings.statement_timeout_s)
    calls = _bounds(*bounds, settings.role, is_local=is_local)
    if not settings.schema:
        return calls
    path = sql.Literal(search_path(settings)).as_string()
    return f"{calls}, pg_catalog.set_config('search_path', {path}, {str(is_local).lower()})"


@functools.cache
def _bounds(lock_timeout_s: float, statement_timeout_s: float, role: str, *, is_local: bool) -> str:
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
        sql.SQL("pg_catalog.set_config({}, {}, {})").format(
            sql.Literal(name), sql.Literal(value), sql.Literal(is_local)
        )
        for name, value in values.items()
    ]
    return ", ".join([*(call.as_string() for call in calls), _durable(is_local=is_local)])


def _durable(*, is_local: bool = True) -> str:
    """A version is stored elsewhere after the COMMIT, so that has to survive the server's crash."""
    return (
        "pg_catalog.set_config('synchronous_commit',"
        " CASE pg_catalog.current_setting('synchronous_commit')"
        f" WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, {str(is_local).lower()})"
    )


def search_path(settings: TenantSettings) -> str:
    """The search path as a setting's value: the tenant's schema, then the shared ones."""
    return ", ".join(quoted(schema) for schema in (settings.schema, *settings.also_search))


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def commit_script(
    connection: Connection[TupleRow],
    settings: TenantSettings,
    scripts: Sequence[str],
    versions: Sequence[Recorded],
) -> None:
    """Run scripts in the open transaction, record their versions and commit; in one round trip.

    Raises:
        ScriptError: one failed, and all was rolled back. Its line counts from the first line of
            the first script; each script has two lines more than line feeds.
        psycopg.OperationalError: the connection broke; whether it was committed is unknown.
    """
    # The line feed ends a comment, the semicolon a statement, that a script may end with.
    script = f"\n;{as_new(settings)};\n".join(scripts) if len(scripts) > 1 else scripts[0]
    whole = f"{script}\n;{_regain(settings)};{_recording(settings, versions)}; COMMIT"
    try:
        connection.execute(whole.encode())
    except errors.Error as error:
        if connection.closed or connection.broken:
            raise
        connection.execute("ROLLBACK")
        raise script_error(error, script) from None


def _regain(settings: TenantSettings) -> str:
    """What makes the session ours again after a script: its role, and a commit that lasts."""
    role = f", pg_catalog.set_config('role', {sql.Literal(settings.role).as_string()}, true)"
    return (
        "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE;"
        f" SELECT {_durable()}{role if settings.role else ''}"
    )


def as_new(settings: TenantSettings) -> str:
    """What makes a session like a new one inside a transaction, as DISCARD ALL does outside."""
    return (
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; DEALLOCATE ALL;"
        " UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP;"
        f" SELECT {_calls(settings)}"
    )


def make_as_new(connection: Connection[TupleRow], settings: TenantSettings) -> None:
    """Make the session like a new one inside the open transaction."""
    connection.execute(as_new(settings).encode())


def run_pieces(connection: Connection[TupleRow], pieces: Sequence[Piece]) -> None:
    """Run the pieces of a script one after another in the open transaction.

    Raises:
        ScriptError: one failed; everything was rolled back. Its line is that of the script.
        psycopg.OperationalError: the connection broke.
    """
    for piece in pieces:
        try:
            run_piece(connection, piece)
        except errors.Error as error:
            if connection.closed or connection.broken:
                raise
            connection.execute("ROLLBACK")
            raise script_error(error, piece.text, piece.line) from None


def run_piece(connection: Connection[TupleRow], piece: Piece) -> None:
    """Run one piece of a script."""
    cursor = connection.cursor()
    if piece.rows is None:
        cursor.execute(piece.text.encode())
        return
    with cursor.copy(piece.text.encode()) as copy:
        for at in range(0, len(piece.rows), COPY_CHARACTERS):
            copy.write(piece.rows[at : at + COPY_CHARACTERS])


def take_session_lock(connection: Connection[TupleRow], settings: TenantSettings) -> None:
    """Take the tenant's lock for the session, which is in autocommit.

    Raises:
        ScriptError: the lock was not free within the bound of locks.
    """
    attempt = sql.SQL(
        "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended({}, 0))"
    ).format(sql.Literal(settings.lock_key))
    turn = _Turn(settings.lock_timeout_s)
    while connection.execute(attempt).fetchone() != (True,):
        turn.wait()


def session_settings(settings: TenantSettings) -> bytes:
    """The statement that sets the settings for statements outside a transaction."""
    return f"SELECT {_calls(settings, is_local=False)}".encode()


def _recording(settings: TenantSettings, versions: Sequence[Recorded]) -> str:
    return tenant_records.recording(
        settings.version_schema, settings.version_table, settings.source, versions
    )


def forget(
    connection: Connection[TupleRow], settings: TenantSettings, versions: Sequence[str]
) -> None:
    """Delete the source's rows of some versions, in the open transaction."""
    schema, table = settings.version_schema, settings.version_table
    statement = tenant_records.amending(schema, table, settings.source, remove=versions)
    connection.execute(statement.encode())


def adopt(
    connection: Connection[TupleRow], settings: TenantSettings, former: Sequence[str]
) -> None:
    """Give the rows of former sources to the source, in the open transaction."""
    connection.execute(
        tenant_records.adopting(
            settings.version_schema, settings.version_table, settings.source, former
        ).encode()
    )


def script_error(error: errors.Error, script: str, first_line: int = 1) -> ScriptError:
    """The server's words about a script, with the line if it said where."""
    position = error.diag.statement_position
    line = None
    if position is not None and position.isdigit() and int(position) <= len(script):
        line = script.count("\n", 0, int(position) - 1) + first_line
    # The detail is left out: it holds values of rows.
    parts = (error.diag.message_primary or str(error), error.diag.context)
    text = "; ".join(" ".join(part.split()) for part in parts if part)
    return ScriptError(error.sqlstate, text, line)


_TRACES: Final = re.compile(
    r"\bset_config\s*\(|\bset\s+(?:session\s+|local\s+)?[a-z_][\w$]*\s*\.|\bload\s+'", re.IGNORECASE
)


@functools.lru_cache(maxsize=1024)
def leaves_traces(script: str) -> bool:
    """Whether a script may leave what DISCARD ALL does not take away: settings of its own making.

    Once set, such a setting is there, empty, until the session ends.
    """
    return _TRACES.search(script) is not None


def rollback(connection: Connection[TupleRow]) -> None:
    """End an open transaction without an effect."""
    connection.execute("ROLLBACK")


def commit(connection: Connection[TupleRow]) -> None:
    """Commit a transaction in which nothing but the version table was made."""
    connection.execute("COMMIT")


def clean(connection: Connection[TupleRow]) -> None:
    """Make a used session like a new one: settings, role, temporary tables, locks."""
    connection.execute("DISCARD ALL")


def lock_holders(connection: Connection[TupleRow], settings: TenantSettings) -> list[Holder]:
    """Sessions that hold the tenant's lock or locks on its relations: who may be in the way."""
    pids = connection.execute(
        "SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l"
        " LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation"
        " LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,"
        " pg_catalog.hashtextextended(%s, 0) AS key"
        " WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid()"
        " AND (n.nspname = %s OR (l.locktype = 'advisory' AND l.objsubid = 1"
        " AND l.classid::bigint = (key >> 32) & 4294967295"
        " AND l.objid::bigint = key & 4294967295))"
        " AND l.database = (SELECT oid FROM pg_catalog.pg_database"
        " WHERE datname = pg_catalog.current_database())",
        [settings.lock_key, settings.version_schema],
    ).fetchall()
    return holders.of_sessions(connection, [pid for (pid,) in pids])
