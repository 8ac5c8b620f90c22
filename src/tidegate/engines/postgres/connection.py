"""Opens every connection to a PostgreSQL database, and says what the server is.

One function opens connections, so that all sessions agree on what values look like as text, see
all rows or fail, and wait for locks only so long. A session that read rows with another
``TimeZone`` or under row security would copy something else than the table (datapath rules 9
and 22). Defaults of our role or database (``ALTER ROLE … SET``) decide nothing: least of all
``role``, which would hide the rights that were granted to ours. ``synchronous_commit`` is at least
``on`` everywhere: an acknowledged position must survive a crash of the server that holds it (rule
3). Only chunks of a copy, which no position follows, turn it off for their transaction.

A server must not keep a session whose process or machine is gone: it probes the connection itself,
and ends transactions that stay idle. A process that is stopped still answers the probes, and may
hold a transaction that no timeout ends; its successor ends the session then
(:mod:`tidegate.engines.postgres.predecessors`).

It must never let a secret out: errors of libpq pass through :func:`redacted`, and the password
itself is removed from them. What a server said after it spoke PostgreSQL's protocol is passed on;
anything else that libpq says about a host and port is not, because it would tell a caller of the
API what listens there. It is a note of the error, for the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tidegate.conninfo import guarded, parsed
from tidegate.engines.failures import FailureKind
from tidegate.engines.postgres.predecessors import application_name
from tidegate.engines.postgres.session import PostgresSession
from tidegate.engines.postgres.sqlstates import failure_of
from tidegate.errors import AuthenticationError, ConnectError, TidegateError
from tidegate.topology.connections import Places, redacted

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.seam import Mark
    from tidegate.topology.connections import Endpoint

CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 5.0
IDLE_TRANSACTION_S = 600.0
"""How long a transaction of ours may wait for its process; longer than any of them has to."""
SNAPSHOT_IDLE_S = 86_400.0
"""The same for sessions that do nothing but keep a snapshot while others read under it."""

#: What libpq is told unless the connection string says otherwise.
TRANSPORT: dict[str, str | int] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

#: The same from the server's side, as settings of a session; without effect on a local socket.
SERVER_KEEPALIVES: tuple[tuple[str, str, int], ...] = (
    ("tcp_keepalives_idle", "15", 10),
    ("tcp_keepalives_interval", "5", 10),
    ("tcp_keepalives_count", "3", 10),
)

#: What every session is set to: setting, value, first major version that knows it.
SESSION: tuple[tuple[str, str, int], ...] = (
    ("role", "none", 10),
    *SERVER_KEEPALIVES,
    ("tcp_user_timeout", "30000", 12),
    ("row_security", "off", 10),
    ("statement_timeout", "0", 10),
    ("transaction_timeout", "0", 17),
    ("idle_session_timeout", "0", 14),
    ("default_transaction_isolation", "read committed", 10),
    ("default_transaction_read_only", "off", 10),
    ("default_transaction_deferrable", "off", 10),
    ("datestyle", "ISO, YMD", 10),
    ("intervalstyle", "postgres", 10),
    ("timezone", "UTC", 10),
    ("extra_float_digits", "1", 10),
    ("bytea_output", "hex", 10),
    ("xmloption", "content", 10),
    ("lc_monetary", "C", 10),
    ("quote_all_identifiers", "off", 10),
    ("standard_conforming_strings", "on", 10),
    ("array_nulls", "on", 10),
    ("search_path", "pg_catalog", 10),
)

#: Set in a session that has another value and may change it; without the right to, even setting
#: what is there already is an error.
_REPLICATION_ROLE = (
    "CASE WHEN pg_catalog.current_setting('session_replication_role') <> 'origin' AND {allowed}"
    " THEN pg_catalog.set_config('session_replication_role', 'origin', false) END"
)

#: Parts of libpq's messages that mean: the server answered and does not accept who we are.
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
    "server requested a password",
    "permission denied for database",
    "permission denied to start wal sender",
    "must be superuser or replication role",
    "authentication method requirement",
)

#: What the server said in PostgreSQL's protocol.
_ANSWER: Final = re.compile(r"(?:FATAL|ERROR|PANIC):\s+([^\n]*)")

_LIMITED: Final = re.compile(r'too many connections for (role|database) "([^"]+)"')

#: Parts of libpq's own messages, and what is said instead.
_OWN_WORDS: Final = (
    (
        "authentication method requirement",
        "the server asks for the password in clear text, which needs sslmode=verify-full",
    ),
    ("no password supplied", "the server asks for a password and the tablet names no secret"),
    ("certificate", "a certificate cannot be read or verified (sslmode, sslrootcert, sslcert)"),
    ("does not support ssl", "the server offers no TLS, which sslmode asks for"),
)


@dataclass(frozen=True)
class ServerFacts:
    """What one connection says about its server, database and role."""

    system_identifier: str
    timeline: int
    version_num: int
    database: str
    role: str
    is_superuser: bool
    has_replication: bool
    in_recovery: bool
    encoding: str
    locale_provider: str
    collation: str
    wal_level: str
    max_slots: int
    free_slots: int
    max_wal_senders: int
    free_wal_senders: int
    max_prepared_transactions: int
    synchronous_standby_names: str
    track_commit_timestamp: bool

    @property
    def major(self) -> int:
        """The major version: 18."""
        return self.version_num // 10000

    @property
    def log_decodes(self) -> bool:
        """Whether a logical slot can be made and read."""
        return log_decodes(self.major, self.wal_level)


def log_decodes(major: int, wal_level: str) -> bool:
    """Whether a server of this version writes a log that can be decoded, as soon as a slot asks.

    From PostgreSQL 19 on, ``replica`` is enough: the first logical slot makes the server write what
    decoding needs (``effective_wal_level``), without a restart.
    """
    return wal_level == "logical" or (major >= 19 and wal_level == "replica")


def connect(
    endpoint: Endpoint,
    *,
    purpose: str,
    autocommit: bool = True,
    dbname: str | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    idle_transaction_s: float = IDLE_TRANSACTION_S,
    replication: bool = False,
    mark: Mark | None = None,
) -> PostgresSession:
    """Open a session on ``endpoint`` with Tidegate's settings.

    Args:
        endpoint: where, and the reference of the password.
        purpose: shown to the database's people as ``application_name = tidegate/<purpose>``.
        autocommit: as psycopg's; must be true for ``replication``.
        dbname: another database of the same server.
        lock_timeout_s: how long one lock is waited for; seconds.
        idle_transaction_s: how long the server keeps a transaction that says nothing; seconds.
        replication: a session of a walsender, for replication commands and plain SQL without
            parameters.
        mark: whose session it is; None: as :func:`mark_process` said.

    Raises:
        TidegateError: the mark's proof failed; no session is left.
        SecretError: the password's reference cannot be resolved.
        AuthenticationError: the server refuses the role or its password.
        ConnectError: the server cannot be reached, or refuses for another reason.
        InvalidArgumentError: the connection string cannot be read, or says what it must not.
        FailedPreconditionError: libpq is too old to keep a password from going in clear text.
    """
    assert autocommit or not replication, "replication commands run outside transactions"
    mark = mark or _process_mark
    arguments = _arguments(endpoint, application_name(purpose, mark), dbname, replication)
    password = endpoint.password()
    try:
        connection = PostgresSession.connect(
            make_conninfo("", **arguments),
            password=password,
            autocommit=True,
            prepare_threshold=None,
        )
    except psycopg.OperationalError as error:
        raise _translated(error, endpoint, password) from None
    try:
        _prepare_session(connection, lock_timeout_s, idle_transaction_s)
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise _translated(error, endpoint, password) from None
    if mark is not None:
        try:
            mark.proof()
        except TidegateError:
            connection.close()
            raise
    return connection


_process_mark: Mark | None = None


def mark_process(mark: Mark) -> None:
    """Say whose sessions all those are that this process opens: a worker's are its span's."""
    global _process_mark  # noqa: PLW0603 - one worker, one span
    _process_mark = mark


def check_endpoint(endpoint: Endpoint) -> None:
    """Refuse what must not be stored, whether the server can be reached or not.

    Raises:
        SecretError: the secret is not in a place this node may read secrets from.
        InvalidArgumentError: the connection string cannot be read, or says what it must not.
    """
    guarded(parsed(endpoint.conninfo))
    Places.of_environment().check(endpoint.secret)


def _arguments(
    endpoint: Endpoint, name: str, dbname: str | None, replication: bool
) -> dict[str, str | int]:
    given = parsed(endpoint.conninfo)
    arguments: dict[str, str | int] = {**TRANSPORT, **given, **guarded(given)}
    arguments["application_name"] = name
    arguments["client_encoding"] = "UTF8"
    if dbname is not None:
        arguments["dbname"] = dbname
    if replication:
        arguments["replication"] = "database"
    return arguments


def _prepare_session(
    connection: Connection[TupleRow], lock_timeout_s: float, idle_transaction_s: float
) -> None:
    """One round trip, without parameters: a walsender takes the simple protocol only."""
    major = connection.info.server_version // 10000
    settings = [(name, value) for name, value, since in SESSION if major >= since]
    settings += [
        ("lock_timeout", str(round(lock_timeout_s * 1000))),
        ("idle_in_transaction_session_timeout", str(round(idle_transaction_s * 1000))),
    ]
    calls = [f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings]
    allowed = "pg_catalog.has_parameter_privilege(session_user, 'session_replication_role', 'SET')"
    if major < 15:
        allowed = "pg_catalog.current_setting('is_superuser')::pg_catalog.bool"
    calls.append(_REPLICATION_ROLE.format(allowed=allowed))
    calls.append(
        "pg_catalog.set_config('synchronous_commit',"
        " CASE pg_catalog.current_setting('synchronous_commit')"
        " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
    )
    connection.execute("SELECT " + ", ".join(calls))


def _translated(error: psycopg.Error, endpoint: Endpoint, password: str | None) -> ConnectError:
    told = redacted(str(error))
    if password:
        told = told.replace(password, "***")
    text, where, folded = _sayable(told), _where(endpoint), told.casefold()
    if any(part in folded for part in _REFUSALS) or failure_of(error) is FailureKind.ACCESS:
        step = "check the user, the password's reference and pg_hba.conf of that server"
        if "wal sender" in folded or "replication role" in folded:
            step = "give the role the REPLICATION attribute, or the provider's role for it"
        refusal = AuthenticationError(
            f"{where} refuses the connection: {text}",
            next_step=step,
            endpoint=endpoint.to_json(),
        )
        refusal.add_note(told)
        return refusal
    failure = ConnectError(
        f"no connection to {where}: {text}",
        next_step=_limit_reached(told)
        or "check that the server runs and that its host and port can be reached from the"
        " node; the node's log has the details",
        endpoint=endpoint.to_json(),
    )
    failure.add_note(told)
    return failure


def _limit_reached(told: str) -> str | None:
    """What to do where the server has no connection left for us; None: that is not the reason."""
    limited = _LIMITED.search(told)
    if limited is not None:
        kind, name = limited.groups()
        return f'raise the limit of the {kind}: ALTER {kind.upper()} "{name}" CONNECTION LIMIT -1'
    if "too many clients" in told or "connection slots are reserved" in told:
        return "raise max_connections of the server (restart), or end sessions there"
    return None


def _sayable(told: str) -> str:
    """The part of libpq's message that a caller of the API may read."""
    answers = dict.fromkeys(" ".join(each.split()) for each in _ANSWER.findall(told))
    if answers:
        return "; ".join(answers)
    folded = told.casefold()
    for part, words in _OWN_WORDS:
        if part in folded:
            return words
    return "the server cannot be reached"


def _where(endpoint: Endpoint) -> str:
    given = conninfo_to_dict(endpoint.conninfo)
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    port = f":{given['port']}" if given.get("port") else ""
    return f"database {given.get('dbname') or '(default)'} at {host}{port}"


_FACTS = """
SELECT (SELECT system_identifier::text FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
       END,
       current_setting('server_version_num')::int,
       current_database()::text, session_user::text, r.rolsuper, r.rolreplication,
       pg_is_in_recovery(), pg_encoding_to_char(d.encoding)::text,
       coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
       d.datcollate::text,
       current_setting('wal_level'),
       current_setting('max_replication_slots')::int,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_wal_senders')::int,
       current_setting('max_wal_senders')::int
         - (SELECT count(*) FROM pg_stat_get_wal_senders()),
       current_setting('max_prepared_transactions')::int,
       current_setting('synchronous_standby_names'),
       current_setting('track_commit_timestamp')::bool
  FROM pg_database d, pg_roles r
 WHERE d.datname = current_database() AND r.rolname = session_user
"""


def server_facts(connection: Connection[TupleRow]) -> ServerFacts:
    """Read the facts preflight and positions need; needs no privilege beyond CONNECT.

    ``timeline`` is the one the server writes to now; on a standby, that of its last restart point.
    """
    row = connection.execute(_FACTS).fetchone()
    assert row is not None
    return ServerFacts(*row)


def started_at(connection: Connection[TupleRow]) -> str:
    """When the server process was started: another time, another process."""
    row = connection.execute("SELECT pg_postmaster_start_time()::text").fetchone()
    assert row is not None
    started: str = row[0]
    return started


def set_lock_timeout(connection: Connection[TupleRow], timeout_s: float) -> None:
    """How long the session waits for one lock from now on, in seconds."""
    timeout_ms = max(1, round(timeout_s * 1000))
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [str(timeout_ms)])


def begin_reading(connection: Connection[TupleRow]) -> None:
    """Begin a transaction that sees one state of the database, from its first query on."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
