"""How a trial of an upgrade is shown, and which exit status it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.cli.output import Column, duration, note, table_text
from tidegate.cli.tenant_view import TenantsFailedError

if TYPE_CHECKING:
    from tidegate.cli.common import Common
    from tidegate.cli.output import Json

STEP_COLUMNS: Final = (
    Column("VERSIONS", lambda step: ", ".join(step["versions"])),
    Column("TOOK", lambda step: duration(step["took_ms"] / 1000)),
    Column("CHANGES", lambda step: "; ".join(step["changes"]) or "-"),
)


def end(common: Common, trial: Json) -> None:
    """Print what was tried.

    Raises:
        TenantsFailedError: it did not reach the target.
    """
    rows = [
        ("source", trial["source"]),
        ("target", trial["target"]),
        ("copy of", trial["tenant"] or "-, nothing is to be run"),
        ("copied in", duration(trial["copy_ms"] / 1000)),
    ]
    more = "\n" + table_text(trial["steps"], STEP_COLUMNS) if trial["steps"] else ""
    common.one(trial, rows, trial["target"], more=more)
    if common.output in {"table", "wide"}:
        for each in trial["missed"]:
            note(f"not in the copy: {each}")
        note("no tenant was changed")
    if trial["failure"]:
        raise TenantsFailedError(
            f"the trial failed in a copy of tenant {trial['tenant']}: {trial['failure']}",
            next_step="fix the migration, then try it again; no tenant was changed",
        )
