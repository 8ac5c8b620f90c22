"""What the preflight's checks look at of PostgreSQL databases, as frozen values.

Decides how checks walk over the two sides. It must not read anything: whoever runs a preflight
fills these values, so that every check is a pure function of them and one preflight sees one
moment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.engines.postgres.abilities import Abilities
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.engines.postgres.capacity import Capacity
from tidegate.engines.postgres.quoting import quoted, quoted_table
from tidegate.engines.postgres.survey import Survey
from tidegate.topology.vschema import TableKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidegate.engines.checks import Asked
    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.connection import ServerFacts
    from tidegate.engines.postgres.evaluated import Evaluated
    from tidegate.engines.postgres.rehearsal import Refused, Rehearsal
    from tidegate.engines.postgres.surroundings import Change
    from tidegate.engines.postgres.survey import Need
    from tidegate.topology.model import Snapshot
    from tidegate.topology.names import TableName
    from tidegate.topology.vschema import TableSpec, VSchema


@dataclass(frozen=True)
class DatabaseFacts:
    """One shard's database as one connection saw it.

    Attributes:
        tables: of a source all that were named or found, of a target those of the same names.
        abilities: what our role may do there, and what it lacks.
        capacity: the room there; of a source also how much log may be kept before the alarm.
        evaluated: of a source, expressions of the tables on a sample of their rows.
        taken: what the server makes of values of types that servers may disagree about.
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
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How findings name it: ``keyspace/shard``."""
        return f"{self.keyspace}/{self.shard}"

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same database as another: the server's identifier and the name."""
        return (self.server.system_identifier, self.server.database)

    def to_drop_constraint(self, table: TableName, name: str) -> str:
        """The statement that drops a constraint here."""
        return f"ALTER TABLE {quoted_table(table)} DROP CONSTRAINT {quoted(name)}"

    def to_forbid_null(self, table: TableName, column: str) -> str:
        """The statement that makes a column NOT NULL here."""
        return f"ALTER TABLE {quoted_table(table)} ALTER COLUMN {quoted(column)} SET NOT NULL"


@dataclass(frozen=True)
class HandedOver:
    """Something beside the tables that gets another owner at a target; ``place`` names that."""

    place: str
    what: str
    owner: str
    new_owner: str


@dataclass(frozen=True)
class Sides:
    """Both sides at one moment, as PostgreSQL's own checks look at them.

    Attributes:
        wanted: the tables the request means, as far as they exist.
        handed_over: what will have another owner at the targets than at the source, and which.
        reached: what the tables to be made reach for through functions, views and types.
        changes: what each target, by shard, lacks of the settings and grants around the tables.
    """

    snapshot: Snapshot
    sources: tuple[DatabaseFacts, ...]
    targets: tuple[DatabaseFacts, ...]
    wanted: tuple[TableName, ...] = ()
    handed_over: tuple[HandedOver, ...] = ()
    reached: Reach = field(default_factory=Reach)
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """The workflow exists, and these are the facts of a later look."""
        return False

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

    def vschema(self, request: Asked) -> VSchema:
        """The vschema of the target keyspace."""
        return self.snapshot.vschema(request.target_keyspace)

    def sharded(self, request: Asked) -> Iterator[tuple[DatabaseFacts, Table, TableSpec]]:
        """Each wanted table at each source whose rows a vindex of the target will spread."""
        vschema = self.vschema(request)
        if not vschema.sharded:
            return
        for database, table in self.source_tables():
            spec = vschema.tables.get(str(table.name))
            if spec is not None and spec.kind is TableKind.PLAIN and spec.primary_vindex:
                yield database, table, spec

    def needs(self) -> tuple[Need, ...]:
        """What the wanted tables lean on, as the source says from which their schema is copied."""
        return self.sources[0].survey.needs if self.sources else ()

    def needed_extensions(self) -> list[str]:
        """Extensions that the wanted tables lean on, sorted."""
        found = set()
        for need in self.needs():
            if need.kind == "extension":
                found.add(need.identity)
            elif need.extension is not None:
                found.add(need.extension)
        return sorted(found)

    def is_foreign_owner(self, refused: Refused) -> bool:
        """It failed at giving the object to a role that owns none of the tables."""
        if refused.owner is None:
            return False
        return refused.owner not in {table.owner for table in self.model_tables()}

    def _tables(self, databases: Iterable[DatabaseFacts]) -> Iterator[tuple[DatabaseFacts, Table]]:
        for database in databases:
            for name in self.wanted:
                if name in database.tables:
                    yield database, database.tables[name]
