"""Every expectation of the stories of "cluster-db" is looked at: changed, each fails its case."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from conformance import clusterdb_cases
from conformance.case_files import HERE
from conformance.scenarios import deviations, scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

STORIES = [
    case
    for path in sorted(HERE.glob("clusterdb*.json"))
    for case in json.loads(path.read_text(encoding="utf-8"))
]

#: Expectations that hold for more than one value, and why.
WIDE = {
    ("CX06", "A_B_ready_within_s"): "an upper bound",
    ("C14", "errors"): "the words say of which kind a refusal is; ours are others",
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from leaves(each, (*path, number))
    else:
        yield path, value


def changed(value: Any) -> Any:
    match value:
        case None:
            return "error: nonsense"
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return ["nonsense"]
    return f"{value} nonsense"


def fails(case: dict[str, Any]) -> bool:
    """Whether a story fails, in whichever way."""
    story = scenario(case)
    try:
        clusterdb_cases.run(story)
        story.check_all_read()
    except Exception:  # noqa: BLE001 - every exception fails a case
        return True
    return False


def with_another(case: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    other = copy.deepcopy(case)
    place = other["expect"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = changed(value)
    return other


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in STORIES])
def test_a_changed_expectation_fails_its_case(case: dict[str, Any]) -> None:
    ours = {entry.key for entry in deviations() if entry.case == case["id"]}
    for path, value in leaves(case["expect"]):
        dotted = ".".join(map(str, path))
        is_ours = any(dotted == key or dotted.startswith(f"{key}.") for key in ours)
        if not path or is_ours or (case["id"], path[0]) in WIDE:
            continue
        assert fails(with_another(case, path, value)), f"{dotted}: {value} can be anything"


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in STORIES])
def test_an_event_or_a_fact_that_is_not_known_fails_its_case(case: dict[str, Any]) -> None:
    assert fails({**case, "given": {**case["given"], "no such fact": 1}})
    assert fails({**case, "expect": {**case["expect"], "no such check": 1}})
    assert fails({**case, "events": [*case["events"], "no such event"]})
