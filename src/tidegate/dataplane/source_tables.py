"""What the tables of a span look like at the source, and whether they still look so.

Routes (how each table travels) are made once a session. The *observation* is kept in the stream's
row from the first start on, so a table altered while no worker ran is noticed as well (datapath
rule 13).

A new file node alone means nothing: TRUNCATE, VACUUM FULL and CLUSTER make one and change no row.
What changes rows without logging them is ALTER TABLE, which also writes column entries; but so does
a harmless ALTER (a default, statistics). The rows tell which it was: an ALTER that rewrites gives
*every* row its own transaction id, so one row that is older than the observation proves that there
was none (:func:`unrewritten`). What was found harmless becomes the observation to compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from tidegate.dataplane import streams
from tidegate.dataplane.fanout import Locator, Route
from tidegate.dataplane.model import OnDDL
from tidegate.engines.postgres import copy as wire
from tidegate.engines.postgres import split
from tidegate.engines.postgres.apply_tables import unique_columns
from tidegate.engines.postgres.catalog import key_columns, read_tables, require_tables
from tidegate.engines.postgres.emptying import own_rows
from tidegate.errors import FailedPreconditionError, SchemaChangedError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.dataplane.model import Home, SpanSpec, TableRule
    from tidegate.engines.postgres.catalog import Column, Table
    from tidegate.engines.postgres.copy import ColumnForm
    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.postgres.session import PostgresSession

type Observation = dict[str, dict[str, Any]]

_ATTRIBUTES = (
    "SELECT attrelid, string_agg(xmin::text, ',' ORDER BY attnum) FROM pg_attribute"
    " WHERE attrelid = ANY (%s) AND attnum > 0 GROUP BY attrelid"
)
#: No transaction that is still to end has a lower id.
_HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_OLD_ROW = """
SELECT FROM ONLY {table}
 WHERE age(xmin) > age((%(at)s::int8 %% 4294967296)::text::xid)
   AND pg_snapshot_xmax(pg_current_snapshot())::text::int8 - %(at)s::int8 < 2000000000
 LIMIT 1
"""
OLD_ROW_TIMEOUT_S = 2.0
ALTER_TOO = "alter the target in the same way, then start the workflow"


def names(spec: SpanSpec) -> list[TableName]:
    """The span's tables."""
    return [TableName.parse(rule.table) for rule in spec.tables]


def observe(source: PostgresSession, spec: SpanSpec) -> Observation:
    """The span's tables as they are at the source now; ``at``: the moment, as a transaction id.

    All of one snapshot: an ALTER is in it as a whole or not at all. ``source`` is in autocommit
    mode.
    """
    with source.transaction():
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = source.execute(_HORIZON).fetchone()
        at = None if row is None else row[0]
        tables = read_tables(source, names(spec))
        attributes: dict[int, str] = dict(
            source.execute(_ATTRIBUTES, [[t.oid for t in tables.values()]]).fetchall()
        )
    return {
        str(name): {
            "fingerprint": table.fingerprint,
            "file": table.relfilenode,
            "attributes": attributes.get(table.oid),
            "at": at,
        }
        for name, table in tables.items()
    }


def unrewritten(source: PostgresSession, before: Observation, now: Observation) -> frozenset[str]:
    """Of the tables that may have been rewritten since ``before``, those that were not for certain.

    A table without a row that is old enough is not among them, and none whose rows take longer than
    :data:`OLD_ROW_TIMEOUT_S` to look at. ``source`` is in autocommit mode.
    """
    suspects = [
        table
        for table, old in before.items()
        if table in now and _maybe_rewritten(old, now[table]) and old.get("at") is not None
    ]
    return frozenset(t for t in suspects if _has_old_row(source, t, str(before[t]["at"])))


def _has_old_row(source: PostgresSession, table: str, at: str) -> bool:
    name = TableName.parse(table)
    query = sql.SQL(_OLD_ROW).format(table=sql.Identifier(name.schema, name.name))
    try:
        with source.transaction():
            source.execute(f"SET LOCAL statement_timeout = {round(OLD_ROW_TIMEOUT_S * 1000)}")
            return source.execute(query, {"at": at}).fetchone() is not None
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        return False


def _maybe_rewritten(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return bool(new["file"] != old["file"] and new["attributes"] != old["attributes"])


def altered(before: Observation, now: Observation, kept: frozenset[str] = frozenset()) -> list[str]:
    """What happened to tables, a sentence each; ``kept`` were not rewritten for certain."""
    found = []
    for table, old in before.items():
        new = now.get(table)
        if new is None:
            found.append(f"table {table} was dropped or renamed")
        elif new["fingerprint"] != old["fingerprint"]:
            found.append(f"table {table} was altered (columns, key or replica identity)")
        elif _maybe_rewritten(old, new) and table not in kept:
            found.append(f"table {table} was rewritten by ALTER TABLE")
    return found


def alterations(source: PostgresSession, before: Observation, now: Observation) -> list[str]:
    """The same, after a look at the source for tables that were not rewritten for certain."""
    return altered(before, now, unrewritten(source, before, now))


def differs(before: Observation, now: Observation) -> bool:
    """Whether anything but the moment is another."""
    return any(
        {**old, "at": None} != {**now.get(table, {}), "at": None} for table, old in before.items()
    )


def require_unaltered(
    source: PostgresSession, targets: Sequence[PostgresSession], spec: SpanSpec
) -> None:
    """Make sure that the tables are those that the streams have observed first.

    Raises:
        SchemaChangedError: they are not.
    """
    now = observe(source, spec)
    for conn, target in zip(targets, spec.targets, strict=True):
        before = remember(conn, target.stream_id, spec.epoch, now)
        if found := alterations(source, before, now):
            raise SchemaChangedError("; ".join(found), next_step=ALTER_TOO)


def remember(
    target: PostgresSession, stream_id: int, epoch: int, observation: Observation
) -> Observation:
    """Keep the first observation in the stream's row; returns the one that is kept."""
    kept = target.streams.observe(stream_id, epoch, observation)
    return observation if kept is None else kept


def routes(
    source: PostgresSession, targets: Sequence[PostgresSession], spec: SpanSpec
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
            *carried(
                spec,
                wire.column_forms(source, name),
                [wire.column_forms(target, name) for target in targets],
            ),
        )
        for name in tables
    }
    binary = all(plan.format == "binary" for plan in plans.values())
    found = []
    for number, (name, table) in enumerate(sorted(tables.items())):
        travelling = [c for c in table.copied_columns if c.name in plans[name].columns]
        columns = tuple(c.name for c in travelling)
        rule = rules[name]
        key = identity(table)
        route = Route(
            table=rule.table,
            number=number,
            columns=columns,
            type_oids=tuple(c.type_oid for c in travelling),
            key=key,
            unique=unique_columns(source, name),
            binary=binary,
            plain_key=all(_plain(table.column(name)) for name in key),
            places=spec.places(rule) if rule.targets else None,
        )
        if rule.shard_columns:
            route.shard = tuple(columns.index(c) for c in rule.shard_columns)
            route.loose = table.replica_identity != "full" and not set(rule.shard_columns) <= set(
                _logged(table)
            )
            route.locator = Locator.of(routing(source, name, key, spec))
        if rule.home is not None and not rule.places_by_home:
            route.home = Locator.of(home_routing(source, name, key, rule.home, spec.source_shard))
            route.home_columns = tuple(columns.index(c) for c in rule.home.columns)
        found.append(route)
    return found


def carried(
    spec: SpanSpec, source: Sequence[ColumnForm], targets: Sequence[Sequence[ColumnForm]]
) -> tuple[Sequence[ColumnForm], Sequence[Sequence[ColumnForm]]]:
    """The columns of a table on both sides that are to travel.

    With ``--on-ddl IGNORE`` a column that some target lacks was added at the source after the
    workflow was made, and is left out; otherwise the caller refuses it.
    """
    if spec.options.on_ddl != OnDDL.IGNORE:
        return source, targets
    there = [{form.name for form in target if not form.generated} for target in targets]
    return [f for f in source if f.generated or all(f.name in names for names in there)], targets


def identity(table: Table) -> tuple[str, ...]:
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


def routing(
    source: PostgresSession, name: TableName, key: tuple[str, ...], spec: SpanSpec
) -> split.Routing:
    """How the rows of a table find their targets.

    Where other source shards feed them as well, a row that lies on the wrong source shard has none.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    rule = next(r for r in spec.tables if TableName.parse(r.table) == name)
    return split.plan_routing(
        source,
        name,
        key,
        {place: spec.targets[place].key_range for place in spec.places(rule)},
        shard_columns=rule.shard_columns,
        vindex_type=rule.vindex_type,
        vindex_params=rule.vindex_params,
        held=spec.source_shard if rule.places_by_home else "",
    )


def copy_routing(
    source: PostgresSession, name: TableName, key: tuple[str, ...], spec: SpanSpec
) -> split.Routing:
    """As :func:`routing`; into one target of several sources, the rows that belong to this one.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    rule = next(r for r in spec.tables if TableName.parse(r.table) == name)
    if rule.shard_columns or rule.home is None or len(spec.targets) > 1:
        return routing(source, name, key, spec)
    return home_routing(source, name, key, rule.home, spec.source_shard)


def copy_home(
    source: PostgresSession, name: TableName, key: tuple[str, ...], spec: SpanSpec
) -> split.Routing | None:
    """What refuses rows of other source shards where the routing of the copy does not.

    None also where the database cannot compute the vindex: such a row is found when it changes.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    rule = next(r for r in spec.tables if TableName.parse(r.table) == name)
    if rule.home is None or rule.places_by_home or not rule.shard_columns:
        return None
    found = home_routing(source, name, key, rule.home, spec.source_shard)
    return found if found.in_query else None


def home_routing(
    source: PostgresSession, name: TableName, key: tuple[str, ...], home: Home, shard: str
) -> split.Routing:
    """Which rows of a table belong to a source shard; all others have no place.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    return split.plan_routing(
        source,
        name,
        key,
        {0: shard},
        shard_columns=home.columns,
        vindex_type=home.vindex_type,
        vindex_params=home.vindex_params,
        held=shard,
    )


def other_sources(target: PostgresSession, spec: SpanSpec) -> tuple[str, ...]:
    """The other source shards that feed a target of the span, sorted."""
    rows = streams.read_streams(target, spec.workflow_uuid, spec.direction)
    return tuple(sorted({row.source_shard for row in rows} - {spec.source_shard}))


def own_of(
    route: Route, rule: TableRule, spec: SpanSpec, target: PostgresSession
) -> OwnRows | None:
    """What tells the rows of this source shard from others at a shared target.

    None where the key does that by itself: rows of different homes then have different keys.

    Raises:
        FailedPreconditionError: nothing does.
    """
    if rule.home is None:
        raise FailedPreconditionError(
            f"table {route.table} is fed by several source shards, and the vschema of"
            f" {spec.source_keyspace} does not say which of them a row belongs to",
            next_step="give the table a primary vindex in that vschema, or make it a reference"
            " table, then start the workflow",
            table=route.table,
        )
    if route.plain_key and set(rule.home.columns) <= set(route.key):
        return None
    return _own(route, rule.home, spec, target)


def _own(route: Route, home: Home, spec: SpanSpec, target: PostgresSession) -> OwnRows:
    return own_rows(
        target,
        TableName.parse(route.table),
        route.key,
        spec.source_shard,
        shard_columns=home.columns,
        vindex_type=home.vindex_type,
        vindex_params=home.vindex_params,
    )


def emptying(
    route: Route, spec: SpanSpec, target: PostgresSession, *, shared: bool
) -> OwnRows | None:
    """What a TRUNCATE at the source means at a target: the rows of this source, or everything.

    Where other streams feed the table only the rows of this source shard are meant (rule 13), which
    the vindex of the source's keyspace tells.

    Raises:
        FailedPreconditionError: they cannot be told from the others.
    """
    rule = next(rule for rule in spec.tables if rule.table == route.table)
    if not shared or rule.alone:
        return None
    if rule.home is None:
        raise FailedPreconditionError(
            f"table {route.table} was truncated at {spec.source_keyspace}/{spec.source_shard}, but"
            " the target holds rows of other source shards, and the vschema of the source does not"
            " say how to tell them apart",
            next_step="give the table a primary vindex in that vschema, then start the workflow",
            table=route.table,
        )
    return _own(route, rule.home, spec, target)
