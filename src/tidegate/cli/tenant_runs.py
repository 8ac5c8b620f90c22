"""The verbs of `tidegate tenant` about runs: look, follow, pause, resume, retry, skip, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tidegate.cli.common import DEFAULTS, Common, Wait, Yes, confirm, names, seconds
from tidegate.cli.output import Json, note
from tidegate.cli.tenant_view import ITEM_COLUMNS, RUN_COLUMNS, emit, judge

if TYPE_CHECKING:
    from cyclopts import App

    from tidegate.client.tenants import Tenants

Source = Annotated[
    str | None,
    Parameter(
        name=["--from", "-f"],
        help="Migration source: its name, or sql:/folder and the like; not needed if there is one.",
    ),
]


def end(
    common: Common, verbs: Tenants, run: Json, *, wait: bool, timeout: str | None = None
) -> None:
    """Follow a run if asked to, print it, and end with its exit status."""
    if not wait:
        emit(common, run)
        return
    from tidegate.cli import follow  # noqa: PLC0415 - only when it is used

    limit = None if timeout is None else seconds(timeout)
    run = follow.until_upgraded(verbs, run["id"], timeout_s=limit)
    emit(common, run)
    judge(run)


def runs(*, limit: int = 20, common: Common = DEFAULTS) -> None:
    """Show the newest runs.

    Args:
        limit: so many.
    """
    common.items(common.client().tenant.runs(limit), RUN_COLUMNS, lambda item: str(item["id"]))


def run(
    number: str = "last",
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", help="Show each tenant.")] = False,
    wait: Wait = False,
    timeout: str | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Show a run: waves, failures, the slowest tenants.

    Args:
        number: of the run, or last.
        timeout: how long --wait follows, such as 10m.
    """
    verbs = common.client().tenant
    if every:
        common.items(verbs.run_tenants(number), ITEM_COLUMNS, "tenant")
        return
    end(common, verbs, verbs.run(number), wait=wait, timeout=timeout)


def pause(number: str = "last", /, *, common: Common = DEFAULTS) -> None:
    """Begin with no more tenants of a run; those being worked on end as they do.

    Args:
        number: of the run, or last.
    """
    emit(common, common.client().tenant.pause(number))


def resume(
    number: str = "last",
    /,
    *,
    wait: Wait = False,
    timeout: str | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Go on with a paused run, or with a stopped one in spite of what has failed.

    Args:
        number: of the run, or last.
        timeout: how long --wait follows, such as 10m.
    """
    verbs = common.client().tenant
    end(common, verbs, verbs.resume(number), wait=wait, timeout=timeout)


def retry(
    number: str = "last",
    /,
    *,
    tenants: str | None = None,
    wait: Wait = False,
    timeout: str | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Try failed tenants of a run again, and go on with it.

    Args:
        number: of the run, or last.
        tenants: only these, with commas.
        timeout: how long --wait follows, such as 10m.
    """
    verbs = common.client().tenant
    end(common, verbs, verbs.retry(number, names(tenants)), wait=wait, timeout=timeout)


def skip(
    tenants: str,
    /,
    *,
    number: Annotated[str, Parameter(name="--run", help="Number of the run, or last.")] = "last",
    common: Common = DEFAULTS,
) -> None:
    """Leave tenants out of a run: such as wait or have failed.

    Args:
        tenants: their names, with commas.
    """
    answer = common.client().tenant.skip(names(tenants), number)
    emit(common, answer)
    if answer["state"] == "stopped":
        note(f"the run is stopped; tidegate tenant resume {answer['id']} goes on")


def cancel(number: str = "last", /, *, yes: Yes = False, common: Common = DEFAULTS) -> None:
    """End a run: what was upgraded stays, the other tenants stay as they are.

    Args:
        number: of the run, or last.
    """
    confirm(f"cancel run {number}", number, yes=yes, dry_run=False)
    emit(common, common.client().tenant.cancel(number))


def add_to(app: App) -> None:
    """Make these the verbs of a noun."""
    for verb, example in (
        (runs, "runs"),
        (run, "run 7 --wait"),
        (pause, "pause 7"),
        (resume, "resume 7 --wait"),
        (retry, "retry 7 --wait"),
        (skip, "skip acme,globex --run 7"),
        (cancel, "cancel 7 --yes"),
    ):
        app.command(verb, help_epilogue=f"Example:  tidegate tenant {example}")
