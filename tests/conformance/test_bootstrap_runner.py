"""The plays of the bootstrap stories: what they do not understand fails."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from conformance import bootstrap_cases, case_files
from conformance.case_files import Case
from conformance.test_cases import run

if TYPE_CHECKING:
    from collections.abc import Callable


def story(name: str, number: str) -> dict[str, Any]:
    found = json.loads((case_files.HERE / f"{name}.json").read_text(encoding="utf-8"))
    case: dict[str, Any]
    (case,) = [each for each in found if each["id"] == number]
    return copy.deepcopy(case)


STORIES = [
    *(("bootstrap", f"B{n:02}") for n in (1, 2, 4, 6, 9, 11, 14, 15, 17, 18, 20, 21, 22)),
    *(("bootstrap", f"BX0{n}") for n in (1, 2, 7, 8)),
    *(("bootstrap-own", f"BT{n:02}") for n in (1, 3, 4, 5, 6, 10)),
]


def play(case: dict[str, Any]) -> None:
    run(Case(case["id"], bootstrap_cases.SYSTEM, case_files.STORY, case, {}))


def with_unknown_expectation(case: dict[str, Any]) -> None:
    first = next((v for v in case["expect"].values() if isinstance(v, dict)), case["expect"])
    first["no_such_check"] = 1


def with_unknown_fact(case: dict[str, Any]) -> None:
    case["given"]["no_such_fact"] = 1


def with_unknown_event(case: dict[str, Any]) -> None:
    case["events"] = [*case["events"], "no such event"]


@pytest.mark.parametrize(("name", "number"), STORIES)
@pytest.mark.parametrize("spoil", [with_unknown_expectation, with_unknown_fact, with_unknown_event])
def test_what_a_play_does_not_know_fails(
    name: str, number: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    case = story(name, number)
    spoil(case)
    with pytest.raises((AssertionError, KeyError, TypeError, pytest.fail.Exception)):
        play(case)


@pytest.mark.parametrize(
    ("name", "number", "key", "value"),
    [
        ("bootstrap", "B01", "init_runs", 1),
        ("bootstrap", "B03", "lock_requests", 2),
        ("bootstrap", "B06", "init_runs", 2),
        ("bootstrap", "B11", "writes", 1),
        ("bootstrap", "B14", "handler_calls", 0),
        ("bootstrap", "B17", "passes", [3, 1, 1, 1, 2]),
        ("bootstrap", "B22", "upgrade_steps", 1),
        ("bootstrap-own", "BT04", "run", [True] * 8),
        ("bootstrap-own", "BT09", "handler_effects", 41),
        ("bootstrap-own", "BT10", "version_ready", True),
    ],
)
def test_a_wrong_expectation_fails(name: str, number: str, key: str, value: Any) -> None:
    case = story(name, number)
    assert case["expect"][key] != value
    case["expect"][key] = value
    with pytest.raises(AssertionError):
        play(case)
