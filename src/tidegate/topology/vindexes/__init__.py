"""Vindexes: functions from column values to keyspace ids, and their registry.

Decides which types exist and builds one by type, name and parameters. Each type has its rule, and
where that comes from, in its own module. None of them asks a database anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.errors import NotFoundError
from tidegate.topology.vindexes.base import Value, Vindex
from tidegate.topology.vindexes.cfc import Cfc
from tidegate.topology.vindexes.columns import MultiCol, RegionExperimental, RegionJson
from tidegate.topology.vindexes.numbers import Hash, Numeric, NumericStaticMap, ReverseBits
from tidegate.topology.vindexes.pg_binary import from_pg_binary
from tidegate.topology.vindexes.pg_hash import PgHash
from tidegate.topology.vindexes.texts import (
    Binary,
    BinaryMd5,
    Null,
    UnicodeLooseMd5,
    UnicodeLooseXxhash,
    Xxhash,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TYPES", "Value", "Vindex", "create", "from_pg_binary"]

TYPES: Mapping[str, type[Vindex]] = {
    cls.type: cls
    for cls in (
        Binary,
        BinaryMd5,
        Cfc,
        Hash,
        MultiCol,
        Null,
        Numeric,
        NumericStaticMap,
        PgHash,
        RegionExperimental,
        RegionJson,
        ReverseBits,
        UnicodeLooseMd5,
        UnicodeLooseXxhash,
        Xxhash,
    )
}
"""Every vindex type by its name in a vschema."""


def create(type_name: str, name: str, params: Mapping[str, str] | None = None) -> Vindex:
    """Build a vindex; parameters it does not know are in its ``unknown_params``.

    Raises:
        NotFoundError: there is no such type.
        InvalidArgumentError: a parameter is missing, or its value makes no sense.
    """
    found = TYPES.get(type_name)
    if found is None:
        raise NotFoundError(
            f'vindexType "{type_name}" not found',
            next_step=f"use one of {', '.join(sorted(TYPES))}",
            type=type_name,
        )
    return found(name, params or {})
