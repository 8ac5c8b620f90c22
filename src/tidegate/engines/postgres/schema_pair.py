"""Two databases of which one gets the other's schema: looked at, tried, made, looked at again.

Decides what a choice of tables means at the source: partitions come beside their parents; what the
tables need is found as ``create`` finds it; views over them come along; of a whole database also
functions and views that no table needs. The source is only read, under ACCESS SHARE. It must not
decide what a difference means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres import rehearsal, schema_make, surroundings
from tidegate.engines.postgres.attempts import Attempt
from tidegate.engines.postgres.bodies.reach import reach
from tidegate.engines.postgres.bodies.trees import dotted
from tidegate.engines.postgres.catalog import read_tables
from tidegate.engines.postgres.schema_copy import plan_schema
from tidegate.engines.postgres.schema_definitions import called, named, read_schema
from tidegate.engines.postgres.survey import survey
from tidegate.engines.schemas import Different, SchemaDiff, Scope, compare
from tidegate.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.bodies.graph import Reach
    from tidegate.engines.postgres.rehearsal import Rehearsal
    from tidegate.engines.postgres.schema_copy import SchemaPlan
    from tidegate.engines.postgres.schema_definitions import Key, Schema
    from tidegate.engines.postgres.surroundings import Change
    from tidegate.engines.postgres.survey import Survey
    from tidegate.topology.connections import Endpoint
    from tidegate.topology.names import TableName

NAMED_MAX: Final = 3
"""Foreign keys in a message; its details have all."""


@dataclass(frozen=True)
class Choice:
    """Which tables; ``views`` over them come along."""

    tables: tuple[TableName, ...] = ()
    exclude: tuple[TableName, ...] = ()
    views: bool = True


@dataclass(frozen=True)
class Seen:
    """What both sides have.

    Attributes:
        tables: those that are concerned.
        scope: what is compared.
        reached: what the tables reach for beyond themselves.
        diff: how the target differs.
        changes: settings and grants around the tables that the target lacks.
        beside_source, beside_target: what is there beside tables.
    """

    tables: tuple[TableName, ...]
    source: Schema
    target: Schema
    scope: Scope
    reached: Reach
    diff: SchemaDiff
    changes: tuple[Change, ...]
    beside_source: Survey
    beside_target: Survey

    @property
    def lacking(self) -> tuple[str, ...]:
        """The settings and grants that would be made, in words."""
        return tuple(change.what for change in self.changes if not change.held_back)


@dataclass(frozen=True)
class SchemaPair:
    """A session at each side, in autocommit; ``endpoint`` is the source's."""

    source: Connection[TupleRow]
    target: Connection[TupleRow]
    endpoint: Endpoint

    @property
    def alike(self) -> bool:
        """Both servers write definitions alike."""
        majors = {each.info.server_version // 10000 for each in (self.source, self.target)}
        return len(majors) == 1

    def look(self, choice: Choice, *, transaction_age_s: float) -> Seen:
        """Read and compare both sides.

        Args:
            choice: which tables.
            transaction_age_s: transactions open for at least this long are reported.

        Raises:
            NotFoundError: a named table does not exist at the source.
            InvalidArgumentError: a name is no table's, or of tables that inherit from each other
                some are left out.
        """
        source = self._chosen(choice)
        whole = not choice.tables
        wanted = tuple(sorted(source.tables.keys() - set(choice.exclude)))
        target = read_schema(self.target, None if whole else wanted, alike=self.alike)

        def surveyed(
            session: Connection[TupleRow], schema: Schema, reached: Reach | None = None
        ) -> Survey:
            there = [schema.tables[name] for name in wanted if name in schema.tables]
            return survey(
                session,
                {table.name: table.oid for table in there},
                sorted({each.oid for table in there for each in table.sequences}),
                transaction_age_s=transaction_age_s,
                look_for_rows=False,
                reached=reached,
            )

        beside_target = surveyed(self.target, target)
        reached = reach(
            self.source,
            {name: source.tables[name].oid for name in wanted},
            {s.name: s.oid for name in wanted for s in source.tables[name].sequences},
            there=beside_target.relations,
            views=choice.views,
            whole=whole,
        )
        beside_source = surveyed(self.source, source, reached)
        scope = Scope(
            frozenset(called("table", name) for name in wanted)
            | {named(key) for key in _needed(beside_source, source.keys)},
            whole=whole,
            excluded=frozenset(called("table", name) for name in choice.exclude),
        )
        return Seen(
            wanted,
            source,
            target,
            scope,
            reached,
            compare(source.definitions, target.definitions, scope),
            self._changes(wanted, beside_source, beside_target),
            beside_source,
            beside_target,
        )

    def look_again(self, seen: Seen, *, owners: bool) -> SchemaDiff:
        """How the sides differ now, in what was compared before.

        Args:
            seen: what was there before.
            owners: the owners of objects are compared, too.
        """
        source, target = (
            read_schema(each, seen.tables, alike=self.alike) for each in (self.source, self.target)
        )
        scope = replace(seen.scope, whole=False, owners=owners)
        found = compare(source.definitions, target.definitions, scope)
        gone = [
            Different(called("table", name), ("it was dropped at the source meanwhile",))
            for name in seen.tables
            if name not in source.tables
        ]
        left = self._changes(seen.tables, seen.beside_source, seen.beside_target)
        return replace(
            found,
            missing=(*found.missing, *(each.what for each in left if not each.held_back)),
            different=(*found.different, *gone),
        )

    def planned(self, seen: Seen) -> SchemaPlan:
        """The statements that make what is missing.

        Raises:
            FailedPreconditionError: a foreign key leads to where it cannot.
        """
        missing = [name for name in seen.tables if name not in seen.target.tables]
        keys = [
            key
            for name in missing
            for key in seen.source.tables[name].foreign_keys
            if key.referenced not in missing
        ]
        there = {
            name: table.oid
            for name, table in read_tables(self.source, {k.referenced for k in keys}).items()
            if name in seen.beside_target.relations
        }
        astray = [key for key in keys if key.referenced not in there]
        if astray:
            shown = [f"{k.name} of {k.table} to {k.referenced}" for k in astray[:NAMED_MAX]]
            raise FailedPreconditionError(
                "foreign keys lead to tables that are neither copied nor at the target:"
                f" {'; '.join(shown)}",
                next_step="copy those tables too, or create them at the target first; nothing was"
                " changed",
                foreign_keys=[f"{key.table}.{key.name}" for key in astray],
            )
        return plan_schema(
            self.endpoint, missing, seen.reached, there=there.values(), rows_follow=False
        )

    def rehearse(self, plan: SchemaPlan) -> Rehearsal:
        """Try everything at the target, and take it back."""
        return rehearsal.rehearse(self.target, plan)

    def make(
        self, plan: SchemaPlan, seen: Seen, verify: Callable[[], None], *, keep: bool
    ) -> list[str]:
        """Make the plan, and what is lacking around the tables, in one transaction.

        Args:
            plan: from :meth:`planned`.
            seen: from :meth:`look`.
            verify: looks before the commit; what it raises takes everything back.
            keep: commit; else everything is taken back.

        Returns:
            The statements that were run.

        Raises:
            AlreadyExistsError: a table is there by now.
            FailedPreconditionError: the server refuses something.
        """
        around = [
            Attempt(change.what, f"{change.statement};")
            for change in seen.changes
            if not change.held_back
        ]
        made = schema_make.make_whole(self.target, plan, around, verify, keep=keep)
        return [attempt.ddl for attempt in made]

    def _chosen(self, choice: Choice) -> Schema:
        """What the source has of the chosen tables, and of those that are left out."""
        excluded = set(choice.exclude)
        names = {*choice.tables, *excluded} if choice.tables else None
        source = read_schema(self.source, names, alike=self.alike)
        unknown = sorted(((names or set()) | excluded) - source.tables.keys())
        if unknown:
            raise NotFoundError(
                f"no such table at the source: {', '.join(map(str, unknown))}",
                next_step="check the names; a table outside schema public is written schema.table",
                tables=[str(name) for name in unknown],
            )
        while names is not None and (more := _relatives(source, names - excluded) - names):
            names |= more
            source = read_schema(self.source, names, alike=self.alike)
        for name, table in source.tables.items():
            if table.kind not in {"r", "p"}:
                raise InvalidArgumentError(
                    f"{name} is not a table", next_step="name tables; views over them come along"
                )
        torn = sorted(_relatives(source, source.tables.keys() - excluded) & excluded)
        if torn:
            raise InvalidArgumentError(
                f"{', '.join(map(str, torn))} cannot be left out without the tables that inherit"
                " from it or that it inherits from",
                next_step="leave out all of them, or none",
            )
        return source

    def _changes(
        self, tables: Iterable[TableName], beside_source: Survey, beside_target: Survey
    ) -> tuple[Change, ...]:
        """What the target lacks of the settings and grants around the tables."""
        schemas = {name.schema for name in tables}
        return surroundings.lacking(
            surroundings.read(self.source, beside_source.roles_needed, schemas),
            self.target,
            there=beside_target.roles,
            users=beside_source.roles_needed,
            schemas=schemas,
            shared=not beside_target.relations <= beside_source.relations,
        )


def _relatives(source: Schema, names: Iterable[TableName]) -> set[TableName]:
    """Parents and partitions of tables: one is not made without the other."""
    return {
        relative
        for name in names
        if name in source.tables
        for relative in (*source.tables[name].parents, *source.tables[name].children)
    }


def _needed(beside: Survey, keys: frozenset[Key]) -> Iterator[Key]:
    extensions = {need.extension for need in beside.needs if need.extension is not None}
    for need in beside.needs:
        if need.extension is None:
            yield need.kind, need.identity
    for kind, identity in keys:
        if kind == "extension" and dotted(identity)[0] in extensions:
            yield kind, identity
