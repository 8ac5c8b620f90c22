"""`tidegate demo`: see it all on this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

app = App(name="demo", help_epilogue="Example:  tidegate demo --keep")


@app.default
def demo(
    *,
    scale: Annotated[int, Parameter(help="Size: 100 000 accounts each.", show_default=True)] = 10,
    keep: Annotated[bool, Parameter(help="Leave everything up and say how to look.")] = False,
) -> int:
    """Start real PostgreSQL servers and a load; move, verify, switch, split, switch back.

    Exit status 0 only if every comparison is equal, no write is lost or doubled, and every pause of
    writes is under a second. The last line of standard output is the figures as JSON.
    """
    from tidegate.demo.main import run  # noqa: PLC0415 - heavy, and only needed here

    return run(scale=scale, keep=keep)
