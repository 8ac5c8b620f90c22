"""Reads what tables reach for through functions, views and types: the graph and its meaning.

Only looks, in a few catalogue queries for each step away from the tables, and lets the texts of
functions be parsed in another process. ``search_path`` set on a function, and the role behind
``$user`` in a SECURITY DEFINER function, hold for the names in its body and in whatever it calls;
other names are resolved as for a session of each role that uses the tables.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.engines.postgres.bodies import queries
from tidegate.engines.postgres.bodies.child import read_all
from tidegate.engines.postgres.bodies.graph import Edge, Graph, Reach, Relation, Root, analyse
from tidegate.engines.postgres.bodies.names import Body, Kind, Reading, Reference
from tidegate.engines.postgres.bodies.resolve import Named, Names, Node, Setting
from tidegate.engines.postgres.bodies.trees import dotted, qualified, split_path
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: The server's own search path, where nothing else is set.
DEFAULT_PATH: Final = ("$user", "public")
#: Different search paths that are followed; names that none of them finds are looked for anywhere.
SETTINGS_MAX: Final = 8
#: Functions that are read to see whether an application calls them for a moved table.
ROUTINES_MAX: Final = 5_000

type State = tuple[Node, Setting]


def reach(
    connection: Connection[TupleRow],
    tables: Mapping[TableName, int],
    sequences: Mapping[TableName, int],
    *,
    there: frozenset[TableName] = frozenset(),
    without: Collection[str] = (),
    views: bool = True,
    whole: bool = False,
) -> Reach:
    """What the tables reach for.

    Args:
        connection: a session made by :func:`connect`.
        tables: OIDs of the tables that will be made at the targets, by name.
        sequences: OIDs of the sequences that come with them.
        there: relations that every target has.
        without: triggers to leave out, as ``table.trigger``.
        views: views over the tables come along.
        whole: the tables are a whole database's: functions that nothing reaches for come along
            too, and views that show no table.
    """
    if not tables:
        return Reach(unknown_triggers=tuple(sorted(without)))
    explorer = _Explorer(connection, tables)
    asked = {_trigger_key(each): each for each in without}
    roots = explorer.roots()
    left_out = [r for r in roots if r.part == "trigger" and (str(r.table), r.name) in asked]
    kept = [root for root in roots if root not in left_out]
    graph = explorer.explore(kept, views=views, whole=whole)
    moved = {Node("pg_class", oid): name for name, oid in (*tables.items(), *sequences.items())}
    found = analyse(graph, moved=moved, there=there, whole=whole)
    known = {(str(root.table), root.name) for root in left_out}
    unknown = sorted(asked[key] for key in asked.keys() - known)
    return replace(found, triggers=tuple(left_out), unknown_triggers=tuple(unknown))


def _trigger_key(text: str) -> tuple[str, str]:
    table, _, trigger = text.rpartition(".")
    return (str(TableName.parse(table)) if table else "", trigger)


class _Explorer:
    """One walk through the catalogue of one database."""

    def __init__(self, connection: Connection[TupleRow], tables: Mapping[TableName, int]) -> None:
        self._connection = connection
        self._tables = tables
        self._oids = {"oids": list(tables.values())}
        self._names = self._read_names()
        self._schemas = {named.schema for found in self._names.objects.values() for named in found}
        self._of_extensions = frozenset(
            Node(catalog, oid) for catalog, oid in connection.execute(queries.OF_EXTENSIONS)
        )
        self._transition_tables: dict[int, set[str]] = defaultdict(set)
        for oid, name in connection.execute(queries.TRANSITION_TABLES):
            self._transition_tables[oid].add(name)
        self._hard: dict[Node, tuple[Edge, ...]] = {}
        self._edges: dict[Node, set[Edge]] = defaultdict(set)
        self._relations: dict[Node, Relation] = {}
        self._routines: dict[Node, tuple[Any, ...]] = {}
        self._bodies: dict[Node, Body] = {}
        self._readings: dict[Node, Reading] = {}
        self._roots: frozenset[Node] = frozenset()

    def _read_names(self) -> Names:
        found: dict[tuple[Kind, str], list[Named]] = defaultdict(list)
        for kind, catalog, oid, schema, name, least, most in self._connection.execute(
            queries.OBJECTS
        ):
            found[Kind(kind), name].append(Named(Node(catalog, oid), schema, least, most))
        builtin = frozenset(
            (Kind(kind), name) for kind, name in self._connection.execute(queries.BUILTIN)
        )
        return Names({key: tuple(named) for key, named in found.items()}, builtin)

    def roots(self) -> list[Root]:
        """The parts of the tables."""
        names = {oid: name for name, oid in self._tables.items()}
        return [
            Root(names[table], part, name, Node(catalog, oid))
            for table, part, name, catalog, oid in self._connection.execute(
                queries.ROOTS, self._oids
            )
        ]

    def explore(self, roots: list[Root], *, views: bool, whole: bool) -> Graph:
        """The graph of everything that the roots, views over the tables and all routines reach."""
        self._roots = frozenset(root.node for root in roots)
        for oid, arguments in self._connection.execute(queries.TRIGGER_ARGUMENTS, self._oids):
            text = bytes(arguments).decode(errors="replace")
            self._trigger_arguments(Node("pg_trigger", oid), text)
        shown: list[Node] = []
        if views:
            rows = (
                self._connection.execute(queries.ALL_VIEWS)
                if whole
                else self._connection.execute(queries.VIEWS, self._oids)
            )
            shown = [Node("pg_class", row[0]) for row in rows]
        routines = [
            Node("pg_proc", row[0])
            for row in self._connection.execute(queries.ALL_ROUTINES, {"most": ROUTINES_MAX})
        ]
        starts = [*self._roots, *shown, *routines]
        settings = self._settings()
        frontier = {(node, setting) for node in starts for setting in settings}
        seen: set[State] = set()
        while frontier:
            seen |= frontier
            self._look_up({node for node, _ in frontier})
            frontier = {
                state for each in frontier for state in self._step(*each) if state not in seen
            }
        return Graph(
            roots=tuple(roots),
            edges={node: tuple(sorted(edges)) for node, edges in self._edges.items()},
            relations=self._relations,
            readings=self._readings,
            identities=self._identities(),
            of_extensions=self._of_extensions,
            views=tuple(shown),
            routines=tuple(routines),
            triggered=frozenset(n for n, row in self._routines.items() if row[6] == "trigger"),
        )

    def _trigger_arguments(self, trigger: Node, arguments: str) -> None:
        parts = arguments.split("\0")
        if len(parts) > 1:
            schema, name = qualified(dotted(parts[1]) or [""])
            reference = Reference(Kind.TEXT_SEARCH_CONFIGURATION, schema, name)
            for node in self._names.find(reference, ()):
                self._edges[trigger].add(Edge(node, by_text=True))

    def _settings(self) -> set[Setting]:
        """What unqualified names mean to the sessions that use the tables."""
        by_role: dict[str, tuple[str, ...]] = {}
        for role, path in self._connection.execute(queries.SEARCH_PATHS):
            by_role[role] = split_path(path)  # of this database after those of all
        default = by_role.pop("", DEFAULT_PATH)
        users = [row[0] for row in self._connection.execute(queries.USERS, self._oids)]
        found = {Setting(default)}
        for role in dict.fromkeys((*users, *by_role)):
            user = role if role in self._schemas else ""
            if len(found) < SETTINGS_MAX:
                found.add(Setting(by_role.get(role, default), user))
        return found

    def _look_up(self, nodes: set[Node]) -> None:
        """Read, at once for all nodes, what a step from each of them needs."""
        fresh = sorted(nodes - self._hard.keys())
        given = {"catalogs": [n.catalog for n in fresh], "oids": [n.oid for n in fresh]}
        hard: dict[Node, list[Edge]] = {node: [] for node in fresh}
        for catalog, oid, to_catalog, to_oid in self._connection.execute(queries.EDGES, given):
            hard[Node(catalog, oid)].append(Edge(Node(to_catalog, to_oid)))
        self._hard |= {node: tuple(edges) for node, edges in hard.items()}
        relations = {node for node in fresh if node.catalog == "pg_class"}
        for oid, kind, schema, name, owned in self._query(queries.RELATIONS, relations):
            found = Relation(kind, TableName(schema, name), is_owned=owned)
            self._relations[Node("pg_class", oid)] = found
        routines = {n for n in fresh if n.catalog == "pg_proc" and n not in self._of_extensions}
        for row in self._query(queries.ROUTINES, routines):
            self._routine(Node("pg_proc", row[0]), row[1:])
        read = read_all(self._bodies[n] for n in routines if n in self._bodies)
        for node in routines & self._bodies.keys():
            self._readings[node] = read[self._bodies[node]]

    def _query(self, query: str, nodes: Iterable[Node]) -> list[tuple[Any, ...]]:
        oids = [node.oid for node in nodes]
        return self._connection.execute(query, {"oids": oids}).fetchall() if oids else []

    def _routine(self, node: Node, row: tuple[Any, ...]) -> None:
        language, _, has_no_text, *_ = row
        self._routines[node] = row
        if has_no_text:
            return
        if language in {"sql", "plpgsql"}:
            self._bodies[node] = _body(row)
        else:
            self._readings[node] = Reading(error=f"it is written in {language}")

    def _step(self, node: Node, setting: Setting) -> Iterable[State]:
        """What a node refers to, with what names mean there."""
        if node in self._of_extensions or self._is_end(node):
            return []
        targets = set(self._hard[node])
        if node in self._roots:  # what a table's parts name directly is judged by other checks
            targets = {edge for edge in targets if edge.target.catalog != "pg_class"}
        inner = setting
        if node in self._routines:
            inner = self._inner(node, setting)
            targets |= self._references(node, inner)
        self._edges[node] |= targets
        return [(edge.target, inner) for edge in self._edges[node]]

    def _is_end(self, node: Node) -> bool:
        """Tables and sequences are not looked into, but for those where reading begins."""
        relation = self._relations.get(node)
        return relation is not None and relation.kind in "rpfS" and node not in self._roots

    def _inner(self, node: Node, setting: Setting) -> Setting:
        """What names mean inside a routine."""
        _, _, _, is_definer, owner, config, *_ = self._routines[node]
        path, user = setting.path, setting.user
        if is_definer:
            user = owner if owner in self._schemas else ""
        for each in config:
            name, _, value = each.partition("=")
            if name == "search_path":
                path = split_path(value)
        return Setting(path, user)

    def _references(self, node: Node, setting: Setting) -> set[Edge]:
        """What a routine's text names.

        An extension's overload of a name of the system's is not counted: whoever has values of its
        types has the extension for their sake.
        """
        reading = self._readings.get(node, Reading())
        paths = [setting.path, *reading.search_paths]
        own = self._transition_tables.get(node.oid, set())
        found = set()
        for reference in reading.references:
            if reference.kind is Kind.RELATION and not reference.schema and reference.name in own:
                continue
            for path in paths:
                schemas = Setting(path, setting.user).schemas()
                found |= {
                    Edge(target, by_text=True, writes=reference.writes)
                    for target in self._names.find(reference, schemas)
                    if not (self._names.is_builtin(reference) and target in self._of_extensions)
                }
        return found

    def _identities(self) -> dict[Node, tuple[str, str]]:
        nodes = sorted(self._hard)
        given = {"catalogs": [n.catalog for n in nodes], "oids": [n.oid for n in nodes]}
        return {
            Node(catalog, oid): (kind, identity)
            for catalog, oid, kind, identity in self._connection.execute(queries.IDENTITIES, given)
        }


def _body(row: tuple[Any, ...]) -> Body:
    language, text, _, _, _, _, returns, count, names, modes = row
    modes = modes or ["i"] * count
    named = [*names, *[""] * (len(modes) - len(names))]
    both = list(zip(modes, named, strict=False))
    return Body(
        language=language,
        text=text,
        returns=returns,
        inputs=tuple(name for mode, name in both if mode in "iv"),
        outputs=tuple(name for mode, name in both if mode in "obt" and name),
        positions=tuple(name for mode, name in both if mode in "ibv"),
    )
