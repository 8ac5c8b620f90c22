"""What the tables of a span look like at the source, and whether they still look so.

Routes (how each table travels) are made once a session. The *observation* is kept in the stream's
row from the first start on, so a table altered while no worker ran is noticed as well (datapath
rule 13). A new file node counts only together with rewritten column entries: TRUNCATE, VACUUM FULL
and CLUSTER make one as well and change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from tidegate.dataplane.fanout import Locator, Route
from tidegate.engines.postgres import copy as wire
from tidegate.engines.postgres import split
from tidegate.engines.postgres.apply_tables import unique_columns
from tidegate.engines.postgres.catalog import key_columns, read_tables, require_tables
from tidegate.engines.postgres.emptying import own_rows
from tidegate.errors import FailedPreconditionError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from tidegate.dataplane.model import SpanSpec
    from tidegate.engines.postgres.catalog import Column, Table
    from tidegate.engines.postgres.emptying import OwnRows

type Observation = dict[str, dict[str, Any]]

_ATTRIBUTES = (
    "SELECT attrelid, string_agg(xmin::text, ',' ORDER BY attnum) FROM pg_attribute"
    " WHERE attrelid = ANY (%s) AND attnum > 0 GROUP BY attrelid"
)


def names(spec: SpanSpec) -> list[TableName]:
    """The span's tables."""
    return [TableName.parse(rule.table) for rule in spec.tables]


def observe(source: psycopg.Connection, spec: SpanSpec) -> Observation:
    """The span's tables as they are at the source now."""
    tables = read_tables(source, names(spec))
    attributes: dict[int, str] = dict(
        source.execute(_ATTRIBUTES, [[t.oid for t in tables.values()]]).fetchall()
    )
    return {
        str(name): {
            "fingerprint": table.fingerprint,
            "file": table.relfilenode,
            "attributes": attributes.get(table.oid),
        }
        for name, table in tables.items()
    }


def altered(before: Observation, now: Observation) -> list[str]:
    """What happened to tables, a sentence each."""
    found = []
    for table, old in before.items():
        new = now.get(table)
        if new is None:
            found.append(f"table {table} was dropped or renamed")
        elif new["fingerprint"] != old["fingerprint"]:
            found.append(f"table {table} was altered (columns, key or replica identity)")
        elif new["file"] != old["file"] and new["attributes"] != old["attributes"]:
            found.append(f"table {table} was rewritten by ALTER TABLE")
    return found


def remember(
    target: psycopg.Connection, stream_id: int, epoch: int, observation: Observation
) -> Observation:
    """Keep the first observation in the stream's row; returns the one that is kept."""
    row = target.execute(
        "UPDATE _tidegate.stream SET observed = coalesce(observed, %s)"
        " WHERE id = %s AND epoch = %s RETURNING observed",
        [Jsonb(observation), stream_id, epoch],
    ).fetchone()
    return observation if row is None else row[0]


def routes(
    source: psycopg.Connection, targets: Sequence[psycopg.Connection], spec: SpanSpec
) -> list[Route]:
    """How each table of the span travels; binary only if every one can (one option a stream).

    Raises:
        NotFoundError: a table is gone.
        CopyError: a target lacks a column.
    """
    tables = require_tables(source, names(spec))
    rules = {TableName.parse(rule.table): rule for rule in spec.tables}
    plans = {
        name: wire.plan_copy(
            name,
            wire.column_forms(source, name),
            [wire.column_forms(target, name) for target in targets],
        )
        for name in tables
    }
    binary = all(plan.format == "binary" for plan in plans.values())
    found = []
    for number, (name, table) in enumerate(sorted(tables.items())):
        columns = tuple(c.name for c in table.copied_columns)
        rule = rules[name]
        key = _identity(table)
        route = Route(
            table=rule.table,
            number=number,
            columns=columns,
            type_oids=tuple(c.type_oid for c in table.copied_columns),
            key=key,
            unique=unique_columns(source, name),
            binary=binary,
            plain_key=all(_plain(table.column(name)) for name in key),
        )
        if rule.shard_columns:
            route.shard = tuple(columns.index(c) for c in rule.shard_columns)
            route.loose = table.replica_identity != "full" and not set(rule.shard_columns) <= set(
                _logged(table)
            )
            route.locator = Locator.of(_routing(source, name, key, spec))
        found.append(route)
    return found


def _identity(table: Table) -> tuple[str, ...]:
    """The columns by which old rows are known: what the log carries of them, if it can be a key."""
    logged = _logged(table)
    key = logged if table.replica_identity == "index" else key_columns(table)
    if not key:
        raise FailedPreconditionError(
            f"table {table.name} has no key by which a changed row could be found",
            next_step="give it a primary key that is not deferrable",
            table=str(table.name),
        )
    return key


#: Types whose equal values have equal bytes, on the wire and as text.
_PLAIN_TYPES = frozenset({16, 17, 20, 21, 23, 25, 26, 1043, 1082, 1114, 1184, 2950})


def _plain(column: Column) -> bool:
    return column.type_oid in _PLAIN_TYPES and column.collation_deterministic


def _logged(table: Table) -> tuple[str, ...]:
    if table.replica_identity == "index":
        return table.replica_identity_columns
    return table.primary_key


def _routing(
    source: psycopg.Connection, name: TableName, key: tuple[str, ...], spec: SpanSpec
) -> split.Routing:
    rule = next(r for r in spec.tables if TableName.parse(r.table) == name)
    return split.plan_routing(
        source,
        name,
        key,
        {place: target.key_range for place, target in enumerate(spec.targets)},
        shard_columns=rule.shard_columns,
        vindex_type=rule.vindex_type,
        vindex_params=rule.vindex_params,
    )


def emptying(
    route: Route, spec: SpanSpec, target: psycopg.Connection, *, streams: int
) -> OwnRows | None:
    """What a TRUNCATE at the source means at a target: the rows of this source, or everything.

    With more than one stream only the rows of this source shard are meant (rule 13), which the
    vindex of the source's keyspace tells.

    Raises:
        FailedPreconditionError: they cannot be told from the others.
    """
    rule = next(rule for rule in spec.tables if rule.table == route.table)
    if streams <= 1 or rule.alone:
        return None
    if rule.home is None:
        raise FailedPreconditionError(
            f"table {route.table} was truncated at {spec.source_keyspace}/{spec.source_shard}, but"
            " the target holds rows of other source shards, and the vschema of the source does not"
            " say how to tell them apart",
            next_step="give the table a primary vindex in that vschema, then start the workflow",
            table=route.table,
        )
    return own_rows(
        target,
        TableName.parse(route.table),
        route.key,
        spec.source_shard,
        shard_columns=rule.home.columns,
        vindex_type=rule.home.vindex_type,
        vindex_params=rule.home.vindex_params,
    )
