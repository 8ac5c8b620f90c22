"""Finds the names in parse trees of SQL statements.

Decides from the tree alone, as libpg_query gives it: which relations, routines, types, operators,
collations and text search objects a statement names, which of its names are its own (common table
expressions, tables it creates), and which constants name an object (``'orders_id_seq'::regclass``,
``nextval('…')``, ``to_tsvector('english', …)``). What a name stands for is resolved elsewhere. A
name too many does no harm, a missing one does: where scopes are unclear, the name is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from tidegate.engines.postgres.bodies.names import Kind, Reference

type Node = Any

_WRITING: Final = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "TruncateStmt"}

#: Type of a constant, and what a constant of it names.
_NAMING_TYPES: Final = {
    "regclass": Kind.RELATION,
    "regproc": Kind.ROUTINE,
    "regprocedure": Kind.ROUTINE,
    "regtype": Kind.TYPE,
    "regcollation": Kind.COLLATION,
    "regconfig": Kind.TEXT_SEARCH_CONFIGURATION,
    "regdictionary": Kind.TEXT_SEARCH_DICTIONARY,
}

#: Functions of the system whose first argument names an object, with how many arguments they then
#: have.
_NAMING_CALLS: Final = {
    "nextval": (Kind.RELATION, (1,)),
    "currval": (Kind.RELATION, (1,)),
    "setval": (Kind.RELATION, (2, 3)),
    "to_tsvector": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "to_tsquery": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "plainto_tsquery": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "phraseto_tsquery": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "websearch_to_tsquery": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "json_to_tsvector": (Kind.TEXT_SEARCH_CONFIGURATION, (3,)),
    "jsonb_to_tsvector": (Kind.TEXT_SEARCH_CONFIGURATION, (3,)),
    "ts_headline": (Kind.TEXT_SEARCH_CONFIGURATION, (3, 4)),
    "ts_debug": (Kind.TEXT_SEARCH_CONFIGURATION, (2,)),
    "ts_lexize": (Kind.TEXT_SEARCH_DICTIONARY, (2,)),
}


@dataclass
class Found:
    """What was found so far; ``own`` are names that the text makes itself."""

    references: set[Reference] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    search_paths: list[tuple[str, ...]] = field(default_factory=list)

    def settled(self) -> set[Reference]:
        """The references without the tables that the text itself creates."""
        return {
            each
            for each in self.references
            if each.kind is not Kind.RELATION or each.schema or each.name not in self.own
        }


def collect(statements: Node, found: Found) -> None:
    """Add what the statements name."""
    _walk(statements, found, frozenset(), "")


def qualified(parts: list[str]) -> tuple[str, str]:
    """(schema, name) of a dotted name; the database before them, if there is one, is dropped."""
    return (parts[-2] if len(parts) > 1 else "", parts[-1])


def _walk(node: Node, found: Found, scope: frozenset[str], statement: str) -> None:
    if isinstance(node, list):
        for each in node:
            _walk(each, found, scope, statement)
    elif isinstance(node, dict):
        _node(node, found, scope, statement)


def _node(node: dict[str, Node], found: Found, scope: frozenset[str], statement: str) -> None:
    if "relname" in node and "relpersistence" in node:
        _relation(node, found, scope, writes=statement in _WRITING)
        return
    if "names" in node and "typemod" in node:
        _name(found, Kind.TYPE, node["names"])
    elif "collname" in node and isinstance(node["collname"], list):
        _name(found, Kind.COLLATION, node["collname"])
    elif "funcname" in node:
        _call(node, found)
    inside = _with(node, found, scope)
    for key, value in node.items():
        look = _LOOKS.get(key)
        if look is not None and isinstance(value, dict):
            look(value, found)
        if key != "withClause":
            _walk(value, found, inside, _statement(key, statement))


def _statement(key: str, around: str) -> str:
    """Of which statement a relation is the one that rows are written to."""
    if key in _WRITING:
        return key
    return around if key in {"relation", "relations", "RangeVar"} else ""


def _with(node: dict[str, Node], found: Found, scope: frozenset[str]) -> frozenset[str]:
    """Walk through common table expressions; returns the scope of what follows them."""
    clause = node.get("withClause")
    if not isinstance(clause, dict):
        return scope
    expressions = [each["CommonTableExpr"] for each in clause.get("ctes", [])]
    everything = scope | {each["ctename"] for each in expressions}
    inside = everything if clause.get("recursive") else scope
    for each in expressions:
        _walk(each.get("ctequery"), found, inside, "")
        inside |= {each["ctename"]}
    return everything


def _relation(node: dict[str, Node], found: Found, scope: frozenset[str], *, writes: bool) -> None:
    schema, name = node.get("schemaname", ""), node["relname"]
    if node["relpersistence"] == "t" or schema == "pg_temp":
        found.own.add(name)
    elif schema or name not in scope:
        found.references.add(Reference(Kind.RELATION, schema, name, writes=writes))


def _strings(nodes: Node) -> list[str]:
    return [n["String"]["sval"] for n in nodes if isinstance(n, dict) and "String" in n]


def _name(found: Found, kind: Kind, nodes: Node, arguments: int = -1) -> None:
    parts = _strings(nodes)
    if parts:
        found.references.add(Reference(kind, *qualified(parts), arguments))


def _call(node: dict[str, Node], found: Found) -> None:
    arguments = node.get("args", [])
    count = -1 if node.get("func_variadic") else len(arguments)
    _name(found, Kind.ROUTINE, node["funcname"], count)
    name = (_strings(node["funcname"]) or [""])[-1]
    kind, counts = _NAMING_CALLS.get(name, (None, ()))
    if kind is not None and count in counts:
        _constant(arguments[0], kind, found)
    elif name == "set_config" and count == 3 and _text(arguments[0]) == "search_path":
        found.search_paths.append(split_path(_text(arguments[1]) or ""))


def _cast(node: dict[str, Node], found: Found) -> None:
    kind = _NAMING_TYPES.get((_strings(node.get("typeName", {}).get("names", [])) or [""])[-1])
    if kind is not None:
        _constant(node.get("arg"), kind, found)


def _constant(node: Node, kind: Kind, found: Found) -> None:
    text = _text(node)
    if text:
        parts = dotted(text.partition("(")[0])
        if parts and not parts[-1].isdigit():
            found.references.add(Reference(kind, *qualified(parts)))


def _text(node: Node) -> str | None:
    """The text of a string constant, also behind a cast."""
    while isinstance(node, dict) and "TypeCast" in node:
        node = node["TypeCast"].get("arg")
    if isinstance(node, dict) and "A_Const" in node:
        value = node["A_Const"].get("sval")
        return value.get("sval", "") if isinstance(value, dict) else None
    return None


def _operators(node: dict[str, Node], found: Found) -> None:
    for key in ("name", "operName", "useOp"):
        if isinstance(node.get(key), list):
            arguments = (2 if "lexpr" in node else 1) if key == "name" else 2
            _name(found, Kind.OPERATOR, node[key], arguments)


def _setting(node: dict[str, Node], found: Found) -> None:
    if node.get("name", "").lower() == "search_path":
        parts = tuple(_text(each) or "" for each in node.get("args", []))
        found.search_paths.append(tuple(filter(None, parts)))


def _created(node: dict[str, Node], found: Found) -> None:
    found.own.add(node["relation"]["relname"])


def _filled(node: dict[str, Node], found: Found) -> None:
    """The table of ``SELECT … INTO`` and ``CREATE TABLE … AS``."""
    if "rel" in node:
        found.own.add(node["rel"]["relname"])


#: What is looked at in nodes of these kinds, beside what is inside of them.
_LOOKS: Final = {
    "A_Expr": _operators,
    "SubLink": _operators,
    "SortBy": _operators,
    "TypeCast": _cast,
    "VariableSetStmt": _setting,
    "CreateStmt": _created,
    "into": _filled,
    "intoClause": _filled,
}


def constant_text(tree: Node) -> str | None:
    """The string that ``SELECT 'text'`` gives, when that is all it is."""
    try:
        (target,) = tree[0]["stmt"]["SelectStmt"]["targetList"]
        return _text(target["ResTarget"]["val"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def dotted(text: str) -> list[str]:
    """The parts of a name as PostgreSQL reads it: folded to lower case unless quoted."""
    parts: list[str] = []
    at, text = 0, text.strip()
    while at < len(text):
        if text[at] == '"':
            end, part = at + 1, ""
            while end < len(text) and (text[end] != '"' or text[end : end + 2] == '""'):
                part += text[end]
                end += 2 if text[end] == '"' else 1
            at = end + 1
        else:
            end = at
            while end < len(text) and text[end] != ".":
                end += 1
            part, at = text[at:end].strip().lower(), end
        parts.append(part)
        at += 1 if text[at : at + 1] == "." else 0
    return parts


def split_path(text: str) -> tuple[str, ...]:
    """The schemas of a ``search_path`` as it is written."""
    parts, quoted, current = [], False, ""
    for letter in text:
        if letter == '"':
            quoted = not quoted
        if letter == "," and not quoted:
            parts.append(current)
            current = ""
        else:
            current += letter
    return tuple(part for each in (*parts, current) for part in dotted(each)[:1] if part)
