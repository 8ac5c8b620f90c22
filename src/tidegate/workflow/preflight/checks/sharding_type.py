"""Refuses sharding columns whose values their vindex cannot turn into a keyspace id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.vindexes.pg_binary import DECODERS
from tidegate.topology.vindexes.pg_types import INTEGERS, TEXTS, pg_type_name
from tidegate.topology.vschema import VindexSpec
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.catalog import Column
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


#: Vindexes of numbers: which of their columns must be integers; None for all.
_INTEGER_COLUMNS: dict[str, tuple[int, ...] | None] = {
    "hash": None,
    "numeric": None,
    "numeric_static_map": None,
    "reverse_bits": None,
    "region_experimental": None,
    "region_json": (0,),
}

#: Types without one written form that have a hash for partitions all the same.
_HASHED_BY_POSTGRES = {"bool", "date", "timestamp", "timestamptz"}

#: Vindexes under which texts that differ in case or accents are equal.
_LOOSE = {"unicode_loose_md5", "unicode_loose_xxhash", "null"}

_ONE_WRITTEN_FORM = INTEGERS | TEXTS | {"bytea", "uuid"}


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Sharding columns whose type the primary vindex cannot map."""
    vschema = facts.vschema(request)
    for database, table, spec in facts.sharded(request):
        assert spec.primary_vindex is not None
        vindex = vschema.vindexes.get(spec.primary_vindex.name)
        if vindex is None:
            continue
        columns = {column.name: column for column in table.columns}
        for position, name in enumerate(spec.primary_vindex.columns):
            column = columns.get(name)
            if column is None:
                continue
            if not _takes(vindex, position, column):
                yield Problem(
                    f"{database.label} {table.name}",
                    f"sharding column {name} of {table.name} is {column.type_name}, which a"
                    f" {vindex.type} vindex cannot map",
                )
            elif not column.collation_deterministic and vindex.type not in _LOOSE:
                yield Problem(
                    f"{database.label} {table.name}",
                    f"sharding column {name} of {table.name} has the collation"
                    f" {column.collation}, under which different texts are equal, but a"
                    f" {vindex.type} vindex tells them apart",
                )


def _takes(vindex: VindexSpec, position: int, column: Column) -> bool:
    kind = pg_type_name(column.type_name)
    if vindex.type == "null":
        return True
    if column.type_oid not in DECODERS:
        return False
    if vindex.type == "pg_hash":
        return kind in _ONE_WRITTEN_FORM or kind in _HASHED_BY_POSTGRES
    if vindex.type == "multicol":
        inner = vindex.params.get("column_vindex", "").split(",")
        chosen = inner[position].strip() if position < len(inner) else ""
        return _takes(VindexSpec(chosen or "hash"), 0, column)
    integers = _INTEGER_COLUMNS.get(vindex.type, ())
    if integers is None or position in integers:
        return kind in INTEGERS
    return kind in _ONE_WRITTEN_FORM


CHECK = Check(
    id="TG-PF-207",
    title="A sharding column has a type its vindex cannot take",
    severity=Severity.ERROR,
    cause=(
        "A vindex of numbers takes integers only, one of bytes or text only types whose value"
        " has one written form; a row it cannot map has no shard."
    ),
    remedy="choose another vindex type for the column, or another column",
    find=find,
    again=frozenset({Verb.SWITCH}),
)
