"""`tidegate shard`: the parts of a keyspace."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common, DryRun, Recursive, Yes, confirm, shard_of
from tidegate.cli.output import Column, Json
from tidegate.errors import InvalidArgumentError

app = App(name="shard")


def _name(shard: Json) -> str:
    return f"{shard['keyspace']}/{shard['name']}"


COLUMNS = (
    Column("SHARD", _name),
    Column("KEY RANGE", "key_range"),
    Column("SERVING", "serving"),
    Column("TABLETS", lambda shard: [tablet["alias"] for tablet in shard["tablets"]]),
    Column("DENIED TABLES", "denied_tables", wide=True),
)


@app.command(alias="add", help_epilogue="Example:  tidegate shard create customer/-80 customer/80-")
def create(shards: list[str], /, *, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Add shards to a keyspace: its first ones serve at once, later ones wait for a reshard.

    Args:
        shards: KEYSPACE/SHARD, all of one keyspace; together they have to fit in.
    """
    pairs = [shard_of(shard) for shard in shards]
    keyspaces = {keyspace for keyspace, _ in pairs}
    if len(keyspaces) > 1:
        raise InvalidArgumentError(
            f"the shards are of several keyspaces: {', '.join(sorted(keyspaces))}",
            next_step="add those of one keyspace at a time",
        )
    answer = common.client().shard.create(
        keyspaces.pop(), *(name for _, name in pairs), dry_run=dry_run
    )
    common.done(answer, f"{', '.join(shards)} {{would}}created", "\n".join(shards))


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate shard list customer")
def list_(keyspace: str, /, *, common: Common = DEFAULTS) -> None:
    """Show the shards of a keyspace.

    Args:
        keyspace: whose.
    """
    common.items(common.client().shard.list(keyspace), COLUMNS, _name)


@app.command(alias="describe", help_epilogue="Example:  tidegate shard show customer/-80")
def show(shard: str, /, *, common: Common = DEFAULTS) -> None:
    """Show a shard.

    Args:
        shard: KEYSPACE/SHARD.
    """
    answer = common.client().shard.show(*shard_of(shard))
    rows = [(column.title.lower(), column.of(answer)) for column in COLUMNS]
    rows += [
        ("reads switched away", answer["reads_disabled"]),
        ("reads switched to", answer["reads_enabled"]),
    ]
    common.one(answer, rows, shard)


@app.command(help_epilogue="Example:  tidegate shard delete customer/0 --recursive --yes")
def delete(
    shard: str,
    /,
    *,
    recursive: Recursive = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Remove a shard that does not serve; databases are not touched.

    Args:
        shard: KEYSPACE/SHARD.
    """
    keyspace, name = shard_of(shard)
    confirm(f"remove shard {shard}", shard, yes=yes, dry_run=dry_run)
    answer = common.client().shard.delete(keyspace, name, recursive=recursive, dry_run=dry_run)
    common.done(answer, f"shard {shard} {{would}}deleted", shard)
