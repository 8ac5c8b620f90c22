"""`tidegate cluster`: the nodes that work together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, seconds
from tidegate.cli.output import Column

app = App(name="cluster")
token = App(name="token", help="Tokens by which one node may join.")
setting = App(name="setting", help="Settings of the whole cluster.")
app.command(token)
app.command(setting)

MEMBERS = (
    Column("MEMBER", "name"),
    Column("ADDRESS", "address"),
    Column("STATUS", "status"),
    Column("ROLE", "role"),
    Column("OWNER", "is_owner"),
    Column("VERSION", "version"),
    Column("SCHEMA", "schema_version"),
    Column("MESSAGE", "message"),
    Column("API EXTENSIONS", "api_extensions", wide=True),
    Column("HEARTBEAT", "heartbeat_at", wide=True),
)
TOKENS = (
    Column("MEMBER", "name"),
    Column("USED", lambda row: row["used_at_ms"] is not None),
    Column("EXPIRES", lambda row: _time(row["expires_at_ms"])),
)
SETTINGS = (Column("SETTING", "name"), Column("VALUE", "value"))

Force = Annotated[bool, Parameter(help="Without telling it; evict: also one that works.")]


def _time(milliseconds: int) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415 - only a list of tokens needs it

    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


@app.command(help_epilogue="Example:  tidegate cluster show")
def show(*, common: Common = DEFAULTS) -> None:
    """Show the cluster as this node sees it: where its database is, who owns the work."""
    found = common.client().cluster.show()
    rows = [
        ("member", found["member"]),
        ("address", found["address"]),
        ("stage", found["stage"]),
        ("why", found["why"]),
        ("owner", found["owner"]),
        ("engine", found["engine"]),
        ("database", found["place"]),
        ("schema version", found["schema_version"]),
    ]
    common.one(found, rows, str(found["member"] or "-"))


@app.command(help_epilogue="Example:  tidegate cluster backup /var/backups/tidegate.backup")
def backup(file: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Write the cluster database as it is now into a file, while the nodes work.

    The file is the same whichever engine it comes from, and is checked when it is complete.
    Databases that Tidegate moves are not in it, nor are passwords.

    Args:
        file: to write; one of that name is replaced.
    """
    from pathlib import Path  # noqa: PLC0415 - not needed for help

    from tidegate.cluster.backup import verify  # noqa: PLC0415 - not needed for help
    from tidegate.server.restoring import shown  # noqa: PLC0415 - same

    if dry_run:
        answer = {**common.client().cluster.show(), "file": file, "dry_run": True}
    else:
        common.client().cluster.backup(Path(file))
        answer = _plain(shown(verify(Path(file))), file)
    common.done(answer, f"{{would}}written: {file}", file)


@app.command(
    help_epilogue="Example:  tidegate cluster restore /var/backups/tidegate.backup"
    " --state-dir /var/lib/tidegate"
)
def restore(
    file: str,
    /,
    *,
    state_dir: Annotated[str | None, Parameter(help="Folder of the node's state.")] = None,
    cluster_database: Annotated[
        str | None, Parameter(help="URL of the cluster database; default: in the state folder.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace what is there.")] = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Fill the cluster database of a node from a backup; the node must be stopped.

    It may be of another engine than the one the backup was taken from. Settings that are not given
    are found as `tidegate serve` finds them. A SQLite file that is replaced is kept beside the new
    one, and a crash leaves one or the other.

    Args:
        file: that `tidegate cluster backup` wrote.
    """
    from pathlib import Path  # noqa: PLC0415 - not needed for help

    from tidegate.server.config import load  # noqa: PLC0415 - heavy, and only needed here
    from tidegate.server.restoring import restore as fill  # noqa: PLC0415 - same

    settings = load({"state_dir": state_dir, "cluster_database": cluster_database})
    answer = _plain(fill(settings, Path(file), force=force, dry_run=dry_run), file)
    if dry_run:
        answer["dry_run"] = True
    common.done(
        answer, f"{{would}}restored from {file}: {answer['backup']['rows']} rows", str(file)
    )


def _plain(found: dict[str, Any], file: str) -> dict[str, Any]:
    taken_at = found["taken_at"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"schema_version": 1, "file": file, "backup": {**found, "taken_at": taken_at}}


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate cluster list -o wide")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show the members, each with its status and the reason."""
    common.items(common.client().cluster.list(), MEMBERS)


@app.command(alias="bootstrap", help_epilogue="Example:  tidegate cluster enable node-1")
def enable(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Make this node the first member of a cluster; nothing that it holds is lost.

    The node must have been started with --member-address. Its certificate and those of all who
    join are made here. A node on SQLite becomes the first replica of a database that is replicated
    over the members; one on PostgreSQL keeps it.

    Args:
        name: of the member.
    """
    answer = common.client().cluster.enable(name, dry_run=dry_run)
    common.done(answer, f"{name} {{would}}made the first member", name)


@app.command(help_epilogue="Example:  tidegate cluster join tgjoin_eyJuIjoi...")
def join(
    word: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Make this node, which holds nothing yet, a member of the cluster that made the token.

    The node must have been started with --member-address.

    Args:
        word: the token; - reads it from standard input, where no process list shows it.
    """
    import sys  # noqa: PLC0415 - only for a token on standard input

    given = sys.stdin.readline().strip() if word == "-" else word
    answer = common.client().cluster.join(given, dry_run=dry_run)
    name = str(answer["name"])
    common.done(answer, f"{name} {{would}}made a member", name)


@app.command(help_epilogue="Example:  tidegate cluster leave node-3 --yes")
def leave(
    name: str,
    /,
    *,
    force: Force = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Let a member go; it forgets the cluster and goes on alone. The only member cannot leave.

    Args:
        name: of the member.
        force: without telling it.
    """
    confirm(f"let member {name} leave", name, yes=yes, dry_run=dry_run)
    answer = common.client().cluster.leave(name, force=force, dry_run=dry_run)
    common.done(answer, f"{name} {{would}}removed from the cluster", name)


@app.command(help_epilogue="Example:  tidegate cluster evict node-3 --yes")
def evict(
    name: str,
    /,
    *,
    force: Force = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Throw a member out that is offline or holds an upgrade up.

    Any other node can do it, also one that waits for others to be upgraded. The member's
    certificate is refused from then on. To come back it has to join as a fresh node. The only
    member, and the only one that votes, cannot be evicted.

    Args:
        name: of the member.
        force: also one that works.
    """
    confirm(f"evict member {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().cluster.evict(name, force=force, dry_run=dry_run)
    common.done(answer, f"{name} {{would}}evicted", name)


@app.command(help_epilogue="Example:  tidegate cluster promote node-4")
def promote(
    name: str,
    /,
    *,
    role: Literal["voter", "standby", "spare"] = "voter",
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Give a member a role in the replication of the cluster database.

    Roles are also balanced without being asked: up to three members that are online vote.

    Args:
        name: of the member.
        role: voter, standby or spare.
    """
    answer = common.client().cluster.promote(name, role, dry_run=dry_run)
    common.done(answer, f"{name} {{would}}made a {role}", name)


@app.command(help_epilogue="Example:  tidegate cluster recover --state-dir /var/lib/tidegate --yes")
def recover(
    *,
    state_dir: Annotated[str | None, Parameter(help="Folder of the node's state.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Go on with this member alone, after the majority is gone for good.

    For a stopped node, on its own machine, and for one of the survivors only. What this member had
    not received is lost: take the one whose log is the longest, which --dry-run shows. The others
    are evicted; one that is started by mistake is refused and says so. Then start this one, and let
    fresh nodes join.
    """
    from tidegate.server import config, recovering  # noqa: PLC0415 - heavy, and only needed here

    settings = config.load({"state_dir": state_dir})
    found = recovering.survivor(settings)
    confirm(f"go on with {found.name} alone", found.name, yes=yes, dry_run=dry_run)
    answer = {"schema_version": 1, "name": found.name, "term": found.term, "index": found.index}
    if dry_run:
        answer["dry_run"] = True
    else:
        recovering.go_on_alone(settings)
    common.done(
        answer,
        f"{found.name}, whose log ends at term {found.term} entry {found.index}, {{would}}made the"
        " only one; start it, then let fresh nodes join",
        found.name,
    )


@token.command(name="create", help_epilogue="Example:  tidegate cluster token create node-2")
def token_create(
    name: str, /, *, ttl: str = "1h", dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Make a token for one node to join under a name, once; it is shown here and nowhere else.

    Args:
        name: of the member that will join.
        ttl: how long it is good: 90s, 30m, 1h.
    """
    answer = common.client().cluster.token_create(name, ttl_s=seconds(ttl), dry_run=dry_run)
    shown = answer.get("token") or f"a token for {name} would be made"
    common.done(answer, str(shown), name)


@token.command(name="list", alias="get", help_epilogue="Example:  tidegate cluster token list")
def token_list(*, common: Common = DEFAULTS) -> None:
    """Show the tokens that were made, without their secrets."""
    common.items(common.client().cluster.token_list(), TOKENS)


@token.command(name="revoke", help_epilogue="Example:  tidegate cluster token revoke node-2")
def token_revoke(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Forget a token.

    Args:
        name: of the member it was made for.
    """
    answer = common.client().cluster.token_revoke(name, dry_run=dry_run)
    common.done(answer, f"token for {name} {{would}}revoked", name)


@setting.command(name="list", alias="get", help_epilogue="Example:  tidegate cluster setting list")
def setting_list(*, common: Common = DEFAULTS) -> None:
    """Show the settings of the whole cluster."""
    common.items(common.client().cluster.settings(), SETTINGS)


@setting.command(
    name="set", help_epilogue="Example:  tidegate cluster setting set offline_threshold 20"
)
def setting_set(
    name: str, value: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Set a setting of the whole cluster.

    Args:
        name: of the setting.
        value: an empty one goes back to the default.
    """
    answer = common.client().cluster.set(name, value, dry_run=dry_run)
    common.done(answer, f"{name} {{would}}set to {value or 'its default'}", name)
