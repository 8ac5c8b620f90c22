"""Builds the smallest facts a preflight check can look at; nothing wrong unless a test says so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tidegate.engines.postgres.catalog import (
    Column,
    Constraint,
    ForeignKey,
    Index,
    Table,
)
from tidegate.engines.postgres.connection import ServerFacts
from tidegate.engines.postgres.facts import DatabaseFacts
from tidegate.engines.postgres.survey import SequenceFacts, Survey
from tidegate.topology.model import Snapshot
from tidegate.topology.names import TableName
from tidegate.topology.records import Keyspace, Shard
from tidegate.topology.vschema import ColumnVindex, TableSpec, VindexSpec, VSchema
from tidegate.workflow.preflight.facts import ActiveWorkflow, Facts, PreflightRequest
from tidegate.workflow.preflight.registry import run_preflight
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from tidegate.workflow.preflight.check import Finding

T = TableName("public", "t")
ROLES = frozenset({"owner", "tidegate"})
OIDS = {"integer": 23, "bigint": 20, "text": 25, "oid": 26, "double precision": 701}


def column(name: str, type_name: str = "bigint", **changes: Any) -> Column:
    made = Column(
        name=name,
        attnum=1,
        type_oid=OIDS.get(type_name, 99999),
        type_name=type_name,
        type_schema="pg_catalog",
        type_kind="b",
        typmod=-1,
        not_null=True,
        identity="",
        generated="",
        default=None,
        collation=None,
        collation_deterministic=True,
        has_send=True,
        storage="p",
    )
    return replace(made, **changes)


def primary_key(*columns: str, deferrable: bool = False) -> Constraint:
    return Constraint(
        "t_pkey", "p", columns, deferrable=deferrable, validated=True, ddl="PRIMARY KEY"
    )


def index(name: str, *columns: str, unique: bool = True) -> Index:
    return Index(
        name=name,
        oid=1,
        unique=unique,
        valid=True,
        immediate=True,
        constraint=None,
        columns=columns,
        predicate=None,
        nulls_not_distinct=False,
        access_method="btree",
        ddl="CREATE INDEX",
        comment=None,
    )


def foreign_key(table: str, columns: str, referenced: str, referenced_columns: str) -> ForeignKey:
    return ForeignKey(
        "fk",
        TableName.parse(table),
        (columns,),
        TableName.parse(referenced),
        (referenced_columns,),
        on_delete="a",
        on_update="a",
        deferrable=False,
        validated=True,
        ddl="FOREIGN KEY",
    )


def table(name: str = "t", **changes: Any) -> Table:
    made = Table(
        oid=1,
        name=TableName.parse(name),
        kind="r",
        persistence="p",
        columns=(column("id"), column("v", "text", not_null=False)),
        constraints=(primary_key("id"),),
        indexes=(),
        foreign_keys=(),
        referenced_by=(),
        checks=(),
        triggers=(),
        sequences=(),
        replica_identity="default",
        replica_identity_columns=(),
        row_security=False,
        force_row_security=False,
        is_partition=False,
        parents=(),
        children=(),
        rules=(),
        subscribed=False,
        extension=None,
        owner="owner",
        acl=(),
        comment=None,
        access_method="heap",
        tablespace=None,
        est_rows=10,
        bytes=8192,
        relfilenode=1,
    )
    return replace(made, **changes)


def server(**changes: Any) -> ServerFacts:
    made = ServerFacts(
        system_identifier="1",
        timeline=1,
        version_num=180006,
        database="app",
        role="tidegate",
        is_superuser=False,
        has_replication=True,
        in_recovery=False,
        encoding="UTF8",
        locale_provider="c",
        collation="C.UTF-8",
        wal_level="logical",
        max_slots=20,
        free_slots=20,
        max_wal_senders=20,
        free_wal_senders=20,
        max_prepared_transactions=0,
        synchronous_standby_names="",
        track_commit_timestamp=False,
    )
    return replace(made, **changes)


def database(
    shard: str, *tables: Table, keyspace: str = "", number: str = "", **changes: Any
) -> DatabaseFacts:
    survey = changes.pop("survey", None) or Survey(roles=frozenset({"owner", "tidegate"}))
    facts = changes.pop("server", None) or server()
    if number:
        facts = replace(facts, system_identifier=number)
    return DatabaseFacts(
        keyspace=keyspace,
        shard=shard,
        tablet="z1-1",
        server=facts,
        tables={made.name: made for made in tables},
        survey=survey,
        **changes,
    )


def snapshot(vschema: VSchema | None = None, *targets: str) -> Snapshot:
    made = Snapshot().with_keyspace(Keyspace("commerce")).with_keyspace(Keyspace("customer"))
    made = made.with_shard(
        Shard("commerce", "0"), *(Shard("customer", name) for name in targets or ("0",))
    )
    return made if vschema is None else made.with_vschema("customer", vschema)


def sharded(*columns: str, vindex: VindexSpec | None = None, tables: str = "t") -> VSchema:
    spec = TableSpec(column_vindexes=(ColumnVindex(columns or ("id",), "v"),))
    return VSchema(
        sharded=True,
        vindexes={"v": vindex or VindexSpec("hash")},
        tables=dict.fromkeys(tables.split(), spec),
    )


def request(**changes: Any) -> PreflightRequest:
    made = PreflightRequest(
        workflow="cust",
        workflow_type=WorkflowType.MOVE_TABLES,
        source_keyspace="commerce",
        target_keyspace="customer",
        source_shards=("0",),
        target_shards=("0",),
    )
    return replace(made, **changes)


def facts(*tables: Table, **changes: Any) -> Facts:
    """A source with these tables and one empty target."""
    made = Facts(
        snapshot=snapshot(),
        sources=(database("0", *tables, keyspace="commerce"),),
        targets=(database("0", keyspace="customer", number="2"),),
        wanted=tuple(sorted(made.name for made in tables)),
    )
    return replace(made, **changes)


def split_facts(vschema: VSchema, *tables: Table, **changes: Any) -> Facts:
    """As :func:`facts`, with two target shards."""
    targets = (
        database("-80", keyspace="customer", number="2"),
        database("80-", keyspace="customer", number="3"),
    )
    return facts(
        *tables, snapshot=snapshot(vschema, "-80", "80-"), **{"targets": targets, **changes}
    )


def split_request(**changes: Any) -> PreflightRequest:
    return request(target_shards=("-80", "80-"), **changes)


def reshard_request(**changes: Any) -> PreflightRequest:
    made = request(
        workflow_type=WorkflowType.RESHARD,
        source_keyspace="customer",
        source_shards=("0",),
        target_shards=("-80", "80-"),
    )
    return replace(made, **changes)


def findings(asked: PreflightRequest, seen: Facts, check_id: str) -> list[Finding]:
    """The findings of one check."""
    return [found for found in run_preflight(asked, seen) if found.id == check_id]


def source(*tables: Any, **changes: Any) -> Facts:
    return facts(*tables, sources=(database("0", *tables, keyspace="commerce", **changes),))


def target(*tables: Any, there: tuple[Any, ...] = (), **changes: Any) -> Facts:
    made = database("0", *there, keyspace="customer", number="2", **changes)
    return facts(*tables, targets=(made,))


def known(**changes: Any) -> Survey:
    return Survey(roles=ROLES, **changes)


def active(name: str, *tables: TableName) -> tuple[ActiveWorkflow, ...]:
    return (ActiveWorkflow(name, "commerce", "customer", tables),)


def resharding(*targets: str, serving: bool = False) -> Facts:
    topology = snapshot(sharded(), "0").with_shard(
        *(Shard("customer", name, serving=serving) for name in targets)
    )
    made = database("0", table(), keyspace="customer")
    there = tuple(
        database(name, keyspace="customer", number=str(place))
        for place, name in enumerate(targets, 2)
    )
    return facts(table(), snapshot=topology, sources=(made,), targets=there)


def sequence(**changes: Any) -> SequenceFacts:
    made = SequenceFacts(
        name=TableName("public", "t_id_seq"),
        type_name="bigint",
        start=1,
        increment=1,
        minimum=1,
        maximum=2**63 - 1,
        cache=1,
        cycle=False,
        persistence="p",
        used_by=(T,),
    )
    return replace(made, **changes)


def sequences(**changes: Any) -> Survey:
    made = sequence(**changes)
    return known(sequences={made.name: made})


def typed(name: str, **changes: Any) -> Any:
    return table(columns=(column("id"), column("c", name, **changes)))


def both(here: dict[str, Any], there: dict[str, Any]) -> Facts:
    """One table, and a survey of each side."""
    targets = target(survey=known(**there)).targets
    return replace(source(table(), survey=known(**here)), targets=targets)
