"""What checks share: how two definitions of one table differ.

Decides what must be equal for rows to pass from one to the other: columns by name, type, NOT NULL
and generation, and the key. The order of columns, indexes, owners and comments may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.postgres.catalog import key_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.postgres.catalog import Column, Table


def shape_differences(one: Table, other: Table) -> list[str]:
    """What differs, one phrase each; empty when rows of ``one`` fit into ``other`` as they are."""
    left = {column.name: column for column in one.columns}
    right = {column.name: column for column in other.columns}
    found = []
    if one.kind != other.kind:
        found.append("it is another kind of relation")
    if gone := [name for name in left if name not in right]:
        found.append(f"no column {', '.join(gone)}")
    if extra := [name for name in right if name not in left]:
        found.append(f"additional column {', '.join(extra)}")
    for name, column in left.items():
        if name in right:
            found.extend(_column_differences(column, right[name]))
    if set(key_columns(one)) != set(key_columns(other)):
        keys = [", ".join(key_columns(table)) or "none" for table in (one, other)]
        found.append(f"key ({keys[0]}) against ({keys[1]})")
    return found


def _column_differences(one: Column, other: Column) -> list[str]:
    found = []
    if one.type_name != other.type_name:
        found.append(f"{one.name} is {one.type_name} against {other.type_name}")
    if one.not_null != other.not_null:
        found.append(f"{one.name} is NOT NULL on one side only")
    if bool(one.generated) != bool(other.generated):
        found.append(f"{one.name} is generated on one side only")
    return found


def rows_text(rows: Iterable[tuple[str, ...]]) -> str:
    """Some keys of rows, for a message."""
    return "; ".join(f"({', '.join(row)})" for row in rows)
