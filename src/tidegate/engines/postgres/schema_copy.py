"""Plans which statements make the tables at a target, and in which order around the copy.

Four times: *before the data* come schemas, extensions, types, functions, sequences, tables with
defaults, comments, owners and grants, and the key rows are identified by; *after the copy* plain
secondary indexes, which a loaded table builds faster; *after the catch-up* whatever the rows need
not satisfy half-way: unique and exclusion constraints, foreign keys, checks to be validated,
triggers, rules (datapath rules 10 and 23). ``_tidegate`` objects and fence triggers never travel.

Tables are made in one transaction together with their denying fence: nobody ever sees them open.
What they lean on (a type, a function) is made when the target lacks it and left alone otherwise;
whether an existing one is the same is the preflight's question.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg import sql

from tidegate.engines.postgres import late_checks, support_kinds
from tidegate.engines.postgres import schema_queries as queries
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.engines.postgres.catalog import require_tables
from tidegate.engines.postgres.connection import SNAPSHOT_IDLE_S, connect
from tidegate.engines.postgres.schema_dump import Item, dump_items
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.identities import Choice
    from tidegate.topology.connections import Endpoint

#: When a part of a table is made; within a time in this order.
_BEFORE = ("default", "key")
_AFTER_COPY = ("index",)
_AFTER_CATCH_UP = (
    *("referenced", "unique", "check", "foreign key"),
    *("rule", "trigger", "policy", "comment"),
)


@dataclass(frozen=True)
class Support:
    """Something the tables lean on; made unless ``identity`` exists at the target.

    ``order``: None when it is made before the tables; otherwise it leans on them, or is a view, and
    is made after them in this order.
    """

    kind: str
    identity: str
    ddl: str
    order: int | None = None


@dataclass(frozen=True)
class SchemaPlan:
    """The statements that make the tables at a target, in order.

    Attributes:
        tables: the tables.
        extensions: what they need, each after those it requires; must be available at the target.
        roles: roles they name; must exist at the target.
        support: schemas, types, functions, views and shared sequences they lean on, in order.
        pre_data: tables, their sequences, defaults, comments, grants.
        keys: primary keys or the indexes of replica identities.
        after_copy: (table, statement): indexes to build once the rows are there.
        after_catchup: (table, statement): to build once the stream has passed H.
        referenced: how many of these, the first ones, are unique indexes that foreign keys of the
            tables refer to.
        left_out: what is not carried, each in words.
        extension_schemas: where each extension lies at the source.
    """

    tables: tuple[TableName, ...]
    extensions: tuple[str, ...]
    roles: tuple[str, ...]
    support: tuple[Support, ...]
    pre_data: tuple[str, ...]
    keys: tuple[str, ...]
    after_copy: tuple[tuple[TableName, str], ...]
    after_catchup: tuple[tuple[TableName, str], ...]
    referenced: int
    left_out: tuple[str, ...]
    extension_schemas: Mapping[str, str]

    def listing(self) -> list[str]:
        """One line for each thing that would be made, for a dry run."""
        lines = [f"extension {name}, unless it is there" for name in self.extensions]
        lines += [f"{s.kind.lower()} {s.identity}, unless it is there" for s in self.support]
        lines += [f"table {table}" for table in self.tables]
        count = Counter(table for table, _ in (*self.after_copy, *self.after_catchup))
        lines += [
            f"{number} indexes, constraints or triggers of {table} after its rows"
            for table, number in sorted(count.items())
        ]
        return lines


def plan_schema(
    source: Endpoint,
    tables: Iterable[TableName],
    reached: Reach | None = None,
    chosen: Mapping[TableName, Choice] | None = None,
    *,
    there: Iterable[int] = (),
    rows_follow: bool = True,
) -> SchemaPlan:
    """Read from the source how to make the tables elsewhere; changes nothing.

    Args:
        source: the database.
        tables: that are made.
        reached: what functions, views and types of the tables reach for, and triggers to leave out.
        chosen: unique indexes that identify rows at the target although not yet at the source.
        there: OIDs of other tables that exist at the target: foreign keys may lead to them.
        rows_follow: rows are copied afterwards, so CHECKs are added after them.

    Raises:
        NotFoundError: a table does not exist.
        FailedPreconditionError: there is no pg_dump for the source's version.
        SchemaDumpError: pg_dump failed, for instance at a table it may not lock.
    """
    with connect(
        source, purpose="schema", autocommit=False, idle_transaction_s=SNAPSHOT_IDLE_S
    ) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = session.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        snapshot = row[0]
        found = require_tables(session, tables)
        oids = {"oids": [table.oid for table in found.values()], "there": list(there)}
        reached = reached or Reach()
        needed = session.execute(queries.NEEDED, oids | reached.parameters()).fetchall()
        views = {o: i for _, o, i, kind, e in needed if kind == "view" and e is None}
        view_parts = {
            (class_oid, oid): views[view]
            for class_oid, oid, view in session.execute(queries.VIEW_PARTS, {"views": [*views]})
        }
        parts = {
            (class_oid, oid): (table, kind)
            for class_oid, oid, table, kind in session.execute(queries.PARTS, oids)
        }
        own = [n[1] for n in needed if n[4] is None]
        own += [s.oid for t in found.values() for s in t.sequences]
        domain_checks = session.execute(
            late_checks.DOMAIN_CHECKS, {"needed": [row[1] for row in needed]}
        ).fetchall()
        roles = session.execute(queries.ROLES, oids | {"needed": own}).fetchall()
        statistics = session.execute(queries.STATISTICS, oids).fetchall()
        major = session.info.server_version // 10000
        items: list[Item] = []
        arguments = _table_arguments(found, reached.sequences)
        if arguments := [*arguments, *(f"--table={identity}" for identity in views.values())]:
            items = dump_items(source, major=major, snapshot=snapshot, arguments=arguments)
        support: list[Item] = []
        if any(extension is None for *_, extension in needed):
            support = dump_items(
                source, major=major, snapshot=snapshot, arguments=["--exclude-table=*.*"]
            )
        names = {e for *_, e in needed if e is not None}
        names |= {identity for _, _, identity, kind, _ in needed if kind == "extension"}
        extensions = session.execute(queries.EXTENSIONS, [list(names)]).fetchall()
        session.rollback()
    lists = _Lists(found, {node.oid: at for at, node in enumerate(reached.late)})
    lists.view_parts, lists.chosen = view_parts, dict(chosen or {})
    lists.triggers = {root.node.oid for root in reached.triggers}
    lists.shared |= set(reached.sequences.values())
    _sort(lists, items, support, needed=needed, parts=parts)
    names_of = {table.oid: name for name, table in found.items()}
    lists.after_copy += [(1, names_of[oid], ddl) for oid, ddl in statistics]
    if rows_follow:
        lists.checks_late(domain_checks)
    return lists.plan(dict(extensions), tuple(name for (name,) in roles))


def _table_arguments(found: Mapping[TableName, Table], sequences: Iterable[TableName]) -> list[str]:
    """``--table`` for each table and each sequence that no column owns; patterns kept literal."""
    names = [*found, *sequences]
    names += [s.name for t in found.values() for s in t.sequences if s.kind == "used"]
    return [f"--table={_pattern(name.schema)}.{_pattern(name.name)}" for name in sorted(set(names))]


def _pattern(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sort(
    lists: _Lists,
    items: list[Item],
    support: list[Item],
    *,
    needed: list[tuple[Any, ...]],
    parts: Mapping[tuple[int, int], tuple[int, str]],
) -> None:
    """Put each item where it belongs."""
    found = lists.found
    table_of = {table.oid: name for name, table in found.items()}
    identities = {(c, o): identity for c, o, identity, _, _ in needed}
    for item in items:
        if (item.kind == "SEQUENCE" and item.oid in lists.shared) or item.kind == "VIEW":
            lists.support(item, identities[item.class_oid, item.oid])
        elif (item.class_oid, item.oid) in lists.view_parts or lists.is_of_view(item):
            lists.attach_to_view(item)
        elif item.oid and (item.class_oid, item.oid) in parts:
            table, part = parts[item.class_oid, item.oid]
            lists.part(item, table_of[table], part)
        elif item.kind == "ROW SECURITY":
            lists.part(item, TableName(item.schema, item.name), "policy")
        elif item.kind in ("COMMENT", "SECURITY LABEL"):
            lists.comment(item)
        else:
            lists.other(item)
    wanted = {(c, o) for c, o, _, kind, e in needed if e is None and kind != "extension"}
    made = {(i.class_oid, i.oid) for i in items}
    for item in support:
        if (item.class_oid, item.oid) in wanted and item.kind in support_kinds.KINDS:
            lists.support(item, identities[item.class_oid, item.oid])
            made.add((item.class_oid, item.oid))
        elif not item.oid and item.kind in ("ACL", "COMMENT"):
            lists.attach(item)
    lists.left_out += [
        f"{kind} {identity}"
        for c, o, identity, kind, e in needed
        if e is None and (c, o) not in made and kind != "extension"
    ]


def _plain(name: str) -> str:
    """A name for comparing: comments and grants are named with quotes, objects without."""
    return name.replace('"', "")


class _Lists:
    """The statements of a plan while they are sorted."""

    def __init__(self, found: Mapping[TableName, Table], late: Mapping[int, int]) -> None:
        self.found = found
        self.late = late
        self.chosen: dict[TableName, Choice] = {}
        self.triggers: set[int] = set()
        #: sequences that no column owns
        self.shared = {s.oid for t in found.values() for s in t.sequences if s.kind == "used"}
        self.view_parts: dict[tuple[int, int], str] = {}
        self.supports: list[Support] = []
        self.support_names: dict[tuple[str, str], int] = {}
        self.pre_data: list[str] = []
        self.keys: list[str] = []
        self.after_copy: list[tuple[int, TableName, str]] = []
        self.after_catchup: list[tuple[int, TableName, str]] = []
        self.left_out: list[str] = []
        #: a dump has most CHECKs inside CREATE TABLE
        self.placed: dict[tuple[str, str], tuple[TableName, str]] = {
            (table.schema, _plain(check.name)): (table, "check")
            for table, facts in found.items()
            for check in facts.checks
        }

    def support(self, item: Item, identity: str) -> None:
        self.support_names[item.schema, _plain(f"{item.kind} {item.name}")] = len(self.supports)
        self.supports.append(Support(item.kind, identity, item.ddl, self.late.get(item.oid)))

    def attach(self, item: Item) -> None:
        """Put a grant or comment with the support it is about; others are not wanted."""
        at = self.support_names.get((item.schema, _plain(item.name)))
        if at is not None:
            found = self.supports[at]
            self.supports[at] = replace(found, ddl=f"{found.ddl}\n{item.ddl}")

    def is_of_view(self, item: Item) -> bool:
        """A grant on, or a comment about, a view or one of its columns."""
        return not item.oid and self._view_of(item) is not None

    def attach_to_view(self, item: Item) -> None:
        """Put a part of a view with it."""
        identity = self.view_parts.get((item.class_oid, item.oid))
        at = self._view_of(item)
        if identity is not None:
            at = next(i for i, each in enumerate(self.supports) if each.identity == identity)
        assert at is not None
        found = self.supports[at]
        self.supports[at] = replace(found, ddl=f"{found.ddl}\n{item.ddl}")

    def _view_of(self, item: Item) -> int | None:
        about, _, name = _plain(item.name).partition(" ")
        if about == "COLUMN":
            name = name.rpartition(".")[0]
        if about not in {"VIEW", "TABLE", "COLUMN"}:
            return None
        return self.support_names.get((item.schema, f"VIEW {name}"))

    def part(self, item: Item, table: TableName, part: str) -> None:
        name = item.name.removeprefix(f"{table.name} ")
        choice = self.chosen.get(table)
        if choice is not None and _plain(name) == choice.index:
            self.placed[table.schema, _plain(name)] = (table, "key")
            self.keys += [item.ddl, f"{choice.statement()};"]
            return
        if part == "trigger" and item.oid in self.triggers:
            self.left_out.append(f"trigger {name} of {table}, as asked")
            part = "left out"
        self.placed[table.schema, _plain(name)] = (table, part)
        if part in _BEFORE:
            (self.keys if part == "key" else self.pre_data).append(item.ddl)
        elif part in _AFTER_COPY:
            self.after_copy.append((_AFTER_COPY.index(part), table, item.ddl))
        elif part in _AFTER_CATCH_UP:
            self.after_catchup.append((_AFTER_CATCH_UP.index(part), table, item.ddl))
        elif part == "foreign key out":
            self.left_out.append(f"foreign key {name} of {table}, which leads out of the set")

    def other(self, item: Item) -> None:
        """A part without an id of its own comes with its table, or once its indexes are there."""
        if item.kind == "INDEX ATTACH":
            order = _AFTER_CATCH_UP.index("check")
            self.after_catchup.append((order, TableName(item.schema, item.name), item.ddl))
        else:
            self.pre_data.append(item.ddl)

    def comment(self, item: Item) -> None:
        """Comments on tables and columns come with them, others with what they are about."""
        about, _, name = item.name.partition(" ")
        subject, _, _ = name.partition(" ON ")
        table, part = None, ""
        if about in ("INDEX", "CONSTRAINT", "TRIGGER", "RULE", "POLICY"):
            table, part = self.placed.get((item.schema, _plain(subject)), (None, ""))
        if about == "TRIGGER" and subject.startswith("_tidegate_"):
            return
        if table is None or part in _BEFORE:
            (self.keys if part == "key" else self.pre_data).append(item.ddl)
        elif part in _AFTER_COPY:
            self.after_copy.append((len(_AFTER_COPY), table, item.ddl))
        elif part in _AFTER_CATCH_UP:
            self.after_catchup.append((_AFTER_CATCH_UP.index("comment"), table, item.ddl))

    def checks_late(self, domain_checks: list[tuple[int, str, str, str, str | None]]) -> None:
        """CHECKs are left away until the rows are there."""
        late = _AFTER_CATCH_UP.index("check")
        for table, facts in self.found.items():
            self.pre_data += late_checks.left_away(facts)
            self.after_catchup += [(late, table, ddl) for ddl in late_checks.added_late(facts)]
        first = min(self.found)
        for _, identity, name, definition, comment in domain_checks:
            at = next((n for n, s in enumerate(self.supports) if s.identity == identity), None)
            if at is None:
                continue
            made = self.supports[at]
            away = late_checks.left_away_of_domain(identity, name)
            self.supports[at] = replace(made, ddl=f"{made.ddl}\n{away}")
            added = late_checks.added_late_to_domain(identity, name, definition, comment)
            self.after_catchup.append((late, first, added))

    def plan(self, extensions: dict[str, str], roles: tuple[str, ...]) -> SchemaPlan:
        given = {s.identity for s in self.supports} | {"public", "pg_catalog"}
        schemas = {sql.Identifier(schema).as_string() for schema in extensions.values()} - given
        schemas -= {sql.Identifier(schema).as_string() for schema in ("public", "pg_catalog")}
        homes = [Support("SCHEMA", name, f"CREATE SCHEMA {name};") for name in sorted(schemas)]
        early = [each for each in self.supports if each.order is None]
        return SchemaPlan(
            tables=tuple(sorted(self.found)),
            extensions=tuple(extensions),
            roles=roles,
            support=(
                *homes,  # schemas are made first, and removed last
                *(each for each in early if each.kind == "SCHEMA"),
                *(each for each in early if each.kind != "SCHEMA"),
                *sorted(
                    (each for each in self.supports if each.order is not None),
                    key=lambda each: each.order or 0,
                ),
            ),
            pre_data=tuple(self.pre_data),
            keys=tuple(self.keys),
            after_copy=tuple(a[1:] for a in sorted(self.after_copy, key=lambda a: a[0])),
            after_catchup=tuple(a[1:] for a in sorted(self.after_catchup, key=lambda a: a[0])),
            referenced=sum(not order for order, *_ in self.after_catchup),
            left_out=tuple(self.left_out),
            extension_schemas=extensions,
        )
