"""`tidegate token`: who may use the API, and for what."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, seconds
from tidegate.cli.output import Column

app = App(name="token")

COLUMNS = (
    Column("TOKEN", "name"),
    Column("ROLE", "role"),
    Column("EXPIRES", lambda row: row["expires_at"] or "never"),
    Column("CREATED", "created_at", wide=True),
    Column("BY", "created_by", wide=True),
)


@app.command(help_epilogue="Example:  tidegate token create deploy --role operate --ttl 90d")
def create(
    name: str,
    /,
    *,
    role: Literal["read", "operate", "admin"],
    ttl: Annotated[str | None, Parameter(help="How long it is good; default: forever.")] = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Make a token for the API; it is printed this once, and every member of the cluster takes it.

    `read` looks at everything but tokens and the audit log, and is what routers need; `operate`
    moves and switches; `admin` may do everything: endpoints, secrets, programs, members, tokens.

    Args:
        name: whom it is for; the audit log says it.
        role: what it may do.
    """
    ttl_s = None if ttl is None else seconds(ttl)
    answer = common.client().token.create(name, role, ttl_s=ttl_s, dry_run=dry_run)
    common.done(answer, answer.get("token", f"token {name} would be created"), name)


@app.command(name="list", help_epilogue="Example:  tidegate token list")
def list_(*, common: Common = DEFAULTS) -> None:
    """List the tokens, their roles and ends; the tokens themselves are kept nowhere."""
    common.items(common.client().token.list(), COLUMNS)


@app.command(help_epilogue="Example:  tidegate token revoke deploy --yes")
def revoke(
    name: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Forget a token; every member refuses it within a second or two.

    Args:
        name: of the token.
    """
    confirm(f"revoke token {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().token.revoke(name, dry_run=dry_run)
    common.done(answer, f"token {name} {{would}}revoked", name)
