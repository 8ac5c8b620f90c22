"""`tidegate doctor`: what to look at first when something is wrong."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.output import Column, out, size, table
from tidegate.errors import ExitStatus

app = App(name="doctor", help_epilogue="Example:  tidegate doctor")

SLOTS = (
    Column("SLOT", "slot"),
    Column("TABLET", "tablet"),
    Column("WORKFLOW", "workflow"),
    Column("RETAINED", lambda slot: size(slot["retained_bytes"])),
    Column("ACTIVE", "active"),
)

DATABASES = (
    Column("TABLET", "tablet"),
    Column("SHARD", "shard"),
    Column("REACHABLE", "reachable"),
    Column("VERSION", "server_version_num"),
    Column("FREE SLOTS", "free_slots"),
)


@app.default
def doctor(*, common: Common = DEFAULTS) -> int:
    """Look at the node, every database, every replication slot and every worker.

    Slots are ranked by the log they retain. The exit status is 1 when an error is found.
    """
    answer = common.client().node.doctor()
    findings = answer["findings"]
    bad = any(finding["severity"] == "error" for finding in findings)
    if common.output in {"json", "yaml", "name"}:
        common.one(answer, [], "\n".join(finding["what"] for finding in findings))
        return ExitStatus.ERROR if bad else ExitStatus.DONE
    out("the node answers")
    if answer["databases"]:
        out("")
        table(answer["databases"], DATABASES)
    if answer["slots"]:
        out("")
        table(answer["slots"], SLOTS)
    out("")
    if not findings:
        out("nothing to mend")
    for finding in findings:
        out(f"{finding['severity']}: {finding['what']}")
        out(f"  next: {finding['next_step']}")
    return ExitStatus.ERROR if bad else ExitStatus.DONE
