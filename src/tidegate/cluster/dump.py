"""Writes the whole schema of a cluster database as one text that makes it anew.

Decides how tables and indexes are written so that every engine reads them, whichever engine they
come from. It looks through SQLAlchemy's inspector only. The first line says which updates the text
stands for, by version and hash; a text of other updates is refused.

Rows are left out, except in :func:`fresh_schema`, where they can only be those that updates insert.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    Integer,
    MetaData,
    String,
    create_engine,
    inspect,
    select,
    types,
)

from tidegate.cluster import ledger, patchfile
from tidegate.errors import InvalidArgumentError, SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Inspector

    from tidegate.cluster.ledger import Update

OWN_TABLES: Final = frozenset({ledger.TABLE, patchfile.TABLE})
"""Tables that are made by whoever applies the text."""

_HEAD: Final = re.compile(r"-- cluster database, schema version (\d+), (fresh:[0-9a-f]{64})\n")
_CAST: Final = re.compile(r"::(?:double precision|character varying|[a-z_]+)(?:\[\])?")


def text_of(connection: Connection, updates: Sequence[Update], *, rows: bool = False) -> str:
    """The text of a database that has all these updates.

    Raises:
        SchemaVersionError: it lacks some of them, or has others.
    """
    applied = ledger.read(connection)
    if ledger.missing(updates, applied):
        level = applied[-1].version if applied else 0
        raise SchemaVersionError(
            f"update level is {level}, expected {len(updates)}",
            next_step="bring the database up to date first",
        )
    statements = list(ddl(inspect(connection), but=OWN_TABLES))
    if rows:
        statements += _inserts(connection)
    head = f"-- cluster database, schema version {len(updates)}, {ledger.fresh_sha256(updates)}\n"
    return head + "".join(f"{statement};\n" for statement in statements)


def version_of(text: str, updates: Sequence[Update]) -> int:
    """How many of these updates a text stands for; a text without a first line, for all of them.

    Raises:
        InvalidArgumentError: it stands for other updates.
    """
    head = _HEAD.match(text)
    if head is None:
        return len(updates)
    version = int(head[1])
    if version > len(updates) or head[2] != ledger.fresh_sha256(updates[:version]):
        raise InvalidArgumentError(
            f"cannot apply fresh schema: the text stands for {version} updates that are not the"
            f" first of the {len(updates)} there are",
            next_step="write it again with this version of tidegate",
        )
    return version


def fresh_schema(updates: Sequence[Update]) -> str:
    """The text of a new database with all these updates, and the rows they insert.

    It is found by applying them to a database in memory.
    """
    never = datetime.fromtimestamp(0, UTC)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        ledger.create(connection)
        for version, update in enumerate(updates, start=1):
            for statement in update.statements:
                connection.exec_driver_sql(statement)
            if update.run is not None:
                update.run(connection)
            ledger.record(connection, version, update, update.sha256, never)
        text = text_of(connection, updates, rows=True)
    engine.dispose()
    return text


def ddl(inspector: Inspector, *, but: Collection[str] = ()) -> Iterator[str]:
    """Every table after those it refers to, with its indexes, in SQL that all engines read."""
    for table, _ in inspector.get_sorted_table_and_fkc_names():
        if table is not None and table not in but:
            yield _table(inspector, table)
            yield from _indexes(inspector, table)


def _table(inspector: Inspector, table: str) -> str:
    parts = []
    for column in inspector.get_columns(table):
        text = f"{_quoted(column['name'])} {_type(column['type'])}"
        if column["default"] is not None:
            text += f" DEFAULT {_portable(column['default'])}"
        parts.append(text if column["nullable"] else f"{text} NOT NULL")
    key = inspector.get_pk_constraint(table)["constrained_columns"]
    if key:
        parts.append(f"PRIMARY KEY ({_list(key)})")
    uniques = sorted(each["column_names"] for each in inspector.get_unique_constraints(table))
    parts += [f"UNIQUE ({_list(columns)})" for columns in uniques]
    checks = sorted(_portable(each["sqltext"]) for each in inspector.get_check_constraints(table))
    parts += [f"CHECK ({check})" for check in checks]
    for each in sorted(inspector.get_foreign_keys(table), key=lambda f: f["constrained_columns"]):
        text = (
            f"FOREIGN KEY ({_list(each['constrained_columns'])}) REFERENCES"
            f" {_quoted(each['referred_table'])} ({_list(each['referred_columns'])})"
        )
        action = each.get("options", {}).get("ondelete")
        parts.append(f"{text} ON DELETE {action}" if action else text)
    lines = ",\n    ".join(parts)
    return f"CREATE TABLE {_quoted(table)} (\n    {lines}\n)"


def _indexes(inspector: Inspector, table: str) -> Iterator[str]:
    for each in sorted(inspector.get_indexes(table), key=lambda index: str(index["name"])):
        if each.get("duplicates_constraint"):
            continue
        columns = [name for name in each["column_names"] if name is not None]
        assert len(columns) == len(each["column_names"]), f"{each['name']} has an expression"
        unique = "UNIQUE " if each["unique"] else ""
        text = (
            f"CREATE {unique}INDEX {_quoted(str(each['name']))} ON {_quoted(table)}"
            f" ({_list(columns)})"
        )
        options: Mapping[str, Any] = each.get("dialect_options", {})
        where = next((options[key] for key in sorted(options) if key.endswith("_where")), None)
        yield text if where is None else f"{text} WHERE {_portable(str(where))}"


def _inserts(connection: Connection) -> list[str]:
    found = []
    metadata = MetaData()
    metadata.reflect(connection)
    for table in metadata.sorted_tables:
        if table.name in OWN_TABLES:
            continue
        columns = _list(column.name for column in table.columns)
        for row in sorted(map(tuple, connection.execute(select(table))), key=repr):
            values = ", ".join(_literal(value) for value in row)
            into = f"INSERT INTO {_quoted(table.name)} ({columns})"
            found.append(f"{into} VALUES ({values})")
    return found


def _type(given: types.TypeEngine[Any]) -> str:
    """How a type is written for all engines; one outside of the common subset is a bug."""
    words: tuple[tuple[type[types.TypeEngine[Any]], str], ...] = (
        (BigInteger, "bigint"),
        (Integer, "integer"),
        (Float, "double precision"),
        (Boolean, "boolean"),
        (String, "text"),
    )
    for kind, word in words:
        if isinstance(given, kind):
            return word
    raise AssertionError(f"a column of type {given} in the cluster database")


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return "'" + value.replace("'", "''") + "'"
    raise AssertionError(f"a value of {type(value)} in a new cluster database")


def _portable(expression: str) -> str:
    """An expression without the casts that PostgreSQL writes into it."""
    return _CAST.sub("", expression)


def _quoted(name: str) -> str:
    assert re.fullmatch(r"[a-z_][a-z0-9_]*", name), f"the name {name!r} needs quoting"
    return name


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(_quoted, names))
