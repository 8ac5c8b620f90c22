"""Reads the facts of a preflight from the servers: the only part of it that looks at the world.

Every statement only looks; nothing is created, locked beyond ACCESS SHARE, or changed on either
side (the free room is asked for, and settings and grants are tried, in a transaction that is rolled
back). What cannot be looked at at
all (an unknown keyspace, a server that is down, a wrong password) is an error here, since there
would be nothing to check.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tidegate.engines.postgres import surroundings
from tidegate.engines.postgres.abilities import read_abilities
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.engines.postgres.bodies.reach import reach
from tidegate.engines.postgres.capacity import read_capacity
from tidegate.engines.postgres.catalog import read_tables
from tidegate.engines.postgres.connection import server_facts
from tidegate.engines.postgres.evaluated import evaluate
from tidegate.engines.postgres.facts import DatabaseFacts
from tidegate.engines.postgres.features import roles_of
from tidegate.engines.postgres.schema_pair import Choice
from tidegate.engines.postgres.survey import Survey, functions, publications, survey, types
from tidegate.engines.postgres.survey import extensions as installed
from tidegate.engines.postgres.taken_types import read_taken
from tidegate.workflow.preflight import overlaps
from tidegate.workflow.preflight.facts import (
    LONG_TRANSACTION_S,
    ActiveWorkflow,
    Facts,
    PreflightRequest,
    selected_tables,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.schema_pair import SchemaPair, Seen
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.postgres.survey import Need
    from tidegate.topology.model import Snapshot
    from tidegate.topology.names import TableName
    from tidegate.workflow.requests import SchemaRequest
    from tidegate.workflow.sessions import Sessions


def gather(
    request: PreflightRequest,
    snapshot: Snapshot,
    sessions: Sessions,
    workflows: Iterable[ActiveWorkflow] = (),
) -> Facts:
    """Read everything the checks look at.

    Args:
        request: what somebody wants to start; its shards must exist.
        snapshot: the topology.
        sessions: sessions to the primaries of the shards.
        workflows: those that exist now.

    Raises:
        NotFoundError: a keyspace or shard does not exist.
        FailedPreconditionError: a shard has no primary tablet, or several.
        ConnectError: a server cannot be reached, or refuses the connection.
    """
    for keyspace, shards in (
        (request.source_keyspace, request.source_shards),
        (request.target_keyspace, request.target_shards),
    ):
        snapshot.keyspace(keyspace)
        for shard in shards:
            snapshot.primary_of(keyspace, shard)
    named = (*request.tables, *request.exclude_tables) if request.tables else None
    tables = sessions.each(
        request.source_keyspace,
        request.source_shards,
        lambda _shard, connection: read_tables(connection, named),
    )
    available = {name for found in tables.values() for name in found}
    wanted, unknown = selected_tables(request, available)
    there = sessions.each(
        request.target_keyspace,
        request.target_shards,
        lambda _shard, connection: read_tables(connection, wanted),
    )
    models = tuple(
        next(found[name] for found in tables.values() if name in found) for name in wanted
    )
    targets = _databases(
        sessions, snapshot, request.target_keyspace, there, wanted, to_be_made=models
    )
    reached = _reached(request, sessions, tables, wanted, targets)
    sources = _databases(
        sessions,
        snapshot,
        request.source_keyspace,
        tables,
        wanted,
        log_budget_bytes=request.log_budget_bytes,
        reached=reached,
    )
    sources, targets = (_with_taken(sessions, each, sources) for each in (sources, targets))
    return Facts(
        snapshot=snapshot,
        sources=sources,
        targets=targets,
        wanted=wanted,
        unknown=unknown,
        workflows=tuple(workflows),
        overlaps=overlaps.look(request, snapshot, sessions, tables, wanted),
        reached=reached,
        changes=_changes(request, sessions, sources, targets, wanted),
    )


def _with_taken(
    sessions: Sessions, side: tuple[DatabaseFacts, ...], sources: tuple[DatabaseFacts, ...]
) -> tuple[DatabaseFacts, ...]:
    """The databases with what their servers make of values of the types that the tables have."""
    inner = {
        name for each in sources for found in each.survey.inner_types.values() for name in found
    }
    return tuple(
        replace(each, taken=read_taken(sessions.get(each.keyspace, each.shard), inner))
        for each in side
    )


def _changes(
    request: PreflightRequest,
    sessions: Sessions,
    sources: tuple[DatabaseFacts, ...],
    targets: tuple[DatabaseFacts, ...],
    wanted: tuple[TableName, ...],
) -> dict[str, tuple[surroundings.Change, ...]]:
    """What each target lacks of the settings and grants around the tables."""
    model = sources[0]
    roles = model.survey.roles_needed
    schemas = {name.schema for name in wanted}
    own = {*wanted, *(s.name for t in model.tables.values() for s in t.sequences)}
    at_source = surroundings.read(
        sessions.get(request.source_keyspace, model.shard), roles, schemas
    )
    by_shard = {target.shard: target for target in targets}

    def look(shard: str, connection: PostgresSession) -> tuple[surroundings.Change, ...]:
        target = by_shard[shard]
        return surroundings.lacking(
            at_source,
            connection,
            there=target.survey.roles,
            users=roles,
            schemas=schemas,
            shared=not target.survey.relations <= own,
        )

    return sessions.each(request.target_keyspace, list(by_shard), look)


def _reached(
    request: PreflightRequest,
    sessions: Sessions,
    tables: Mapping[str, Mapping[TableName, Table]],
    wanted: tuple[TableName, ...],
    targets: tuple[DatabaseFacts, ...],
) -> Reach:
    """What the tables that will be made reach for, at the source their schema is copied from.

    Of what tables reach for that are at the targets already, it holds only the sequences that
    functions draw from: a switch raises them, too.
    """
    shard = request.source_shards[0]
    there = {name for target in targets for name in target.tables}
    relations = frozenset.intersection(*(target.survey.relations for target in targets))
    known = [tables[shard][name] for name in wanted if name in tables[shard]]

    def of(chosen: Iterable[Table], without: tuple[str, ...] = ()) -> Reach:
        return reach(
            sessions.get(request.source_keyspace, shard),
            {table.name: table.oid for table in chosen},
            {each.name: each.oid for table in chosen for each in table.sequences},
            there=relations,
            without=without,
        )

    kept = known if request.skip_schema_copy else [each for each in known if each.name in there]
    drawn = {name: oid for name, oid in of(kept).sequences.items() if name in relations}
    if request.skip_schema_copy:
        return Reach(sequences=drawn)
    found = of([each for each in known if each.name not in there], request.leave_out_triggers)
    return replace(found, sequences={**drawn, **found.sequences})


def gather_again(
    request: PreflightRequest,
    snapshot: Snapshot,
    sessions: Sessions,
    leaned_on: tuple[Need, ...] = (),
) -> Facts:
    """Read what the checks of a running workflow look at: its tables, and of a reshard all tables.

    A few queries of the catalogue at each server, however many tables there are. ``leaned_on``:
    functions, views and types that are to be looked at as well.

    Raises:
        NotFoundError: a shard does not exist.
        ConnectError: a server cannot be reached.
    """
    names = None if request.reshards else request.tables

    def read(keyspace: str, shard: str, connection: PostgresSession) -> DatabaseFacts:
        tables = read_tables(connection, names)
        oids = {name: tables[name].oid for name in request.tables if name in tables}
        return DatabaseFacts(
            keyspace=keyspace,
            shard=shard,
            tablet=snapshot.primary_of(keyspace, shard).alias,
            server=server_facts(connection),
            tables=tables,
            survey=Survey(
                publications=publications(connection, oids),
                needs=leaned_on,
                functions=functions(connection) if leaned_on else {},
                types=types(connection) if leaned_on else {},
                extensions=installed(connection),
                settings=surroundings.read_settings(
                    connection, roles_of([tables[name] for name in oids])
                ),
            ),
            abilities=read_abilities(
                connection, [tables[name] for name in oids], makes_tables=False
            ),
        )

    sides = [
        tuple(sessions.each(keyspace, shards, partial(read, keyspace)).values())
        for keyspace, shards in (
            (request.source_keyspace, request.source_shards),
            (request.target_keyspace, request.target_shards),
        )
    ]
    wanted, unknown = selected_tables(
        request, {name for database in sides[0] for name in database.tables}
    )
    return Facts(snapshot, sides[0], sides[1], wanted, unknown=unknown)


def _databases(
    sessions: Sessions,
    snapshot: Snapshot,
    keyspace: str,
    tables: Mapping[str, Mapping[TableName, Table]],
    wanted: tuple[TableName, ...],
    *,
    to_be_made: tuple[Table, ...] = (),
    log_budget_bytes: int | None = None,
    reached: Reach | None = None,
) -> tuple[DatabaseFacts, ...]:
    """The facts of each shard of one side, in the order of ``tables``.

    ``to_be_made``: of a target, the tables as the source describes them. ``reached``: of the
    source, what they reach for.
    """
    model = next(iter(tables), None)

    def read(shard: str, connection: PostgresSession) -> DatabaseFacts:
        chosen = [tables[shard][name] for name in wanted if name in tables[shard]]
        return DatabaseFacts(
            keyspace=keyspace,
            shard=shard,
            tablet=snapshot.primary_of(keyspace, shard).alias,
            server=server_facts(connection),
            tables=tables[shard],
            survey=survey(
                connection,
                {table.name: table.oid for table in chosen},
                sorted(
                    {sequence.oid for table in chosen for sequence in table.sequences}
                    | set(reached.sequences.values() if reached and shard == model else ())
                ),
                transaction_age_s=LONG_TRANSACTION_S,
                look_for_rows=bool(to_be_made),
                reached=reached if shard == model else None,
            ),
            abilities=read_abilities(
                connection, (*chosen, *to_be_made), makes_tables=bool(to_be_made)
            ),
            capacity=read_capacity(connection, budget_bytes=log_budget_bytes),
            evaluated=()
            if to_be_made
            else evaluate(connection, {table.name: table.oid for table in chosen}),
        )

    return tuple(sessions.each(keyspace, tables, read).values())


def look_at_schemas(pair: SchemaPair, request: SchemaRequest) -> Seen:
    """Read and compare both sides of a copy of a schema.

    Raises:
        NotFoundError: a named table does not exist at the source.
        InvalidArgumentError: a name is no table's, or some tables of a tree are left out.
    """
    wanted = request.as_preflight()
    choice = Choice(wanted.tables, wanted.exclude_tables, views=request.include_views)
    return pair.look(choice, transaction_age_s=LONG_TRANSACTION_S)


def schema_facts(snapshot: Snapshot, pair: SchemaPair, request: SchemaRequest, seen: Seen) -> Facts:
    """What the checks look at when a schema is copied: no rows, no log, no other workflow."""
    source = DatabaseFacts(
        request.source_keyspace,
        request.source_shard,
        request.source_tablet
        or snapshot.primary_of(request.source_keyspace, request.source_shard).alias,
        server_facts(pair.source),
        tables=seen.source.tables,
        survey=seen.beside_source,
    )
    target = DatabaseFacts(
        request.target_keyspace,
        request.target_shard,
        snapshot.primary_of(request.target_keyspace, request.target_shard).alias,
        server_facts(pair.target),
        survey=seen.beside_target,
    )
    return Facts(
        snapshot=snapshot,
        sources=(source,),
        targets=(target,),
        wanted=seen.tables,
        reached=seen.reached,
        changes={request.target_shard: seen.changes},
    )
