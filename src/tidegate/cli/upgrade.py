"""`tidegate upgrade`: the version of the cluster's own tables at its shards."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm

app = App(name="upgrade")


@app.command(alias="show", help_epilogue="Example:  tidegate upgrade status -o json")
def status(*, common: Common = DEFAULTS) -> None:
    """Show where the upgrade is, what failed, and what keeps it from being finalised."""
    found = common.client().upgrade.status()
    rows = [
        ("version", found["version"]),
        ("state", found["state"]),
        ("finalised", found["is_finalised"]),
        ("this node knows", found["program"]),
        ("problem", found["problem"] or "-"),
        ("blocked", found["blocked"] or "-"),
    ]
    for step in found["steps"]:
        how = f"{step['state']}, {step['ready']} of {step['total']} shards, {step['failed']} failed"
        rows.append((f"{step['from']} to {step['to']}", how))
        rows += [
            (f"  {each['shard']}", f"{each['state']} after {each['attempts']}: {each['error']}")
            for each in step["shards"]
        ]
    common.one(found, rows, str(found["version"] or "-"))


@app.command(alias="finalize", help_epilogue="Example:  tidegate upgrade finalise --yes")
def finalise(*, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Close the way back: nodes of the version before may not be started any more.

    It is refused as long as a member runs that version, or a shard is behind that nobody skipped.
    """
    confirm("finalise the upgrade", "finalise", yes=yes, dry_run=dry_run)
    answer = common.client().upgrade.finalise(dry_run=dry_run)
    done = "upgrade {would}finalised" if answer["finalised"] else "it was finalised before"
    common.done(answer, done, "upgrade")


@app.command(help_epilogue="Example:  tidegate upgrade retry customer/-80")
def retry(
    shard: str | None = None, /, *, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Try a shard, or everything that failed, again at once.

    Args:
        shard: KEYSPACE/SHARD; a skipped one, too.
    """
    answer = common.client().upgrade.retry(shard, dry_run=dry_run)
    common.done(answer, f"{answer['retried']} {{would}}tried again", "upgrade")


@app.command(help_epilogue="Example:  tidegate upgrade skip customer/-80 --yes")
def skip(
    shard: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Let the upgrade go on without a shard; it stays at its version.

    Args:
        shard: KEYSPACE/SHARD.
    """
    confirm(f"skip shard {shard}", shard, yes=yes, dry_run=dry_run)
    answer = common.client().upgrade.skip(shard, dry_run=dry_run)
    common.done(answer, f"shard {shard} {{would}}skipped", shard)


@app.command(help_epilogue="Example:  tidegate upgrade supersede --yes")
def supersede(*, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Set an older upgrade that is stuck aside and begin that of this node's version."""
    confirm("supersede the upgrade", "supersede", yes=yes, dry_run=dry_run)
    answer = common.client().upgrade.supersede(dry_run=dry_run)
    common.done(answer, f"upgrade to {answer['program']} {{would}}begun", "upgrade")
