"""A preflight reports everything at once, in one order, and refuses only for errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from make_facts import facts, request, table
from tidegate.engines.checks import Severity
from tidegate.engines.postgres import checks as postgres_checks
from tidegate.engines.postgres.publication import identity_problem
from tidegate.errors import ExitStatus, InvalidArgumentError, PreflightError
from tidegate.topology.names import TableName
from tidegate.workflow.preflight import checks
from tidegate.workflow.preflight.check import errors, refuse_errors
from tidegate.workflow.preflight.facts import selected_tables
from tidegate.workflow.preflight.reference import render_reference
from tidegate.workflow.preflight.registry import CHECKS, WAIVABLE, run_preflight

ROOT = Path(__file__).resolve().parents[2]


def test_ids_are_unique_and_in_order() -> None:
    ids = [check.id for check in checks.NEUTRAL] + [check.id for check in postgres_checks.CHECKS]
    assert len(ids) > 90
    assert sorted(ids) == list(CHECKS)
    for check in CHECKS.values():
        assert re.fullmatch(r"TG-PF-[1-5]\d\d", check.id)
        assert check.cause.endswith(".")
        assert not check.remedy.endswith(".")


def test_the_reference_page_is_the_one_the_checks_render() -> None:
    page = ROOT / "docs" / "reference" / "preflight.md"
    assert page.read_text(encoding="utf-8") == render_reference(), (
        "run: python -m tidegate.workflow.preflight.reference > docs/reference/preflight.md"
    )


def test_everything_is_found_at_once_errors_first() -> None:
    made = table(constraints=(), rules=("r",), row_security=True, owner="tidegate")
    found = run_preflight(request(workflow="w"), facts(made))
    assert [finding.id for finding in found] == [
        "TG-PF-201",
        "TG-PF-213",
        "TG-PF-216",
        "TG-PF-310",
    ]
    assert [finding.id for finding in errors(found)] == ["TG-PF-201", "TG-PF-213", "TG-PF-216"]


def test_errors_refuse_with_all_findings_in_the_details() -> None:
    found = run_preflight(request(), facts(table(rules=("r",), row_security=True)))
    with pytest.raises(PreflightError) as caught:
        refuse_errors(found, "workflow cust")
    assert caught.value.exit_status is ExitStatus.PREFLIGHT
    assert caught.value.message == (
        "workflow cust cannot start: TG-PF-213 commerce/0 t: row security is enabled on t"
        " (and 1 more)"
    )
    listed = json.loads(json.dumps(caught.value.details["findings"]))
    assert [item["id"] for item in listed] == ["TG-PF-213", "TG-PF-216"]
    assert listed[0]["docs"] == "docs/reference/preflight.md#tg-pf-213"
    assert set(listed[0]) == {
        "id",
        "severity",
        "object",
        "message",
        "next_step",
        "cause",
        "details",
        "docs",
    }


def test_warnings_and_infos_do_not_refuse() -> None:
    found = run_preflight(request(), facts(table(owner="tidegate")))
    assert {finding.severity for finding in found} == {Severity.INFO}
    refuse_errors(found, "workflow cust")


def test_only_waivable_findings_can_be_accepted() -> None:
    for bad in ("TG-PF-201", "TG-PF-999"):
        with pytest.raises(InvalidArgumentError, match=bad) as caught:
            run_preflight(request(accepted=frozenset({bad})), facts(table()))
        assert all(check_id in caught.value.next_step for check_id in WAIVABLE)


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": ()},
        {"replica_identity": "nothing"},
        {"replica_identity": "index"},
        {"replica_identity": "index", "constraints": ()},
        {"persistence": "u"},
        {"kind": "p"},
        {"kind": "v"},
    ],
    ids=str,
)
def test_no_table_that_cannot_be_published_passes(changes: dict[str, Any]) -> None:
    made = table(**changes)
    assert identity_problem(made, 18)
    assert errors(run_preflight(request(), facts(made)))


def test_tables_are_selected_by_name_or_all_and_unknown_ones_are_kept_apart() -> None:
    a, b, c = (TableName("public", name) for name in "abc")
    assert selected_tables(request(), [b, a]) == ((a, b), ())
    assert selected_tables(request(exclude_tables=(b, c)), [b, a]) == ((a,), (c,))
    assert selected_tables(request(tables=(a, c)), [b, a]) == ((a,), (c,))
