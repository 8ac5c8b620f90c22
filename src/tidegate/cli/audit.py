"""`tidegate audit`: who did what, and whether the log of it is whole."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.output import Column
from tidegate.errors import ExitStatus

app = App(name="audit")

COLUMNS = (
    Column("SEQ", "seq"),
    Column("AT", "at"),
    Column("TOKEN", "caller"),
    Column("FROM", "origin"),
    Column("WHAT", "what"),
    Column("OUTCOME", lambda row: row["outcome"] or "begun"),
    Column("ROLE", "role", wide=True),
    Column("MEMBER", "member", wide=True),
    Column("HASH", "hash", wide=True),
)


@app.command(name="list", help_epilogue="Example:  tidegate audit list --limit 50")
def list_(
    *,
    before: Annotated[int | None, Parameter(help="Only entries before this one.")] = None,
    limit: Annotated[int, Parameter(help="How many, newest first.")] = 100,
    call: Annotated[
        str | None, Parameter(help="Only those of this call, or of the operation of this id.")
    ] = None,
    common: Common = DEFAULTS,
) -> None:
    """List the newest calls that may have changed something, and how each ended.

    Each call is two entries: one before it is done, whose outcome is `begun`, and one with its HTTP
    status. A call without the second was cut off by a crash. What became of a cluster operation is
    in the same log, written with the change itself.
    """
    answer = common.client().audit.list(before=before, limit=limit, call=call)
    common.items(answer, COLUMNS, "seq")


@app.command(help_epilogue="Example:  tidegate audit verify")
def verify(*, common: Common = DEFAULTS) -> int:
    """Find out whether an entry was changed or is missing; exit status 5 when one is."""
    answer = common.client().audit.verify()
    rows = [
        ("intact", answer["is_intact"]),
        ("entries", answer["entries"]),
        ("first", answer["first_seq"]),
        ("last", answer["last_seq"]),
        ("head", answer["head"]),
        ("broken at", answer.get("broken_at")),
        ("why", answer.get("why")),
    ]
    common.one(answer, rows, "intact" if answer["is_intact"] else "broken")
    return ExitStatus.DONE if answer["is_intact"] else ExitStatus.MISMATCH
