"""Runs the whole preflight: every registered check over one set of facts.

Decides which checks there are, the neutral ones and those that the engines bring along, and which
errors a user may accept. Pure: facts in, findings out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.engines import known
from tidegate.errors import InvalidArgumentError
from tidegate.workflow.preflight.check import STREAMING, Verb, in_order, run_checks, verbs_again
from tidegate.workflow.preflight.checks import NEUTRAL

if TYPE_CHECKING:
    from tidegate.workflow.preflight.check import Finding, PreflightCheck
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest

ALL: Final[tuple[PreflightCheck, ...]] = tuple(
    sorted(
        (*NEUTRAL, *known.checks()),
        key=lambda check: check.id,
    )
)
"""Every check, in the order of ids."""

CHECKS: Final[dict[str, PreflightCheck]] = {check.id: check for check in ALL}
"""Every check by its id, in the order of ids."""

WAIVABLE: Final = frozenset(check.id for check in ALL if check.waivable)
"""Ids of the checks whose errors a user may accept as warnings."""


def run_preflight(request: PreflightRequest, facts: Facts) -> list[Finding]:
    """Every finding of every check: errors first, then warnings and infos, each by id.

    Raises:
        InvalidArgumentError: the request accepts an id that does not exist or cannot be accepted.
    """
    refuse_unknown(request.accepted, WAIVABLE)
    return run_checks(ALL, request, facts)


def refuse_unknown(accepted: frozenset[str], waivable: frozenset[str]) -> None:
    """Refuse ids that cannot be accepted, of checks that do not exist for instance.

    Raises:
        InvalidArgumentError: naming them, and those that can.
    """
    refused = sorted(accepted - waivable)
    if refused:
        raise InvalidArgumentError(
            f"findings of {', '.join(refused)} cannot be accepted",
            next_step=f"only these can: {', '.join(sorted(waivable))}",
            ids=refused,
        )


def run_again(request: PreflightRequest, facts: Facts, verb: Verb) -> list[Finding]:
    """Every finding of the checks that a verb of a running workflow looks at again.

    Where rows go on in either direction, the tables of the target are looked at as those of a
    source: rows may come back from there.
    """
    chosen = [check for check in ALL if verb in verbs_again(check)]
    found = run_checks(chosen, request, facts)
    if verb in STREAMING:
        both = [check for check in chosen if check.each_side]
        known = {(finding.id, finding.object, finding.message) for finding in found}
        found += [
            finding
            for finding in run_checks(both, request, facts.exchanged())
            if (finding.id, finding.object, finding.message) not in known
        ]
    return in_order(found)
