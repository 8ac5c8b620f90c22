"""What a finding is, and how a preflight runs all checks and reports all findings.

Decides the form of findings, their order, and when they refuse. It must not stop at the first
finding: whoever fixes a database wants the whole list. What a check is, neutral or an engine's, is
said in :mod:`tidegate.engines.checks`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tidegate.engines.checks import Severity
from tidegate.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.checks import Check
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest

    type PreflightCheck = Check[PreflightRequest, Facts]

#: Where the reference of all checks is published; a finding's id is an anchor in it.
REFERENCE = "docs/reference/preflight.md"


class Verb(StrEnum):
    """What is done to a workflow that runs, after a second look at the catalogue."""

    SWITCH = "switch"
    REVERSE = "reverse"
    JOIN = "join"  # reads go to where writes are, over no stream
    START = "start"
    COMPLETE = "complete"
    CANCEL = "cancel"


#: Verbs after which rows go on from one side to the other.
STREAMING = frozenset({Verb.SWITCH, Verb.REVERSE, Verb.JOIN, Verb.START})

_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True)
class Finding:
    """One reason, with everything a person or a program needs to deal with it."""

    id: str
    severity: Severity
    object: str
    message: str
    next_step: str
    cause: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As errors, plans and API answers carry it."""
        return {**asdict(self), "docs": f"{REFERENCE}#{self.id.lower()}"}

    def __str__(self) -> str:
        return f"{self.id} {self.severity} {self.object}: {self.message}"


def verbs_again(check: PreflightCheck) -> frozenset[str]:
    """The verbs of a running workflow that look at a check again."""
    return check.again | STREAMING if check.streaming else check.again


def run_checks(
    checks: Iterable[PreflightCheck], request: PreflightRequest, facts: Facts
) -> list[Finding]:
    """All findings of all checks: errors first, then by id and object."""
    findings = [
        Finding(
            id=check.id,
            severity=_severity(check, request),
            object=problem.object,
            message=problem.message,
            next_step=problem.next_step or check.remedy,
            cause=check.cause,
            details=problem.details,
        )
        for check in checks
        for problem in check.find(request, facts)
    ]
    return in_order(findings)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings as they are reported."""
    return sorted(findings, key=lambda f: (_RANK[f.severity], f.id, f.object, f.message))


def _severity(check: PreflightCheck, request: PreflightRequest) -> Severity:
    waived = check.waivable and check.id in request.accepted
    return Severity.WARNING if waived and check.severity is Severity.ERROR else check.severity


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that refuse."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def refuse_errors(findings: Iterable[Finding], what: str, *, cannot: str = "cannot start") -> None:
    """Let ``what`` go on unless a finding refuses; ``cannot`` says what is refused.

    Raises:
        PreflightError: with all findings, warnings included, in ``details["findings"]``.
    """
    all_findings = list(findings)
    refusing = errors(all_findings)
    if not refusing:
        return
    first = refusing[0]
    more = f" (and {len(refusing) - 1} more)" if len(refusing) > 1 else ""
    raise PreflightError(
        f"{what} {cannot}".strip() + f": {first.id} {first.object}: {first.message}{more}",
        next_step=first.next_step if not more else "deal with every finding, then run it again",
        findings=[finding.to_json() for finding in all_findings],
    )
