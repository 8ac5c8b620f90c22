"""The verbs of `tidegate tenant` that look at records and schemas, or change records only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, names, seconds
from tidegate.cli.output import Column, Json, note
from tidegate.cli.tenant_runs import Source  # noqa: TC001 - read by cyclopts
from tidegate.cli.tenant_view import TenantsFailedError
from tidegate.errors import MismatchError

if TYPE_CHECKING:
    from cyclopts import App


_NAMED = "which, with commas; * and ? stand for any characters and for one."
Only = Annotated[str | None, Parameter(help=f"Only these, {_NAMED.removeprefix('which, ')}")]
Without = Annotated[str | None, Parameter(help="Leave these out, likewise.")]
Keyspace = Annotated[str, Parameter(help="Only tenants of this one.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Which:
    """What the verbs that change records have in common, besides the names of tenants."""

    source: Source = None
    without: Without = None
    keyspace: Keyspace = ""
    lock_timeout: Annotated[
        str, Parameter(help="How long the lock of one tenant is waited for.")
    ] = "5s"

    def given(self) -> Json:
        """As the client takes it."""
        return {
            "source": self.source,
            "without": names(self.without),
            "keyspace": self.keyspace,
            "lock_timeout_s": seconds(self.lock_timeout),
        }


ALL = Which()


def _changed(item: Json) -> str:
    parts = [
        (item["added"], "added"),
        (item["rewritten"], "rewritten"),
        (item["removed"], "removed"),
    ]
    return "; ".join(f"{what} {', '.join(versions)}" for versions, what in parts if versions) or "-"


COLUMNS = (
    Column("TENANT", "tenant"),
    Column("VERSION", "version"),
    Column("RECORD", _changed),
    Column("FAILURE", "failure"),
)


VERIFY_COLUMNS = (
    Column("TENANT", "tenant"),
    Column("VERSIONS", lambda item: ", ".join(map("=".join, item["versions"].items()))),
    Column("DIFFERENCES", lambda item: str(len(item["differences"]))),
    Column("FAILURE", "failure"),
)


def baseline(
    version: str,
    /,
    *,
    tenants: Only = None,
    which: Which = ALL,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Let tenants without a version start at one, without running anything.

    For tenants that were made before Tidegate upgraded them. One that has a version of the source
    already is left as it is, and the exit status is 9.

    Args:
        version: head, or a version of the source.
    """
    answer = common.client().tenant.baseline(
        version, tenants=names(tenants), dry_run=dry_run, **which.given()
    )
    _end(common, answer)


def stamp(
    version: str,
    /,
    *,
    tenants: Annotated[str, Parameter(help=_NAMED)],
    which: Which = ALL,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Record a version in tenants, whatever they had; nothing is run.

    Args:
        version: head, or a version of the source.
    """
    confirm(f"record version {version} in {tenants}", version, yes=yes, dry_run=dry_run)
    answer = common.client().tenant.stamp(
        version, tenants=names(tenants), dry_run=dry_run, **which.given()
    )
    _end(common, answer)


def repair(
    *,
    tenants: Only = None,
    which: Which = ALL,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Record the files as they are now, after an edit; nothing is run.

    Tenants keep their versions. What an edit changed is not run in tenants that have the file: put
    it into a new one if they need it. A file that was begun outside a transaction and did not end
    counts as not begun.
    """
    confirm("take the files as they are for what tenants have", "repair", yes=yes, dry_run=dry_run)
    answer = common.client().tenant.repair(tenants=names(tenants), dry_run=dry_run, **which.given())
    _end(common, answer)
    for item in answer["items"]:
        if item["unknown"]:
            note(
                f"{item['tenant']} has {', '.join(item['unknown'])}, which the source does not"
                f" know; tidegate tenant stamp VERSION --tenants {item['tenant']} removes it"
            )


def verify(
    *,
    tenants: Only = None,
    without: Without = None,
    keyspace: Keyspace = "",
    statement_timeout: str = "10m",
    common: Common = DEFAULTS,
) -> None:
    """Compare tenants with what their migration sources make, object by object.

    What each tenant should have at the versions that are stored for it is built in a scratch
    database on its server, which is dropped again; the tenants are only read. The exit status is 5
    when something differs, and 9 when tenants could not be verified.

    Args:
        statement_timeout: how long one statement may take where the expected schema is built.
    """
    answer = common.client().tenant.verify(
        tenants=names(tenants),
        without=names(without),
        keyspace=keyspace,
        statement_timeout_s=seconds(statement_timeout),
    )
    common.items(answer, VERIFY_COLUMNS, "tenant")
    if common.output in {"table", "wide"}:
        for item in answer["items"]:
            for each in item["differences"]:
                note(f"{item['tenant']}: {each['object']} is {each['kind']}{_both(each)}")
    if answer["failed"]:
        raise TenantsFailedError(
            f"{answer['failed']} of {len(answer['items'])} tenants could not be verified",
            next_step="look at the column FAILURE",
        )
    if answer["different"]:
        raise MismatchError(
            f"{answer['different']} of {len(answer['items'])} tenants differ from what their"
            " sources make",
            next_step="find out who changed them; then add a migration, or undo the change",
        )


def _both(difference: Json) -> str:
    if difference["kind"] != "different":
        return ""
    return f": expected {difference['expected']!r}, found {difference['found']!r}"


def _end(common: Common, answer: Json) -> None:
    """Print what became of each tenant; failures are seen in the exit status.

    Raises:
        TenantsFailedError: some were left as they were.
    """
    common.items(answer, COLUMNS, "tenant")
    if common.output in {"table", "wide"}:
        would = "would be " if answer.get("dry_run") else ""
        note(f"{answer['changed']} {would}changed, {answer['failed']} failed")
    if answer["failed"]:
        raise TenantsFailedError(
            f"{answer['failed']} of {len(answer['items'])} tenants were left as they were",
            next_step="tidegate tenant list",
        )


def add_to(app: App) -> None:
    """Make these the verbs of a noun."""
    verbs: tuple[tuple[Any, str], ...] = (
        (baseline, "baseline 003 --from app"),
        (stamp, "stamp 004 --tenants acme --yes"),
        (repair, "repair --from app --dry-run"),
        (verify, "verify --tenants 'a*' -o json"),
    )
    for verb, example in verbs:
        app.command(verb, help_epilogue=f"Example:  tidegate tenant {example}")
