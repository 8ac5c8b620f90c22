"""Maps values for people and programs that ask: the answer of `tidegate vindex map`; pure.

Decides how a value's keyspace id and its shard are shown. Unlike a query, it refuses by name what
the vindex cannot map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.errors import InvalidArgumentError
from tidegate.topology.destinations import KeyspaceId
from tidegate.topology.vindexes import create
from tidegate.topology.vindexes.param_files import inlined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tidegate.topology.records import Shard


def map_values(
    vindex_type: str,
    params: Mapping[str, str],
    values: Iterable[Any],
    serving: Sequence[Shard] = (),
    *,
    files: Path | None,
) -> list[dict[str, Any]]:
    """The keyspace id of each value and, given shards that tile the space, its shard.

    Args:
        vindex_type: such as ``hash``.
        params: of the vindex.
        values: JSON values; a list for several columns.
        serving: the shards of a keyspace.
        files: the folder of the files that parameters may name; None for the caller's own files.

    Raises:
        InvalidArgumentError: the type or a parameter is unknown.
        NotFoundError: a parameter names a file that the folder does not hold.
        ShardKeyError: a value cannot be mapped.
    """
    vindex = create(vindex_type, vindex_type, inlined(vindex_type, vindex_type, params, files))
    if vindex.unknown_params:
        raise InvalidArgumentError(
            f"vindex {vindex_type} does not know: {', '.join(vindex.unknown_params)}",
            next_step=f"it takes: {', '.join(vindex.known_params) or 'no parameters'}",
        )
    items = []
    for value in values:
        given = tuple(value) if isinstance(value, list) else value
        keyspace_id = vindex.map_many([given])[0]
        item: dict[str, Any] = {
            "value": value,
            "keyspace_id": keyspace_id.hex(),
            "destination": str(KeyspaceId(keyspace_id)),
        }
        if serving:
            item["shard"] = next(s.name for s in serving if s.key_range.contains(keyspace_id))
        items.append(item)
    return items
