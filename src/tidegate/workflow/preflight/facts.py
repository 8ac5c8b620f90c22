"""Everything a preflight looks at, as frozen values, and what is asked for.

Decides what a request means for the tables there are (:func:`selected_tables`) and how checks walk
over the facts. It must not read anything: :mod:`tidegate.workflow.preflight.gather` fills these
values, so that every check is a pure function of them and one preflight sees one moment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tidegate.dataplane.model import Direction
from tidegate.engines.postgres.abilities import Abilities
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.engines.postgres.capacity import Capacity
from tidegate.engines.postgres.survey import Survey
from tidegate.topology.vschema import TableKind
from tidegate.workflow.catalogue import drift
from tidegate.workflow.preflight.overlaps import Overlaps
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.connection import ServerFacts
    from tidegate.engines.postgres.evaluated import Evaluated
    from tidegate.engines.postgres.rehearsal import Rehearsal
    from tidegate.engines.postgres.surroundings import Change
    from tidegate.engines.postgres.survey import Need
    from tidegate.topology.keyrange import KeyRange
    from tidegate.topology.model import Snapshot
    from tidegate.topology.names import TableName
    from tidegate.topology.vschema import TableSpec, VSchema
    from tidegate.workflow.catalogue import Catalogue, Drift
    from tidegate.workflow.preflight.check import Verb

#: A transaction open for longer than this is worth a warning: slot and fence would wait for it.
LONG_TRANSACTION_S = 60.0


@dataclass(frozen=True)
class PreflightRequest:
    """What somebody wants to start.

    Attributes:
        tables: those named; empty means all tables of the source.
        source_shards, target_shards: by name; for MoveTables usually all of each keyspace.
        skip_schema_copy: the tables are expected at the target already.
        leave_out_triggers: ``table.trigger`` of triggers that do not come along.
        accepted: ids of waivable checks whose errors the user takes as warnings.
        log_budget_bytes: how much log the operator allows a source to keep; None: no such bound.
    """

    workflow: str
    workflow_type: WorkflowType
    source_keyspace: str
    target_keyspace: str
    source_shards: tuple[str, ...]
    target_shards: tuple[str, ...]
    tables: tuple[TableName, ...] = ()
    exclude_tables: tuple[TableName, ...] = ()
    skip_schema_copy: bool = False
    leave_out_triggers: tuple[str, ...] = ()
    accepted: frozenset[str] = frozenset()
    log_budget_bytes: int | None = None

    @property
    def reshards(self) -> bool:
        """Source and target are shards of one keyspace."""
        return self.workflow_type is WorkflowType.RESHARD


@dataclass(frozen=True)
class DatabaseFacts:
    """One shard's database as one connection saw it.

    Attributes:
        tables: of a source all that were named or found, of a target those of the same names.
        abilities: what our role may do there, and what it lacks.
        capacity: the room there; of a source also how much log may be kept before the alarm.
        evaluated: of a source, expressions of the tables on a sample of their rows.
        rehearsal: of a target, how making everything there went; None when it was not tried.
    """

    keyspace: str
    shard: str
    tablet: str
    server: ServerFacts
    tables: Mapping[TableName, Table] = field(default_factory=dict)
    survey: Survey = field(default_factory=Survey)
    abilities: Abilities = field(default_factory=Abilities)
    capacity: Capacity = field(default_factory=Capacity)
    rehearsal: Rehearsal | None = None
    evaluated: tuple[Evaluated, ...] = ()

    @property
    def label(self) -> str:
        """How findings name it: ``keyspace/shard``."""
        return f"{self.keyspace}/{self.shard}"

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same database as another: the server's identifier and the name."""
        return (self.server.system_identifier, self.server.database)


@dataclass(frozen=True)
class ActiveWorkflow:
    """A workflow that exists: enough of it to see that another would clash."""

    name: str
    source_keyspace: str
    target_keyspace: str
    tables: tuple[TableName, ...]
    reshards: bool = False


@dataclass(frozen=True)
class Since:
    """What the look at a workflow that runs knows beside the facts of now.

    Attributes:
        verb: what is about to be done.
        direction: where traffic goes, or, for a start, rows.
        then: the catalogue of when it was created; None: it was not kept then.
        now: the catalogue of now.
        apart: tables whose routing rules disagree with those of the others, and how.
        unfinished: shards where indexes or constraints still wait for the copy.
        keeps_source, keeps_target: the verb keeps that side's tables where they are.
    """

    verb: Verb
    direction: Direction
    then: Catalogue | None
    now: Catalogue
    apart: Mapping[str, str] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()
    keeps_source: bool = False
    keeps_target: bool = False
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def drift(self) -> list[Drift]:
        """What the sides no longer share, seen from the side that traffic goes to."""
        if self.then is None:
            return []
        forward = self.direction is Direction.FORWARD
        leaving, entering = (self.sources, self.targets)[:: 1 if forward else -1]
        return drift(
            self.then,
            self.now,
            leaving=leaving,
            entering=entering,
            unfinished=self.unfinished,
        )


@dataclass(frozen=True)
class HandedOver:
    """Something beside the tables that gets another owner at a target; ``place`` names that."""

    place: str
    what: str
    owner: str
    new_owner: str


@dataclass(frozen=True)
class Facts:
    """The whole picture of one preflight.

    Attributes:
        wanted: the tables the request means; those that do not exist are in ``unknown``.
        unknown: tables that were named, to be moved or left out, and do not exist at the source.
        workflows: those that exist and touch either keyspace.
        overlaps: rows of several source shards that would meet, or lie on the wrong one.
        handed_over: what will have another owner at the targets than at the source, and which.
        since: of a workflow that runs, what was when it was created; None when one is created.
        reached: what the tables to be made reach for through functions, views and types.
        changes: what each target, by shard, lacks of the settings and grants around the tables.
    """

    snapshot: Snapshot
    sources: tuple[DatabaseFacts, ...]
    targets: tuple[DatabaseFacts, ...]
    wanted: tuple[TableName, ...] = ()
    unknown: tuple[TableName, ...] = ()
    workflows: tuple[ActiveWorkflow, ...] = ()
    overlaps: Overlaps = field(default_factory=Overlaps)
    handed_over: tuple[HandedOver, ...] = ()
    since: Since | None = None
    reached: Reach = field(default_factory=Reach)
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    def exchanged(self) -> Facts:
        """The same facts with the sides exchanged: the tables of the target as of a source."""
        return replace(self, sources=self.targets, targets=self.sources)

    def source_tables(self) -> Iterator[tuple[DatabaseFacts, Table]]:
        """Each wanted table at each source where it exists."""
        return self._tables(self.sources)

    def target_tables(self) -> Iterator[tuple[DatabaseFacts, Table]]:
        """Each wanted table at each target where it exists already."""
        return self._tables(self.targets)

    def all_tables(self) -> Iterator[tuple[DatabaseFacts, Table]]:
        """Each wanted table wherever it exists."""
        return self._tables(self.databases)

    @property
    def tables_owner(self) -> str:
        """The role that owns most of the wanted tables."""
        owners = Counter(table.owner for table in self.model_tables())
        return min(owners, key=lambda role: (-owners[role], role), default="")

    def model_tables(self) -> Iterator[Table]:
        """Each wanted table once, as the first source that has it describes it."""
        for name in self.wanted:
            found = next((d.tables[name] for d in self.sources if name in d.tables), None)
            if found is not None:
                yield found

    @property
    def databases(self) -> tuple[DatabaseFacts, ...]:
        """Sources, then targets."""
        return (*self.sources, *self.targets)

    @property
    def servers(self) -> tuple[DatabaseFacts, ...]:
        """One database of each server; what concerns a whole server is reported once."""
        seen: dict[str, DatabaseFacts] = {}
        for database in self.databases:
            seen.setdefault(database.server.system_identifier, database)
        return tuple(seen.values())

    def vschema(self, request: PreflightRequest) -> VSchema:
        """The vschema of the target keyspace."""
        return self.snapshot.vschema(request.target_keyspace)

    def sharded(
        self, request: PreflightRequest
    ) -> Iterator[tuple[DatabaseFacts, Table, TableSpec]]:
        """Each wanted table at each source whose rows a vindex of the target will spread."""
        vschema = self.vschema(request)
        if not vschema.sharded:
            return
        for database, table in self.source_tables():
            spec = vschema.tables.get(str(table.name))
            if spec is not None and spec.kind is TableKind.PLAIN and spec.primary_vindex:
                yield database, table, spec

    def ranges(self, keyspace: str, shards: Iterable[str]) -> dict[str, KeyRange]:
        """The key range of each shard, by name."""
        return {name: self.snapshot.shard(keyspace, name).key_range for name in shards}

    def _tables(self, databases: Iterable[DatabaseFacts]) -> Iterator[tuple[DatabaseFacts, Table]]:
        for database in databases:
            for name in self.wanted:
                if name in database.tables:
                    yield database, database.tables[name]


def selected_tables(
    request: PreflightRequest, available: Iterable[TableName]
) -> tuple[tuple[TableName, ...], tuple[TableName, ...]]:
    """The tables a request means, and those it names that are not available; both sorted."""
    there = set(available)
    named = set(request.tables) | set(request.exclude_tables)
    meant = (set(request.tables) or there) - set(request.exclude_tables)
    return tuple(sorted(meant & there)), tuple(sorted(named - there))


def needs(facts: Facts) -> tuple[Need, ...]:
    """What the wanted tables lean on, as the source says from which their schema is copied."""
    return facts.sources[0].survey.needs if facts.sources else ()
