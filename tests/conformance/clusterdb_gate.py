"""Stories of the gate as a table: each row a node and the others, played on a real database."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from conformance.clusterdb_lab import DECISIONS, Outcome, attempt, check_error, lab
from conformance.scenarios import Facts
from make_cluster import updates, versions
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.gate import Other, Verdict, Versions, decide, gravest
from tidegate.cluster.members import MemberState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.scenarios import Scenario

TABLE = re.compile(r"(?:ensure_schema|wait_upgrade|gate|decide|check)\(\) per row")


def is_table(case: Scenario) -> bool:
    return bool(case.events) and all(
        isinstance(event, str) and TABLE.fullmatch(event) for event in case.events
    )


def play_table(case: Scenario) -> None:
    """Every list of rows in what is given; ``rows`` is answered by ``decision``."""
    case.take_all()
    binary = case.given.get("binary")
    for key in case.given:
        if key == "binary":
            continue
        outcomes = [row_outcome(row, binary) for row in case.given[key]]
        prefix = "" if key == "rows" else f"{key}_"
        wanted = {
            what: case.expect[f"{prefix}{what}"]
            for what in ("decision", "ready", "messages", "errors")
            if f"{prefix}{what}" in case.expect
        }
        own = [row["expect"] for row in case.given[key] if "expect" in row]
        assert wanted or len(own) == len(outcomes), f"nothing is expected of {key}"
        for what, values in wanted.items():
            assert len(values) == len(outcomes), f"{what} of {key}"
            for outcome, value in zip(outcomes, values, strict=True):
                CHECKS[what](outcome, value)
        for outcome, facts in zip(outcomes, own, strict=False):
            for what in facts:
                CHECKS[what](outcome, facts[what])


def check_decision(outcome: Outcome, wanted: str) -> None:
    assert outcome.verdict is DECISIONS[wanted], outcome.message


def check_ready(outcome: Outcome, wanted: bool) -> None:
    assert outcome.is_ready is wanted, outcome.message


def check_message(outcome: Outcome, wanted: str | None) -> None:
    check_error(wanted, outcome.error)


CHECKS: dict[str, Any] = {
    "decision": check_decision,
    "ready": check_ready,
    "messages": check_message,
    "message": check_message,
    "errors": check_message,
    "error": check_message,
}


def row_outcome(row: Facts, binary: list[int] | None) -> Outcome:
    """Play one row: ``nodes`` begins with the node itself, ``self`` and ``others`` name it."""
    row.get("name")
    if "nodes" in row:
        mine, *others = row["nodes"]
        assert binary is None or mine == binary, "the first row is the node itself"
        return opened(versions(mine), [versions(other) for other in others])
    mine, others = row["self"], row["others"]
    for other in others:
        assert type(other) is type(mine), f"{other} is compared with {mine}"
    if isinstance(mine, list) and all(isinstance(name, str) for name in mine):
        return opened(
            Versions(1, Extensions.of(mine)), [Versions(1, Extensions.of(each)) for each in others]
        )
    return of_ledgers(numbers(mine), [numbers(other) for other in others])


def numbers(row: Any) -> list[int]:
    """The versions of a program that keeps several ledgers, in a fixed order."""
    if isinstance(row, Facts):
        return [row[key] for key in sorted(row)]
    return [row] if isinstance(row, int) else list(row)


def of_ledgers(mine: list[int], others: list[list[int]]) -> Outcome:
    """Each ledger is decided by itself, and the gravest answer counts.

    Where only one of two ledgers differs, a whole database with the second one as API extensions
    must answer the same.
    """
    answer = gravest(
        decide(
            Versions(own), [Other(f"m{n}", Versions(other[at])) for n, other in enumerate(others)]
        )
        for at, own in enumerate(mine)
    )
    outcome = Outcome(decision=answer)
    if answer.verdict in {Verdict.BEHIND, Verdict.INCONSISTENT}:
        outcome = Outcome(error=answer.error())
    signs = [{(a > b) - (a < b) for a, b in zip(mine, other, strict=True)} for other in others]
    if len(mine) == 2 and not any({1, -1} <= sign for sign in signs):
        pairs = [(other[0] + 1, other[1]) for other in others]
        whole = opened(versions((mine[0] + 1, mine[1])), [versions(pair) for pair in pairs])
        assert whole.verdict is answer.verdict
    return outcome


def opened(own: Versions, others: Sequence[Versions]) -> Outcome:
    """A node of a real database beside others; a database as old as the oldest program."""
    with lab() as made:
        made.apply(max(1, min(each.schema for each in (own, *others))))
        store = made.store
        for number, each in enumerate((own, *others)):
            store.add(
                name=f"node{number}",
                address=f"10.0.0.{number}",
                schema_version=each.schema,
                extensions=each.extensions,
                binary_version="",
                state=MemberState.ACTIVE,
            )
        cluster = Cluster(own.extensions, NewSchema(updates(own.schema)), database=made.database)
        outcome = attempt(lambda: cluster.ensure_schema("10.0.0.0"))
        row = store.by_name("node0")
        assert (row.schema_version, row.extensions) == (own.schema, own.extensions)
        assert made.recorded[-1] == own.schema or not outcome.is_ready
        return outcome
