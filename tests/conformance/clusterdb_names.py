"""Stories of the names of API extensions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from conformance.clusterdb_lab import attempt
from tidegate.cluster.extensions import Extensions, check_internal_name, check_name

if TYPE_CHECKING:
    from conformance.scenarios import Scenario


def is_naming(case: Scenario) -> bool:
    return "external" in case.given or "internal" in case.given


def play_naming(case: Scenario) -> None:
    for number in range(len(case.events)):
        match case.take(number):
            case "validate each":
                for kind, check in (("external", check_name), ("internal", check_internal_name)):
                    names, wanted = case.given[kind], case.expect[f"{kind}_ok"]
                    for name, is_good in zip(names, wanted, strict=True):
                        error = attempt(check, name).error
                        assert (error is None) is is_good, name
            case str(event) if match := re.fullmatch(r"register (\d+) names", event):
                names = [f"extension_{at}" for at in range(int(match[1]))]
                assert Extensions().register(*names).count == case.expect["registered"]
            case "compare lists of different length":
                assert case.expect["different_length"] == "error"
                one, other = Extensions.of(["a"]), Extensions.of(["a", "b"])
                assert attempt(one.check_same, other).error is not None
                assert attempt(other.check_same, one).error is not None
            case event:
                raise AssertionError(f"an unknown event: {event}")
