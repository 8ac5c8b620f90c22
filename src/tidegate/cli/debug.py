"""`tidegate debug`: for tests of crashes."""

from __future__ import annotations

import importlib
import pkgutil

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.output import Column

app = App(name="debug")

COLUMNS = (
    Column("STEP", "name"),
    Column("PLAN", "plan"),
    Column("RUNS IN", "runs_in"),
    Column("DONE", "description"),
)


@app.command(help_epilogue="Example:  tidegate debug steps -o json")
def steps(*, common: Common = DEFAULTS) -> None:
    """Show every named durable step; TIDEGATE_CRASH_AT=STEP kills the process right there.

    STEP#3 means the third time. The first worker of a span inherits the variable from its node,
    one that comes back after a failure does not.
    """
    import tidegate.bootstrap  # noqa: PLC0415 - declares steps, too
    import tidegate.dataplane  # noqa: PLC0415 - heavy, and only needed here
    import tidegate.engines  # noqa: PLC0415 - same
    import tidegate.server  # noqa: PLC0415 - same
    import tidegate.workflow  # noqa: PLC0415 - same
    from tidegate.steps import declared  # noqa: PLC0415 - same

    # Steps are declared by the modules that perform them, so all of those have to be loaded.
    for package in (
        tidegate.bootstrap,
        tidegate.engines,
        tidegate.dataplane,
        tidegate.workflow,
        tidegate.server,
    ):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    items = [vars(step) for step in declared()]
    common.items({"schema_version": 1, "items": items}, COLUMNS)
