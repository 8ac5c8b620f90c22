"""How a difference is shown: the row at one side, or both rows of a changed one.

Decides what of a row goes into a report: all columns or keys, how long values may be, and on
request the statement with which a person reads the row again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.dataplane import compare
from tidegate.engines.postgres import bounds
from tidegate.workflow.vdiff.model import shown_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.workflow.vdiff.model import VDiffOptions


def shown_difference(
    sides: compare.TableSides,
    difference: compare.Difference,
    options: VDiffOptions,
    sources: Sequence[str],
) -> dict[str, Any]:
    """One difference as the report shows it; ``sources`` are the names of the source shards.

    A key that several of them hold is named with all of them: a target can keep only one row.
    """
    target = sides.targets[difference.target]
    if difference.kind == "extra":
        return _shown(target, difference.key, options)
    source, holders = _source_of(sides, difference.key, options, sources)
    several = {"SourceShards": holders} if len(holders) > 1 else {}
    if difference.kind == "missing":
        return source | several
    there = _shown(target, difference.twin or difference.key, options)
    found = {"Source": source["Row"], "Target": there["Row"], **several}
    if options.debug_query:
        found |= {"SourceQuery": source["Query"], "TargetQuery": there["Query"]}
    return found


def _source_of(
    sides: compare.TableSides, key: compare.Key, options: VDiffOptions, sources: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The row at the first source that has it, and the names of all sources that have the key."""
    found = [_shown(side, key, options) for side in sides.sources]
    holders = [(name, s) for name, s in zip(sources, found, strict=True) if s["Row"]]
    return (holders[0][1] if holders else found[0]), [name for name, _ in holders]


def _shown(side: compare.Side, key: compare.Key, options: VDiffOptions) -> dict[str, Any]:
    columns = side.columns
    names = columns.key if options.only_pks else columns.names
    row = compare.read_row(side, key, names) or {}
    types = dict(zip(columns.names, columns.base_types, strict=True))
    shown: dict[str, Any] = {
        "Row": {
            name: shown_value(
                value,
                options.row_diff_column_truncate_at,
                binary=types[name] == "bytea",
                key=name in columns.key,
            )
            for name, value in row.items()
        }
    }
    if options.debug_query:
        shown["Query"] = bounds.row_query(side.connection, side.space, key, names)
    return shown
