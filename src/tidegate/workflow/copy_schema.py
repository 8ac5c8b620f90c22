"""Copies the schema of one shard to another: tables, what they need, and the views over them.

Decides the order of one copy: read both sides and compare them; do nothing when they are equal;
refuse by name what a copy cannot fix (an object that both have and that differs, findings of the
preflight, whatever the server refuses in a trial); make what is missing in one transaction, and
compare again before it is committed. A copy that fails leaves nothing behind; a dry run does all of
it and rolls back.

Rows are not copied, and nothing of Tidegate's is made at either side. How the two sides are read
and written is the engine's business; what differs is decided in :mod:`tidegate.engines.schemas`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import MismatchError, SchemaDiffersError
from tidegate.workflow import trial
from tidegate.workflow.preflight.check import refuse_errors, run_checks
from tidegate.workflow.preflight.gather import look_at_schemas, schema_facts
from tidegate.workflow.preflight.registry import ALL, refuse_unknown
from tidegate.workflow.sessions import schema_pair
from tidegate.workflow.work import Locks, keyspace_lease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engines.schemas import SchemaDiff
    from tidegate.workflow.preflight.check import Finding
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest
    from tidegate.workflow.requests import SchemaRequest
    from tidegate.workflow.work import Cluster

CHECKS: Final = tuple(check for check in ALL if check.schema)
"""What of the preflight concerns a schema without rows."""

BODY_STAYS: Final = "TG-PF-241"
"""A trigger or function reaches for what is not copied; here the advice is another."""

WAIVABLE: Final = frozenset(check.id for check in CHECKS if check.waivable)

NAMED_MAX: Final = 3
"""Differences in a message; its details have all."""


@dataclass(frozen=True)
class SchemaReport:
    """What a copy or a comparison found and did.

    Attributes:
        source, target: ``keyspace/shard``.
        diff: as it was before anything was made.
        changes: settings and grants around the tables that the target lacks.
        statements: what was made, or, by a dry run, tried and taken back.
        verified: both sides were compared again, and equal.
        findings: of the preflight.
    """

    summary: str
    source: str
    target: str
    diff: SchemaDiff
    changes: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    verified: bool = False
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False

    @property
    def is_equal(self) -> bool:
        """There was nothing to copy."""
        return self.diff.is_equal and not self.changes

    def to_json(self) -> dict[str, Any]:
        """As the API answers."""
        return {
            "summary": self.summary,
            "source": self.source,
            "target": self.target,
            "equal": self.is_equal,
            **self.diff.to_json(),
            "changes": list(self.changes),
            "statements": list(self.statements),
            "verified": self.verified,
            "findings": [finding.to_json() for finding in self.findings],
            "dry_run": self.dry_run,
        }


def compare_schemas(cluster: Cluster, request: SchemaRequest) -> SchemaReport:
    """How the schema of one shard differs from another's; changes nothing.

    Raises:
        NotFoundError: a shard, tablet or table does not exist.
        ConnectError: a server cannot be reached.
    """
    with schema_pair(cluster.topology.read(), request) as pair:
        seen = look_at_schemas(pair, request)
    return _report(request, seen.diff, seen.lacking)


def copy_schema(cluster: Cluster, request: SchemaRequest, *, dry_run: bool = False) -> SchemaReport:
    """Make at the target what it lacks of the source's schema; nothing when it lacks nothing.

    Raises:
        NotFoundError: a shard, tablet or table does not exist.
        SchemaDiffersError: the target has objects of other definitions.
        PreflightError: a finding refuses, for instance what the target's server would not make.
        FailedPreconditionError: a foreign key leads to a table that the target would not have.
        MismatchError: after the copy the schemas differed; it was rolled back.
        ConflictError: a verb of a workflow holds the target keyspace.
        ConnectError: a server cannot be reached.
    """
    refuse_unknown(frozenset(request.allow), WAIVABLE)
    snapshot = cluster.topology.read()
    leases = () if dry_run else (keyspace_lease(request.target_keyspace),)
    with Locks(cluster, *leases) as locks, schema_pair(snapshot, request) as pair:
        seen = look_at_schemas(pair, request)
        report = replace(_report(request, seen.diff, seen.lacking), dry_run=dry_run)
        if report.is_equal:
            return replace(report, summary=f"{report.summary}; nothing to copy", verified=True)
        _refuse_different(request, seen.diff)
        plan = pair.planned(seen)
        wanted = request.as_preflight()
        facts, plan = trial.tried_schema(
            wanted,
            schema_facts(snapshot, pair, request, seen),
            plan,
            lambda schema: {request.target_shard: pair.rehearse(schema)},
        )
        findings = _findings(wanted, facts)
        refuse_errors(findings, f"the schema of {request.source}", cannot="cannot be copied")
        locks.confirm()

        def verify() -> None:
            if request.verify:
                again = pair.look_again(seen, owners=not facts.handed_over)
                _refuse_unequal(request, again)

        statements = pair.make(plan, seen, verify, keep=not dry_run)
    would = "would be copied" if dry_run else "copied"
    return replace(
        report,
        summary=f"schema of {request.source} {would} to {request.target}",
        statements=tuple(statements),
        verified=request.verify,
        findings=tuple(findings),
    )


def _report(request: SchemaRequest, diff: SchemaDiff, lacking: Sequence[str]) -> SchemaReport:
    same = f"the schemas of {request.source} and {request.target} are equal"
    other = f"the schema of {request.target} differs from {request.source}"
    report = SchemaReport(same, request.source, request.target, diff, tuple(lacking))
    return report if report.is_equal else replace(report, summary=other)


def _refuse_different(request: SchemaRequest, diff: SchemaDiff) -> None:
    if not diff.different:
        return
    shown = "; ".join(map(str, diff.different[:NAMED_MAX]))
    more = len(diff.different) - NAMED_MAX
    raise SchemaDiffersError(
        f"{request.target} has objects that are defined otherwise at {request.source}: {shown}"
        + (f" (and {more} more)" if more > 0 else ""),
        next_step="bring the definitions together, or drop them at the target, or leave the tables"
        " out with --exclude-tables; nothing was changed",
        **diff.to_json(),
    )


def _refuse_unequal(request: SchemaRequest, again: SchemaDiff) -> None:
    if again.is_equal:
        return
    raise MismatchError(
        f"after the copy {request.target} differed from {request.source}:"
        f" {'; '.join(again.lines()[:NAMED_MAX])}",
        next_step="see what altered it meanwhile, then repeat the command; the copy was rolled"
        " back",
        **again.to_json(),
    )


def _findings(wanted: PreflightRequest, facts: Facts) -> list[Finding]:
    """What the checks say; of what to do only what a copy of a schema offers."""
    step = (
        "copy it too, create it at the target first, or accept that it fails there"
        f" (--allow {BODY_STAYS})"
    )
    return [
        replace(finding, next_step=step) if finding.id == BODY_STAYS else finding
        for finding in run_checks(CHECKS, wanted, facts)
    ]
