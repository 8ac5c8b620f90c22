"""What objects of a database refer to, and what that means for a move of some tables.

Pure: :mod:`tidegate.engines.postgres.bodies.reach` reads the graph, this decides on it which
objects come along, which relations stay behind although something that moves reaches for them, and
in which order objects that lean on tables are made.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tidegate.engines.postgres.bodies.names import Reading
    from tidegate.engines.postgres.bodies.resolve import Node
    from tidegate.topology.names import TableName

#: Catalogues of objects that a schema copy can make for a function.
CARRIED: Final = frozenset(
    {
        "pg_class",
        "pg_collation",
        "pg_operator",
        "pg_proc",
        "pg_ts_config",
        "pg_ts_dict",
        "pg_type",
    }
)
_KINDS: Final = {
    "r": "table",
    "p": "table",
    "f": "foreign table",
    "m": "materialised view",
    "S": "sequence",
}


@dataclass(frozen=True, order=True)
class Edge:
    """One object refers to another; ``by_text`` when only the text of a function says so."""

    target: Node
    by_text: bool = False
    writes: bool = False


@dataclass(frozen=True, order=True)
class Root:
    """A part of a table where reading begins: a trigger, a default, an index, the table itself."""

    table: TableName
    part: str
    name: str
    node: Node

    def __str__(self) -> str:
        return f"{self.part} {self.name}"


@dataclass(frozen=True)
class Relation:
    """A relation that was met: relkind, and its name; ``is_owned``: it is a column's sequence."""

    kind: str
    name: TableName
    is_owned: bool = False

    @property
    def is_free_sequence(self) -> bool:
        """A sequence that can be made without any table."""
        return self.kind == "S" and not self.is_owned


@dataclass(frozen=True)
class Graph:
    """What was read.

    Attributes:
        edges: of each object that was looked into.
        relations: those that were met, by node.
        readings: of each function whose text was looked at.
        identities: (type, identity) of objects.
        of_extensions: objects that their extension makes.
        triggered: functions that triggers call.
    """

    roots: tuple[Root, ...] = ()
    edges: Mapping[Node, tuple[Edge, ...]] = field(default_factory=dict)
    relations: Mapping[Node, Relation] = field(default_factory=dict)
    readings: Mapping[Node, Reading] = field(default_factory=dict)
    identities: Mapping[Node, tuple[str, str]] = field(default_factory=dict)
    of_extensions: frozenset[Node] = frozenset()
    views: tuple[Node, ...] = ()
    routines: tuple[Node, ...] = ()
    triggered: frozenset[Node] = frozenset()

    def called(self, node: Node) -> str:
        """What an object is, in words: its kind and its name."""
        kind, identity = self.identities.get(node, ("", ""))
        return f"{kind} {identity}".strip() or f"{node.catalog} {node.oid}"


@dataclass(frozen=True, order=True)
class Stay:
    """A relation that stays, though a part of a table that moves reaches for it.

    Attributes:
        table: that moves; ``part`` is what of it, such as ``trigger log``.
        routine: the function (or other object) that names the relation.
        kind: of relation: table, sequence, foreign table, materialised view.
        chain: all objects between, in words.
    """

    table: TableName
    part: str
    routine: str
    relation: TableName
    kind: str
    writes: bool = False
    chain: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class Unread:
    """A function whose text tells only in part what it refers to.

    ``dynamic``: statements put together at run time; otherwise ``reason`` says what went wrong.
    """

    routine: str
    table: TableName
    part: str
    reason: str = ""
    dynamic: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reach:
    """What moved tables reach for beyond themselves.

    Attributes:
        carried: objects that come along, in no order; ``late`` those of them that lean on tables
            or views, in the order in which to make them.
        extended: objects of extensions, which are needed with them.
        views: (identity, tables) of views over moved tables that come along.
        views_left: (identity, why) of those that do not.
        sequences: OIDs, by name, of sequences that only bodies draw from: carried, or at the
            targets already.
        callers: routines that nothing moved reaches, by the moved table they name.
        triggered: by function that triggers call: the moved tables that it uses, each with all
            objects between, in words.
        triggers: those that were asked to be left out, and exist.
        unknown_triggers: those that were asked to be left out and do not.
    """

    carried: tuple[Node, ...] = ()
    extended: tuple[Node, ...] = ()
    late: tuple[Node, ...] = ()
    stays: tuple[Stay, ...] = ()
    unread: tuple[Unread, ...] = ()
    views: tuple[str, ...] = ()
    views_left: tuple[tuple[str, str], ...] = ()
    sequences: Mapping[TableName, int] = field(default_factory=dict)
    callers: Mapping[TableName, tuple[str, ...]] = field(default_factory=dict)
    triggered: Mapping[str, Mapping[TableName, tuple[str, ...]]] = field(default_factory=dict)
    triggers: tuple[Root, ...] = ()
    unknown_triggers: tuple[str, ...] = ()
    bodies_read: int = 0

    def parameters(self) -> dict[str, list[str] | list[int]]:
        """As the queries for what tables need take it."""
        more = [*self.carried, *self.extended]
        return {
            "catalogs": [node.catalog for node in more],
            "objects": [node.oid for node in more],
            "without": [root.node.oid for root in self.triggers],
        }


def analyse(
    graph: Graph,
    *,
    moved: Mapping[Node, TableName],
    there: frozenset[TableName],
    whole: bool = False,
) -> Reach:
    """Decide what comes along.

    Args:
        graph: from :mod:`tidegate.engines.postgres.bodies.reach`.
        moved: the tables, and the sequences that come with them.
        there: relations that every target has.
        whole: routines come along that nothing reaches for.
    """
    stays: dict[tuple[TableName, str, Node], Stay] = {}
    unread: dict[Node, Unread] = {}
    reached: set[Node] = set()
    staying = {
        node
        for node, relation in graph.relations.items()
        if relation.kind in _KINDS
        and node not in moved
        and relation.name not in there
        and not relation.is_free_sequence
    }
    for root in graph.roots:
        parents = _search(graph, root.node)
        reached |= parents.keys()
        for node, (parent, _) in parents.items():
            if node in staying and parent != root.node:
                key = (root.table, str(root), node)
                stays.setdefault(key, _stay(graph, root, parents, node))
            reading = graph.readings.get(node)
            if reading is not None and (reading.error or reading.dynamic):
                unread.setdefault(
                    node,
                    Unread(
                        graph.called(node),
                        root.table,
                        str(root),
                        reading.error,
                        reading.dynamic,
                        _chain(graph, parents, node),
                    ),
                )
    broken = _broken(graph, staying)
    own = {root.node for root in graph.roots} | set(moved)
    views = [view for view in graph.views if _may_come(graph, view, broken)]
    alone = [routine for routine in graph.routines if whole and routine not in broken]
    for node in (*views, *alone):
        reached |= {node, *_search(graph, node)}
    carried = {
        node
        for node in reached - own - broken - graph.of_extensions
        if node.catalog in CARRIED and _is_made(graph, node)
    }
    return Reach(
        carried=tuple(sorted(carried)),
        extended=tuple(sorted(reached & graph.of_extensions)),
        late=_late(graph, carried, moved),
        stays=tuple(sorted(stays.values())),
        unread=tuple(sorted(unread.values())),
        views=tuple(sorted(graph.identities[view][1] for view in views)),
        views_left=_views_left(graph, views, staying),
        sequences={
            graph.relations[node].name: node.oid
            for node in sorted(carried & graph.relations.keys())
            if graph.relations[node].is_free_sequence
        },
        callers=_callers(graph, reached, moved),
        triggered=_triggered(graph, moved),
        bodies_read=sum(1 for each in graph.readings.values() if not each.error),
    )


def _search(
    graph: Graph, start: Node, is_end: Callable[[Node], bool] = lambda _node: False
) -> dict[Node, tuple[Node, Edge]]:
    """Everything that is reached, each with who named it first and how; ends are not left."""
    found: dict[Node, tuple[Node, Edge]] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        if is_end(node):
            continue
        for edge in sorted(graph.edges.get(node, ()), key=lambda e: (not e.writes, e)):
            if edge.target not in found and edge.target != start:
                found[edge.target] = (node, edge)
                waiting.append(edge.target)
    return found


def _chain(graph: Graph, parents: Mapping[Node, tuple[Node, Edge]], node: Node) -> tuple[str, ...]:
    """The objects from the root to ``node``, without the root; rules of views are left out."""
    found = []
    while node in parents:
        if node.catalog not in {"pg_rewrite", "pg_constraint"}:
            found.append(graph.called(node))
        node = parents[node][0]
    return tuple(reversed(found))


def _stay(graph: Graph, root: Root, parents: Mapping[Node, tuple[Node, Edge]], node: Node) -> Stay:
    parent, edge = parents[node]
    while parent in parents and parent.catalog in {"pg_rewrite", "pg_constraint", "pg_type"}:
        parent = parents[parent][0]
    relation = graph.relations[node]
    return Stay(
        table=root.table,
        part=str(root),
        routine=graph.called(parent),
        relation=relation.name,
        kind=_KINDS[relation.kind],
        writes=edge.writes,
        chain=_chain(graph, parents, node),
    )


def _broken(graph: Graph, staying: Iterable[Node]) -> set[Node]:
    """Objects that cannot be made where the relations that stay are missing."""
    users: dict[Node, set[Node]] = {}
    for node, edges in graph.edges.items():
        for edge in edges:
            if not edge.by_text:
                users.setdefault(edge.target, set()).add(node)
    found = set(staying)
    waiting = deque(found)
    while waiting:
        for user in users.get(waiting.popleft(), ()):
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _may_come(graph: Graph, view: Node, broken: set[Node]) -> bool:
    return view not in broken and graph.relations[view].kind == "v"


def _is_made(graph: Graph, node: Node) -> bool:
    """Not tables and their sequences, which the copy makes itself, nor row types of relations."""
    if node.catalog == "pg_class":
        relation = graph.relations.get(node)
        return relation is not None and (relation.kind == "v" or relation.is_free_sequence)
    if node.catalog == "pg_type":
        kinds = {
            graph.relations[e.target].kind
            for e in graph.edges.get(node, ())
            if e.target in graph.relations
        }
        return kinds <= {"c"}
    return True


def _late(graph: Graph, carried: set[Node], moved: Mapping[Node, TableName]) -> tuple[Node, ...]:
    """Carried objects that lean on moved tables or views, each behind what it leans on."""
    tables = {node for node in moved if node.catalog == "pg_class"}
    tables |= {
        node
        for node in carried
        if node.catalog == "pg_class" and not graph.relations[node].is_free_sequence
    }
    late = (_broken(graph, tables) & carried) | (carried & tables)
    sorter: TopologicalSorter[Node] = TopologicalSorter()
    for node in sorted(late):
        sorter.add(node, *(_hard(graph, node) & late - {node}))
    # A view and its row type refer to each other in no way that matters here: types of relations
    # are not carried for themselves.
    return tuple(sorter.static_order())


def _hard(graph: Graph, node: Node) -> set[Node]:
    """Everything an object cannot be made without."""
    found: set[Node] = set()
    waiting = deque([node])
    while waiting:
        for edge in graph.edges.get(waiting.popleft(), ()):
            if not edge.by_text and edge.target not in found:
                found.add(edge.target)
                waiting.append(edge.target)
    return found


def _views_left(graph: Graph, views: list[Node], staying: set[Node]) -> tuple[tuple[str, str], ...]:
    found = []
    for view in graph.views:
        if view in views:
            continue
        if graph.relations[view].kind == "m":
            why = "it is materialised"
        else:
            names = sorted(str(graph.relations[n].name) for n in _hard(graph, view) & staying)
            why = f"it reads {', '.join(names)}, which stays"
        found.append((graph.identities[view][1], why))
    return tuple(sorted(found))


def _callers(
    graph: Graph, reached: set[Node], moved: Mapping[Node, TableName]
) -> dict[TableName, tuple[str, ...]]:
    """Routines that only the application calls, by the moved tables they name."""
    found: dict[TableName, set[str]] = {}
    for routine in graph.routines:
        if routine in reached:
            continue
        for edge in graph.edges.get(routine, ()):
            if edge.target in moved and edge.target.catalog == "pg_class":
                found.setdefault(moved[edge.target], set()).add(graph.called(routine))
    return {table: tuple(sorted(names)) for table, names in sorted(found.items())}


def _triggered(
    graph: Graph, moved: Mapping[Node, TableName]
) -> dict[str, dict[TableName, tuple[str, ...]]]:
    """Functions of triggers that use moved tables, themselves or through functions and views.

    A function that has a table's row type does not use the table for that.
    """
    tables = {node for node in moved if node.catalog == "pg_class"}
    found = {}
    for routine in sorted(graph.triggered):
        parents = _search(graph, routine, lambda n: n in tables or n.catalog == "pg_type")
        used = {
            moved[node]: _chain(graph, parents, node)[:-1] for node in parents if node in tables
        }
        if used:
            found[graph.called(routine)] = dict(sorted(used.items()))
    return found
