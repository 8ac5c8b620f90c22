"""Every behaviour case, each under an id of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance import (
    automation_cases,
    bootstrap_cases,
    clusterdb_cases,
    keyrange_cases,
    scheduling_cases,
    vindex_cases,
)
from conformance.case_files import COMPONENTS, STORY, Case, Row, cases
from conformance.scenarios import scenario
from tidegate.topology import vindexes

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scenarios import Scenario


SYSTEMS: dict[str, Callable[[Scenario], None]] = {
    bootstrap_cases.SYSTEM: bootstrap_cases.run,
    clusterdb_cases.SYSTEM: clusterdb_cases.run,
}
"""Who understands the stories of which system."""


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_case(case: Case) -> None:
    run(case)


def run(case: Case) -> None:
    if case.section == STORY:
        assert case.area in SYSTEMS, f"unknown system {case.area!r}"
        story = scenario(case.row)
        SYSTEMS[case.area](story)
        story.check_all_read()
        return
    if case.area == COMPONENTS:
        scheduling_cases.run(case.row)
        return
    if case.area == automation_cases.AREA:
        assert case.section == automation_cases.SECTION, f"unknown section {case.section!r}"
        automation_cases.run(case.row)
        return
    if case.area == keyrange_cases.AREA:
        sections: dict[str, Callable[[Row], None]] = keyrange_cases.SECTIONS
    elif case.area in vindexes.TYPES:
        if case.section == "properties":
            vindex_cases.check_properties(case.area, case.row)
            return
        if case.section == "map_file":  # the content of a file that a case's json_path may name
            assert isinstance(case.row, dict)
            return
        sections = vindex_cases.SECTIONS
    else:
        pytest.fail(f"unknown area {case.area!r} {case.section}")
    assert case.section in sections, f"unknown section {case.section!r} in {case.area}"
    row = Row(case.row, case.file)
    sections[case.section](row)
    row.check_all_read()
