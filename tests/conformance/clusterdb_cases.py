"""Checks of the system "cluster-db": who understands which story.

A story is told by its words: what is given and what happens say which part plays it, not its id.
One that no part understands, or more than one, fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import (
    clusterdb_gate,
    clusterdb_members,
    clusterdb_names,
    clusterdb_opening,
    clusterdb_rolling,
    clusterdb_schema,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scenarios import Scenario

    type Understands = Callable[[Scenario], bool]
    type Plays = Callable[[Scenario], None]

SYSTEM = "cluster-db"

PARTS: tuple[tuple[Understands, Plays], ...] = (
    (clusterdb_gate.is_table, clusterdb_gate.play_table),
    (clusterdb_names.is_naming, clusterdb_names.play_naming),
    (clusterdb_schema.is_failing, clusterdb_schema.play_failing),
    (clusterdb_schema.is_stopping, clusterdb_schema.play_stopping),
    (clusterdb_schema.is_dump, clusterdb_schema.play_dump),
    (clusterdb_schema.is_patch, clusterdb_schema.play_patch),
    (clusterdb_schema.is_copy, clusterdb_schema.play_copy),
    (clusterdb_schema.is_check, clusterdb_schema.play_check),
    (clusterdb_schema.is_ledger, clusterdb_schema.play_ledger),
    (clusterdb_members.is_beginning, clusterdb_members.play_beginning),
    (clusterdb_members.is_accepting, clusterdb_members.play_accepting),
    (clusterdb_members.is_pending, clusterdb_members.play_pending),
    (clusterdb_members.is_list, clusterdb_members.play_list),
    (clusterdb_members.is_going, clusterdb_members.play_going),
    (clusterdb_members.is_beating, clusterdb_members.play_beating),
    (clusterdb_rolling.is_rolling, clusterdb_rolling.play_rolling),
    (clusterdb_opening.is_opening, clusterdb_opening.play_opening),
)


def run(case: Scenario) -> None:
    """Play one story."""
    play = next((play for understands, play in PARTS if understands(case)), None)
    assert play is not None, f"nobody understands the events of {case.id}: {case.events}"
    play(case)
