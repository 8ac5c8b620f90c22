"""`tidegate vindex`: map values to keyspace ids and shards."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, pairs
from tidegate.cli.output import Column, out
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

app = App(name="vindex")

BATCH = 10_000

COLUMNS = (
    Column("VALUE", "value"),
    Column("KEYSPACE ID", "keyspace_id"),
    Column("SHARD", "shard"),
)


@app.command(
    name="map",
    help_epilogue="Examples:  tidegate vindex map 42 --type hash --keyspace customer\n\n"
    "seq 1 1000 | tidegate vindex map --type xxhash --keyspace customer",
)
def map_(
    value: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    type: Annotated[str, Parameter(help="Type of the vindex.")],  # noqa: A002 - the flag's name
    params: Annotated[
        list[str] | None, Parameter(help="KEY=VALUE, for the types that take parameters.")
    ] = None,
    keyspace: Annotated[
        str | None, Parameter(help="Also say which of its serving shards it is.")
    ] = None,
    common: Common = DEFAULTS,
) -> None:
    """Show the keyspace id of a value and, given a keyspace, its shard.

    Without a value, JSON values are read from standard input, one a line, and one JSON line is
    written for each.

    Args:
        value: as JSON has it, or plain text; a list for several columns.
    """
    given = pairs(params)

    def mapped(values: list[Any]) -> list[dict[str, Any]]:
        if keyspace is None:
            return _here(type, given, values)
        answer = common.client().vindex.map(type, values, params=given, keyspace=keyspace)
        return list(answer["items"])

    if value is not None:
        item = mapped([_value(value)])[0]
        if common.output in {"json", "yaml"}:
            common.one({"schema_version": 1, **item}, [], "")
        elif common.output == "name":
            out(item["keyspace_id"])
        else:
            shown = COLUMNS if keyspace else COLUMNS[:-1]
            common.one(item, [(column.title.lower(), column.of(item)) for column in shown], "")
        return
    for batch in _batches():
        for item in mapped(batch):
            out(json.dumps(item))


def _here(vindex_type: str, params: dict[str, str], values: list[Any]) -> list[dict[str, Any]]:
    """Without a keyspace no node is asked: the same code answers in this process."""
    from tidegate.topology.vindexes.mapping import map_values  # noqa: PLC0415 - heavy, rarely used

    return map_values(vindex_type, params, values, files=None)


def _value(text: str) -> Any:
    """A word of the command line: a JSON number, list or string; else the text itself."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, int | list | str) or found is None else text


def _batches() -> Iterator[list[Any]]:
    if sys.stdin.isatty():
        raise InvalidArgumentError(
            "there is no value", next_step="give one, or JSON lines on standard input"
        )
    batch: list[Any] = []
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            batch.append(json.loads(line))
        except ValueError:
            raise InvalidArgumentError(
                f"line {number} is not JSON: {line.strip()[:80]}",
                next_step='write one JSON value a line, text in quotes: "abc"',
            ) from None
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
