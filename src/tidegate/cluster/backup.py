"""A cluster database as one file that any engine can be filled from.

Decides the form of the file and what makes one good. It must not know any table: what there is, the
inspector says. The form is lines of JSON: a head with the schema's updates and the statements that
make the tables, in SQL that all engines read; then for each table its columns and its rows in the
order of its key; then an end with the count and the hash of every table and the hash of all that
came before. A file that was cut off, changed or mixed is refused before anything is written.

The same rows give the same hashes on every engine, so a database that was filled is compared with
the file before the filling is committed. All of it is one transaction: a database is filled, or it
is as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    inspect,
    select,
    types,
)

from tidegate import steps
from tidegate.cluster import dump, ledger
from tidegate.cluster.files import sync_folder
from tidegate.errors import (
    ClusterDatabaseError,
    FailedPreconditionError,
    SchemaVersionError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Inspector

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.ledger import Applied, Update

FORMAT: Final = "tidegate cluster database"
FORMAT_VERSION: Final = 1
LINE_BYTES: Final = 256 * 1024**2
"""The longest line that is read; a row is one line."""
BATCH_ROWS: Final = 500

_TYPES: Final[tuple[type[types.TypeEngine[Any]], ...]] = (BigInteger, Integer, Float, Boolean)

WRITTEN = steps.declare(
    "cluster.backup.written",
    runs_in="node",
    plan="backup",
    description="a backup is complete on the disk; it has not got its name yet",
)
FILLED = steps.declare(
    "cluster.backup.filled",
    runs_in="node",
    plan="restore",
    description="all rows of a backup are in the cluster database; not committed",
)


class BackupError(TidegateError):
    """A backup of the cluster database cannot be written or read, or is not a good one."""

    code = "TG-BAK-001"


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows a table has, and the hash of all of them in the order of its key."""

    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds.

    Attributes:
        engine: it was taken from.
        taken_at_ms: the database's time.
        schema: the updates it has.
        ddl: the statements that make its tables.
        tables: by name.
    """

    engine: str
    taken_at_ms: int
    schema: tuple[Applied, ...]
    ddl: tuple[str, ...]
    tables: Mapping[str, Digest]

    @property
    def schema_version(self) -> int:
        """The version of its schema."""
        return self.schema[-1].version

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(digest.rows for digest in self.tables.values())


def export(database: ClusterDatabase, path: Path) -> Summary:
    """Write everything a database holds at one moment into a file; others go on meanwhile.

    The file appears under its name when it is complete and durable; one that is there is replaced.

    Raises:
        SchemaVersionError: the database has no schema to speak of.
        BackupError: the file cannot be written.
        ClusterDatabaseError: the database failed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with _private(part) as file:
                summary = _write(database, file)
                file.flush()
                os.fsync(file.fileno())
            steps.reached(WRITTEN)
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise BackupError(
            f"the backup {path} cannot be written: {error.strerror}",
            next_step="make room, or choose another place; nothing is left of it",
        ) from None
    return summary


def verify(path: Path) -> Summary:
    """Read a backup from its first to its last byte.

    Raises:
        BackupError: it cannot be read, is incomplete, was changed, or is no backup.
    """
    with _Reader.open(path) as reader:
        for _ in reader.tables():
            pass
        return reader.summary


def import_(
    database: ClusterDatabase,
    updates: Sequence[Update],
    path: Path,
    *,
    replace: bool = False,
    then: Callable[[Connection], None] | None = None,
) -> Summary:
    """Fill a database from a file, in one transaction, and compare it with the file.

    The database gets the tables that the backup has, patches of its owners included; what this
    program has beyond it is applied by the next start.

    Args:
        database: of any engine.
        updates: all that this program knows.
        path: what :func:`export` wrote.
        replace: drop what is there; without, a database that has any table is refused.
        then: called at the end of the transaction, with it.

    Raises:
        BackupError: the file is not good, or the database differs from it afterwards.
        SchemaVersionError: the backup is newer than this program, or of another line.
        FailedPreconditionError: the database is not empty.
        ClusterDatabaseError: the database failed; it is as it was.
    """
    summary = verify(path)
    check_fits(updates, summary, path)
    with database.transaction() as connection:
        for name in reversed(_room(database, connection, replace=replace)):
            connection.exec_driver_sql(f"DROP TABLE {name}")
        for statement in summary.ddl:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        tables = tables_of(inspect(connection))
        with _Reader.open(path) as reader:
            for name, columns in reader.tables(tables):
                _fill(connection, tables[name], columns, reader)
        _compare(connection, tables, summary, path)
        if then is not None:
            then(connection)
        steps.reached(FILLED)
    return summary


def check(
    database: ClusterDatabase,
    updates: Sequence[Update],
    summary: Summary,
    path: Path,
    *,
    replace: bool,
) -> None:
    """Raise what :func:`import_` would, as far as that is known before."""
    check_fits(updates, summary, path)
    with database.read() as connection:
        _room(database, connection, replace=replace)


def check_fits(updates: Sequence[Update], summary: Summary, path: Path) -> None:
    """Refuse a backup that this program cannot bring up to date.

    Raises:
        SchemaVersionError: it is newer than this program, or of another line.
    """
    try:
        ledger.missing(updates, summary.schema)
    except SchemaVersionError as error:
        raise SchemaVersionError(
            f"the backup {path} does not fit this program: {error.message}",
            next_step="restore it with the version of tidegate that wrote it, or a newer one",
        ) from None


def digests(connection: Connection) -> dict[str, Digest]:
    """The count and the hash of every table of a database."""
    return {
        name: _digest(connection, table) for name, table in tables_of(inspect(connection)).items()
    }


def tables_of(inspector: Inspector) -> dict[str, Table]:
    """Every table there is, those that are referred to first; key columns first in each."""
    found: dict[str, Table] = {}
    for name, _ in inspector.get_sorted_table_and_fkc_names():
        if name is None:
            continue
        key = inspector.get_pk_constraint(name)["constrained_columns"]
        columns = [
            Column(column["name"], _type(column["type"]), primary_key=column["name"] in key)
            for column in inspector.get_columns(name)
        ]
        columns.sort(key=lambda c: (key.index(c.name) if c.name in key else len(key), c.name))
        found[name] = Table(name, MetaData(), *columns)
    return found


def _type(given: types.TypeEngine[Any]) -> types.TypeEngine[Any]:
    """The type of the common subset."""
    return next((kind() for kind in _TYPES if isinstance(given, kind)), Text())


def _rows(connection: Connection, table: Table) -> Iterator[list[Any]]:
    """In the order of the key, or of all columns where there is none."""
    order = list(table.primary_key.columns) or list(table.columns)
    query = select(table).order_by(*order).execution_options(yield_per=BATCH_ROWS)
    return (list(row) for row in connection.execute(query))


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _digest(connection: Connection, table: Table) -> Digest:
    sha256, count = hashlib.sha256(), 0
    for row in _rows(connection, table):
        sha256.update(_line(row))
        count += 1
    return Digest(count, sha256.hexdigest())


def _private(path: Path) -> IO[bytes]:
    """A new file that nobody else may read: a backup names people's servers."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "wb")


def _write(database: ClusterDatabase, file: IO[bytes]) -> Summary:
    whole = hashlib.sha256()

    def put(value: Any) -> None:
        line = _line(value)
        whole.update(line)
        file.write(line)

    with database.read() as connection:
        applied = tuple(ledger.read(connection))
        if not applied:
            raise SchemaVersionError(
                f"{database.place} has no schema; there is nothing to back up",
                next_step="start the node once",
            )
        taken_at_ms = round(database.now(connection).timestamp() * 1000)
        ddl = tuple(dump.ddl(inspect(connection)))
        put(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "engine": database.abilities.engine,
                "taken_at_ms": taken_at_ms,
                "ddl": ddl,
                "schema": [
                    [a.version, a.name, a.sha256, a.applied_at_ms, a.older_works] for a in applied
                ],
            }
        )
        found: dict[str, Digest] = {}
        for name, table in tables_of(inspect(connection)).items():
            put({"table": name, "columns": [column.name for column in table.columns]})
            sha256, count = hashlib.sha256(), 0
            for row in _rows(connection, table):
                line = _line(row)
                sha256.update(line)
                whole.update(line)
                file.write(line)
                count += 1
            found[name] = Digest(count, sha256.hexdigest())
    tables = {name: [digest.rows, digest.sha256] for name, digest in found.items()}
    file.write(_line({"tables": tables, "sha256": whole.hexdigest()}))
    return Summary(database.abilities.engine, taken_at_ms, applied, ddl, found)


class _Reader:
    """Reads a backup line by line, and knows at the end whether it was good."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._whole = hashlib.sha256()
        self._found: dict[str, Digest] = {}
        self._head: dict[str, Any] = {}
        self._next: Any = None
        self._is_ended = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file and read its head."""
        try:
            reader = cls(path.open("rb"), path)
        except OSError as error:
            raise BackupError(
                f"the backup {path} cannot be read: {error.strerror}",
                next_step="check the path and who may read it",
            ) from None
        try:
            reader._read_head()
        except BaseException:
            reader._file.close()
            raise
        return reader

    def _read_head(self) -> None:
        head = self._read()
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise self._bad("it does not begin like one")
        if head.get("format_version") != FORMAT_VERSION:
            raise self._bad(f"its form is of version {head.get('format_version')}")
        self._head = head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def tables(self, known: Mapping[str, Table] | None = None) -> Iterator[tuple[str, list[str]]]:
        """Each table's name and columns; read its :meth:`rows` before the next one.

        Args:
            known: the tables that may occur, all of which must.
        """
        line = self._read()
        while isinstance(line, dict) and "table" in line:
            name, columns = str(line["table"]), list(line.get("columns") or ())
            if name in self._found:
                raise self._bad(f"its table {name} occurs twice")
            if known is not None and (
                name not in known or columns != [column.name for column in known[name].columns]
            ):
                raise self._bad(f"its table {name} is not as its head says")
            self._table = name
            yield name, columns
            for _ in self.rows():
                pass
            line = self._next
        self._end(line)
        if known is not None and known.keys() != self._found.keys():
            raise self._bad("it lacks tables that its head makes")

    def rows(self) -> Iterator[list[Any]]:
        """The rows of the present table."""
        if self._table in self._found:
            return
        sha256, count = hashlib.sha256(), 0
        while isinstance(line := self._read(), list):
            sha256.update(self._raw)
            count += 1
            yield line
        self._next = line
        self._found[self._table] = Digest(count, sha256.hexdigest())

    @property
    def summary(self) -> Summary:
        """What it holds; known at the end."""
        assert self._is_ended
        head = self._head
        try:
            schema = tuple(ledger.Applied(*row) for row in head["schema"])
            ddl = tuple(head["ddl"])
            return Summary(head["engine"], head["taken_at_ms"], schema, ddl, self._found)
        except (KeyError, TypeError) as error:
            raise self._bad(f"its head is wrong: {error}") from None

    def _end(self, line: Any) -> None:
        written = {name: [digest.rows, digest.sha256] for name, digest in self._found.items()}
        if not isinstance(line, dict) or line.get("sha256") != self._before.hexdigest():
            raise self._bad("its hash is another: it was changed or is incomplete")
        if line.get("tables") != written or self._file.read(1):
            raise self._bad("its end is another: it was changed")
        self._is_ended = True

    def _read(self) -> Any:
        self._before = self._whole.copy()
        self._raw = self._file.readline(LINE_BYTES)
        if not self._raw.endswith(b"\n"):
            raise self._bad("it is incomplete")
        self._whole.update(self._raw)
        try:
            return json.loads(self._raw)
        except ValueError:
            raise self._bad("it was changed, or is none") from None

    def _bad(self, why: str) -> BackupError:
        return BackupError(
            f"{self._path} is no good backup of a cluster database: {why}",
            next_step="take another one; nothing was changed",
        )


def _room(database: ClusterDatabase, connection: Connection, *, replace: bool) -> list[str]:
    """The tables that are in the way, those that are referred to first."""
    inspector = inspect(connection)
    names = [name for name, _ in inspector.get_sorted_table_and_fkc_names() if name is not None]
    if names and not replace:
        raise FailedPreconditionError(
            f"{database.place} is not empty: it has {len(names)} tables",
            next_step="name an empty database, or --force to replace what is there",
        )
    return names


def _fill(connection: Connection, table: Table, columns: list[str], reader: _Reader) -> None:
    batch: list[dict[str, Any]] = []
    for row in reader.rows():
        batch.append(dict(zip(columns, row, strict=True)))
        if len(batch) == BATCH_ROWS:
            connection.execute(table.insert(), batch)
            batch = []
    if batch:
        connection.execute(table.insert(), batch)


def _compare(
    connection: Connection, tables: Mapping[str, Table], summary: Summary, path: Path
) -> None:
    for name, table in tables.items():
        found = _digest(connection, table)
        if found != summary.tables[name]:
            count = connection.execute(select(func.count()).select_from(table)).scalar_one()
            raise ClusterDatabaseError(
                f"table {name} differs from the backup {path} after it was filled: {count} rows"
                f" for {summary.tables[name].rows}",
                next_step="nothing was changed; report it",
            )
