"""`tidegate workflow`: workflows of any type."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.workflow_verbs import LIST_COLUMNS, add_verbs

app = App(name="workflow")


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate workflow list -o wide")
def list_(*, keyspace: str | None = None, common: Common = DEFAULTS) -> None:
    """Show all workflows.

    Args:
        keyspace: only those with this target keyspace.
    """
    common.items(common.client().workflow.list(keyspace), LIST_COLUMNS)


add_verbs(app, "workflow")
