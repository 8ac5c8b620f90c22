"""`tidegate config`: settings of the command line and of a node, and where each is from."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli import settings
from tidegate.cli.common import DEFAULTS, Common, DryRun
from tidegate.cli.output import Column, out
from tidegate.errors import InvalidArgumentError

app = App(name="config")


@app.command(alias="get", help_epilogue="Example:  tidegate config show --origin")
def show(
    *,
    origin: Annotated[bool, Parameter(help="Also say where each value is from.")] = False,
    common: Common = DEFAULTS,
) -> None:
    """Show the settings in force: of the command line, and of a node started here."""
    from tidegate.server.config import origins  # noqa: PLC0415 - heavy, and only needed here

    found = settings.resolve(url=common.url, token=common.token, context=common.context)
    items = [
        {"setting": f"client.{name}", "value": _shown(name, each.value), "origin": each.origin}
        for name, each in vars(found).items()
    ]
    items += [
        {"setting": f"node.{name}", "value": value, "origin": where}
        for name, (value, where) in origins({}).items()
    ]
    columns = [Column("SETTING", "setting"), Column("VALUE", "value")]
    if origin:
        columns.append(Column("ORIGIN", "origin"))
    common.items({"schema_version": 1, "items": items}, tuple(columns), "setting")


def _shown(name: str, value: str | None) -> str | None:
    """A token that was given as itself is not repeated."""
    if name == "token" and value and not value.startswith(("env:", "file:")):
        return "***"
    return value


@app.command(
    name="set",
    help_epilogue="Example:  tidegate config set prod --url https://tidegate:8470"
    " --token file:~/.tidegate-token",
)
def set_(
    name: str,
    /,
    *,
    url: str,
    token: str | None = None,
    ca_file: str | None = None,
    dry_run: DryRun = False,
) -> None:
    """Add or replace a context of the command line, and use it from now on.

    Args:
        name: of the context.
        url: of the node.
        token: where the token is: env:NAME or file:/path.
        ca_file: certificates to trust, for https with a private authority.
    """
    if token is not None and not token.startswith(("env:", "file:")):
        raise InvalidArgumentError(
            "a context holds a reference of the token, not the token",
            next_step="write it to a file and give --token file:/path",
        )
    known = settings.write_context(name, url=url, token=token, ca_file=ca_file, dry_run=dry_run)
    would = "would be " if dry_run else ""
    done = "replaced" if known else "written"
    out(f"context {name} {would}{done} in {settings.config_path()} and used from now on")


@app.command(help_epilogue="Example:  tidegate config use prod")
def use(name: str, /, *, dry_run: DryRun = False) -> None:
    """Use another context from now on.

    Args:
        name: of the context.
    """
    settings.use_context(name, dry_run=dry_run)
    out(f"context {name} {'would be' if dry_run else 'is'} used from now on")
