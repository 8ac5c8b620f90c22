"""The plays of the scheduler's cases: what they do not understand, or what is wrong, fails."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from conformance import case_files, scheduling_cases

FILE = json.loads((case_files.HERE / "scheduler.json").read_text(encoding="utf-8"))
CASES = [*FILE["cases"], *FILE["proposed_cases"]]
UNKNOWN = (AssertionError, AttributeError, KeyError)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_an_unknown_event_check_or_field_fails(case: dict[str, Any]) -> None:
    for spoilt in spoil(case):
        with pytest.raises(UNKNOWN):
            scheduling_cases.run(spoilt)


def spoil(case: dict[str, Any]) -> list[dict[str, Any]]:
    event, field, check, fact = (copy.deepcopy(case) for _ in range(4))
    event["events"].append({"op": "no_such_event"})
    field["events"][0]["no_such_field"] = 1
    check["expect"][0]["no_such_check"] = 1
    fact["given"]["no_such_fact"] = 1
    return [event, field, check, fact]


@pytest.mark.parametrize(
    ("number", "index", "key", "value"),
    [
        ("RS-01", 1, "state", "Commit"),
        ("RS-02", 0, "messages", []),
        ("RM-01", 1, "accepted", [True]),
        ("RM-03", 0, "checkpoint", 10),
        ("CM-01", 1, "heartbeats_to", ["2"]),
        ("SC-01", 0, "add", [1]),
        ("SC-04", 3, "moves", 0),
        ("CO-02", 1, "checkpoint", 4),
        ("CO-04", 1, "returns", 1),
        ("AG-01", 0, "responses", [{"kind": "add"}]),
        ("KS-01", 0, "spans", ["a", "b", "c"]),
        ("KS-02", 5, "region_counts", [2, 1, 2]),
    ],
)
def test_a_wrong_expectation_fails(number: str, index: int, key: str, value: Any) -> None:
    (case,) = [copy.deepcopy(each) for each in CASES if each["id"] == number]
    case["expect"][index][key] = value
    with pytest.raises(AssertionError):
        scheduling_cases.run(case)
