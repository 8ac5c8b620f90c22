"""Sessions on the PostgreSQL servers of a cluster database: which server, how set up, how bounded.

Decides how the URL is read, which of several hosts is written to, and how a session is bounded in
every direction. It must not know transactions of the cluster database.

* Of the hosts in the URL the first that takes writes is used (``target_session_attrs``), beginning
  with the one that was used last.
* A server whose history is behind one that was seen before is refused: an old primary that was
  started again after a fail-over takes writes like the new one, and would lose them. What is
  compared is the system identifier and the timeline; this process remembers the latest.
* Names are found in one schema and nowhere else.
* A database that sorts text by a language is refused, as is one that cannot hold every text: the
  other engines compare by code point, and nobody should have to think of both.
* ``synchronous_commit`` is at least ``on``. PostgreSQL bounds no COMMIT that waits for a standby,
  so this side cancels it after the bound. The server then answers as if all were well, with a
  warning; :class:`Unconfirmed` is that warning as an error.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString, Self
from urllib.parse import parse_qsl, urlencode

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from tidegate.conninfo import guarded, parsed
from tidegate.errors import (
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    InvalidArgumentError,
)
from tidegate.secret import redacted, resolve_secret

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

FORM: Final = "postgresql://USER@HOST,HOST/DATABASE?secret=file:/path"
DEFAULT_SCHEMA: Final = "tidegate"
CANCEL_TIMEOUT_S: Final = 5.0
IDLE_TIMEOUT_S: Final = 10.0
"""How long a session may do nothing inside a transaction; others wait for it meanwhile."""
STATEMENT_TIMEOUT_S: Final = 30.0

#: What libpq is told unless the URL says otherwise: a server that is gone is noticed in seconds.
TRANSPORT: Final[dict[str, str | int]] = {
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
    "target_session_attrs": "read-write",
    "gssencmode": "disable",
}

#: The same from the server's side, where a vanished node would keep its locks.
SERVER_TRANSPORT: Final[dict[str, str]] = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

_HISTORY: Final = """
SELECT (pg_catalog.pg_control_system()).system_identifier::pg_catalog.text,
       ('x' || pg_catalog.substr(
           pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8
       ))::bit(32)::int
"""
_REFUSALS: Final = (
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
    "is not permitted to log in",
    "does not exist",
    "permission denied",
    "server requested a password",
)
"""Parts of libpq's messages about a connection that waiting does not mend."""


class Unconfirmed(psycopg.OperationalError):
    """The server committed, but was told not to wait for its standby any longer."""


@dataclass(frozen=True, slots=True)
class History:
    """Which server this is, and how often its place was taken over."""

    system_identifier: str
    timeline: int

    def is_behind(self, seen: History | None) -> bool:
        """Whether the server is another one, or one whose place was taken since."""
        if seen is None:
            return False
        return self.system_identifier != seen.system_identifier or self.timeline < seen.timeline


@dataclass(frozen=True)
class Address:
    """A PostgreSQL cluster database as its URL names it.

    Attributes:
        hosts: what libpq is told about each host, in the order of the URL.
        common: what it is told about all of them.
        secret: reference of the password, or None: libpq finds one itself or needs none.
        schema: where the tables are.
    """

    hosts: tuple[dict[str, Any], ...]
    common: dict[str, Any]
    secret: str | None
    schema: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL as libpq does, with ``secret`` and ``schema`` beside its own parameters.

        Raises:
            InvalidArgumentError: it cannot be read, contains a password or names no database.
        """
        base, _, query = url.partition("?")
        own: dict[str, str] = {}
        theirs: list[tuple[str, str]] = []
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key in {"secret", "schema"}:
                own[key] = value
            else:
                theirs.append((key, value))
        try:
            given = parsed(f"{base}?{urlencode(theirs)}" if theirs else base)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"the URL of the cluster database: {error.message}",
                next_step=f"write it as {FORM}; a password's place is named with ?secret=",
            ) from None
        schema = own.get("schema", DEFAULT_SCHEMA)
        if not given.get("dbname") or not schema or schema.startswith("pg_") or schema == "public":
            raise InvalidArgumentError(
                "the URL of the cluster database names no database, or no schema of its own",
                next_step=f"write it as {FORM}",
            )
        hosts = _split(given)
        common = {key: value for key, value in given.items() if key not in _OF_HOST}
        return cls(hosts, common, own.get("secret"), schema)

    @property
    def place(self) -> str:
        """For people and logs."""
        where = ",".join(
            f"{host.get('host') or host.get('hostaddr') or 'local socket'}"
            + (f":{host['port']}" if host.get("port") else "")
            for host in self.hosts
        )
        return f"the PostgreSQL database {self.common['dbname']} (schema {self.schema}) at {where}"


_OF_HOST: Final = ("host", "hostaddr", "port")


def _split(given: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """One host at a time; libpq takes one port for all, or one for each."""
    lists = {key: str(given[key]).split(",") for key in _OF_HOST if given.get(key)}
    count = max((len(values) for values in lists.values()), default=1)
    for key, values in lists.items():
        if len(values) == 1 and key == "port":
            lists[key] = values * count
        elif len(values) != count:
            raise InvalidArgumentError(
                f"the URL of the cluster database names {count} hosts, but another number of {key}",
                next_step="give one for each host, or one port for all",
            )
    return tuple(
        {key: values[n] for key, values in lists.items() if values[n]} for n in range(count)
    )


class Session(psycopg.Connection[TupleRow]):
    """A session whose COMMIT is bounded; made by :class:`Sessions`."""

    commit_timeout_s: float = 10.0

    def commit(self) -> None:
        """Commit.

        Raises:
            InFailedSqlTransaction: a statement failed before; the server would have rolled back.
            Unconfirmed: committed here, but no standby has confirmed it in time.
            psycopg.Error: the server refused, or the connection broke.
        """
        if self.info.transaction_status is TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction("a statement of the transaction failed")
        warnings: list[str] = []

        def note(notice: Diagnostic) -> None:
            if notice.severity_nonlocalized == "WARNING" and notice.sqlstate == "01000":
                warnings.append(notice.message_primary or "")

        gave_up = threading.Event()
        watch = threading.Timer(self.commit_timeout_s, self._give_up_waiting, [gave_up])
        watch.daemon = True
        self.add_notice_handler(note)
        watch.start()
        try:
            super().commit()
        finally:
            watch.cancel()
            watch.join()
            self.remove_notice_handler(note)
            if gave_up.is_set():
                self.close()  # the cancel request may arrive late, and hit another transaction
        if warnings:
            self.close()
            raise Unconfirmed(warnings[0])

    def _give_up_waiting(self, gave_up: threading.Event) -> None:
        gave_up.set()
        with contextlib.suppress(psycopg.Error):
            self.cancel_safe(timeout=CANCEL_TIMEOUT_S)


class Sessions:
    """Opens sessions on whichever host takes writes.

    Args:
        address: hosts, database, role.
        busy_timeout_s: how long a lock is waited for, and a standby's confirmation.
    """

    def __init__(self, address: Address, busy_timeout_s: float) -> None:
        self.address = address
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._seen: History | None = None
        self._first = 0

    def connect(self) -> Session:
        """A session on the first host that takes writes.

        Raises:
            SecretError: the password's reference cannot be resolved.
            ClusterDatabaseUnreachableError: no host takes writes, or only such as were passed.
            psycopg.Error: the only host cannot be reached, or all refuse.
        """
        password = resolve_secret(self.address.secret)
        hosts = self.address.hosts
        first = self._first
        failures: list[psycopg.Error | ClusterDatabaseUnreachableError] = []
        for offset in range(len(hosts)):
            number = (first + offset) % len(hosts)
            try:
                session = self._connect_to(hosts[number], password)
            except (psycopg.Error, ClusterDatabaseUnreachableError) as error:
                failures.append(error)
                continue
            self._first = number
            return session
        if len(failures) == 1:
            raise failures[0]
        told = "; ".join(" ".join(redacted(str(failure)).split()) for failure in failures)
        if all(map(is_refusal, failures)):
            raise psycopg.OperationalError(told)
        raise ClusterDatabaseUnreachableError(
            f"no server of {self.address.place} takes writes: {told}",
            next_step="check that the primary runs and can be reached; the node tries again by"
            " itself",
        )

    def create_schema(self) -> None:
        """Make the schema, unless it is there.

        Raises:
            ClusterDatabaseError: the database cannot hold every text, or sorts it by a language.
            psycopg.Error: the server refused, or cannot be reached.
        """
        schema = self.address.schema
        with self.connect() as session:
            encoding = session.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise self._unfit(f"has the encoding {encoding}")
            if not is_by_code_point(_texts(session, _SORTED, [_SAMPLE])):
                raise self._unfit("sorts text by a language")
            if _texts(session, _SCHEMA, [schema]):
                return
            with session.transaction():
                # Two nodes that start together take turns; IF NOT EXISTS alone lets one fail.
                session.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
                name = sql.Identifier(schema)
                session.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))

    def _unfit(self, why: str) -> ClusterDatabaseError:
        return ClusterDatabaseError(
            f"{self.address.place} {why}",
            next_step="make a database for it: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"
            " LC_COLLATE 'C' LC_CTYPE 'C'",
        )

    def _connect_to(self, host: dict[str, Any], password: str | None) -> Session:
        common = self.address.common
        arguments = {**TRANSPORT, **common, **guarded(common), **host}
        session = Session.connect(
            **arguments,
            password=password,
            application_name="tidegate/cluster",
            client_encoding="UTF8",
            autocommit=True,
            prepare_threshold=None,
        )
        try:
            session.commit_timeout_s = self._busy_timeout_s
            self._set_up(session)
            self._refuse_what_was_passed(session, host)
        except BaseException:
            session.close()
            raise
        return session

    def _set_up(self, session: Session) -> None:
        """One round trip."""
        path = sql.SQL("{}, pg_temp").format(sql.Identifier(self.address.schema))
        settings = {
            "search_path": path.as_string(session),
            "lock_timeout": _milliseconds(self._busy_timeout_s),
            "statement_timeout": _milliseconds(max(STATEMENT_TIMEOUT_S, 2 * self._busy_timeout_s)),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_TIMEOUT_S),
            "timezone": "UTC",
            "datestyle": "ISO, YMD",
            "standard_conforming_strings": "on",
            **SERVER_TRANSPORT,
        }
        calls: list[sql.Composable] = [
            sql.SQL("pg_catalog.set_config({}, {}, false)").format(name, value)
            for name, value in settings.items()
        ]
        calls.append(
            sql.SQL(
                "pg_catalog.set_config('synchronous_commit', CASE"
                " pg_catalog.current_setting('synchronous_commit')"
                " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
            )
        )
        session.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))

    def _refuse_what_was_passed(self, session: Session, host: dict[str, Any]) -> None:
        try:
            row = session.execute(_HISTORY).fetchone()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported):
            return  # a provider that keeps this to itself also keeps old primaries away
        assert row is not None
        found = History(*row)
        with self._lock:
            if found.is_behind(self._seen):
                assert self._seen is not None
                raise ClusterDatabaseUnreachableError(
                    f"the server at {host.get('host', 'the local socket')}:{host.get('port', '')}"
                    f" (system {found.system_identifier}, timeline {found.timeline}) takes writes,"
                    f" but its place was taken (system {self._seen.system_identifier}, timeline"
                    f" {self._seen.timeline})",
                    next_step="stop that server, and bring it back as a standby of the new one",
                )
            self._seen = found


def is_refusal(cause: Exception) -> bool:
    """Whether a server answered and will not let this role in, or not into this database."""
    state = str(getattr(cause, "sqlstate", None) or "")
    if state:
        return state.startswith("28") or state in {"3D000", "42501"}
    told = str(cause).casefold()
    return isinstance(cause, psycopg.OperationalError) and any(part in told for part in _REFUSALS)


def is_by_code_point(found: list[str]) -> bool:
    """Whether texts that a database has sorted are in the order of their code points."""
    return found == sorted(found)


def _texts(session: Session, query: LiteralString, parameters: list[Any]) -> list[str]:
    return [row[0] for row in session.execute(query, parameters)]


_SORTED: Final = "SELECT t FROM pg_catalog.unnest(%s::text[]) AS t ORDER BY t"
_SAMPLE: Final = ["a b", "ab", "B", "a", "z", "Z", "é", "e", "ä", "-a"]
_SCHEMA: Final = "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname = %s"
_SCHEMA_LOCK: Final = 0x7469_6465_6761_7465
"""``tidegate`` in ASCII; held while the schema is made."""


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
