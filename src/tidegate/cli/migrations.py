"""`tidegate migrations`: where the upgrades of tenants come from."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, names
from tidegate.cli.output import Column, Json, note, table_text
from tidegate.errors import InvalidArgumentError

app = App(name="migrations")

COLUMNS = (
    Column("NAME", "name"),
    Column("SOURCE", "source"),
    Column("ROLE", "role"),
    Column("PYTHON", "python", wide=True),
    Column("FOLDER", "folder", wide=True),
    Column("VERSION TABLE", "version_table", wide=True),
)
VERSION_COLUMNS = (
    Column("VERSION", "id"),
    Column("NAME", "name"),
    Column("TRANSACTION", "transaction"),
)


@app.command(alias="add", help_epilogue="Example:  tidegate migrations create app sql:/srv/app/sql")
def create(
    name: str,
    source: str,
    /,
    *,
    python: str = "",
    folder: str = "",
    role: str = "",
    also_search: str | None = None,
    version_table: str = "tidegate_migration",
    url_variable: str = "",
    single_transaction: bool = False,
    recursive: bool = False,
    variables: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Variable of SQL files, name=value, used as ${name}; may be repeated.",
            negative="",
        ),
    ] = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Register a migration source; the node reads it once, and refuses what cannot be run.

    Paths are those of the node's machine.

    Args:
        name: of the source.
        source: sql:/folder, python:module:function, alembic:/path/alembic.ini or
            django:settings.module.
        python: the Python program of the application's environment; the node's own if not given.
        folder: working folder of the programs, first on their path.
        role: that runs the migrations and owns what they make; the tablet's own if not given.
        also_search: schemas in the search path behind the tenant's own, with commas.
        version_table: where tenants of sql and python sources keep their version.
        single_transaction: run all versions that a tenant lacks in one transaction, not one each.
        url_variable: variable of the environment in which env.py of Alembic expects the URL.
        recursive: read SQL files in folders below the source's, too.
    """
    answer = common.client().migrations.create(
        name,
        source,
        python=python,
        folder=folder,
        role=role,
        also_search=names(also_search),
        version_table=version_table,
        url_variable=url_variable,
        single_transaction=single_transaction,
        recursive=recursive,
        variables=_pairs(variables or []),
        dry_run=dry_run,
    )
    common.done(answer, f"migration source {name} {{would}}registered, head {answer['head']}", name)
    _note_ignored(answer)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate migrations list")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show the registered migration sources."""
    common.items(common.client().migrations.list(), COLUMNS)


@app.command(alias="describe", help_epilogue="Example:  tidegate migrations show app")
def show(name: str, /, *, common: Common = DEFAULTS) -> None:
    """Show a migration source with its versions, as they are now.

    Args:
        name: of the source.
    """
    answer = common.client().migrations.show(name)
    rows = [(column.title.lower(), column.of(answer)) for column in COLUMNS]
    rows.append(("head", answer["head"]))
    again = [{**each, "transaction": True} for each in answer["repeatable"]]
    versions = [*answer["versions"], *again]
    common.one(answer, rows, name, more="\n" + table_text(versions, VERSION_COLUMNS))
    _note_ignored(answer)


def _pairs(given: list[str]) -> dict[str, str]:
    """The variables of the command line.

    Raises:
        InvalidArgumentError: one is no name and value, or given twice.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name or name in found:
            raise InvalidArgumentError(
                f"--set {each!r} is not a name and a value, or is given twice",
                next_step="write --set retention_days=30",
            )
        found[name] = value
    return found


def _note_ignored(answer: Json) -> None:
    for each in answer["ignored"]:
        note(f"not run: {each}")


@app.command(help_epilogue="Example:  tidegate migrations delete app --yes")
def delete(
    name: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Forget a migration source; tenants keep their own version tables.

    Args:
        name: of the source.
    """
    confirm(f"forget migration source {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().migrations.delete(name, dry_run=dry_run)
    common.done(answer, f"migration source {name} {{would}}removed", name)
