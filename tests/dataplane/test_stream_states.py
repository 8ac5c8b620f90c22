"""The table of a stream's states, as it is: without servers."""

from __future__ import annotations

import re
from importlib import resources

from tidegate.dataplane.model import FROZEN, StreamState
from tidegate.dataplane.stream_states import (
    ACTIVE,
    MEANINGS,
    STARTED_COPYING,
    STARTED_RUNNING,
    SWITCHED,
    TRANSITIONS,
)

NEVER_STORED = {StreamState.UNKNOWN, StreamState.LAGGING}
STORED = set(StreamState) - NEVER_STORED


def test_every_state_has_a_meaning_and_the_stored_ones_are_those_of_the_schema() -> None:
    assert set(MEANINGS) == set(StreamState)
    ddl = resources.files("tidegate.engines.postgres.sidecar").joinpath("schema.sql").read_text()
    check = re.search(r"CHECK \(state IN \(([^)]*)\)\)", ddl)
    assert check is not None
    assert set(re.findall(r"'(\w+)'", check[1])) == STORED | {StreamState.UNKNOWN}


def test_every_stored_state_is_reached_and_left() -> None:
    assert {t.after for t in TRANSITIONS} | {StreamState.INIT} == STORED
    assert {b for t in TRANSITIONS for b in t.before} == STORED
    assert len(set(TRANSITIONS)) == len(TRANSITIONS)


def test_whatever_a_worker_works_on_can_be_stopped_and_can_fail() -> None:
    for state in ACTIVE:
        ends = {t.after for t in TRANSITIONS if state in t.before}
        assert {StreamState.STOPPED, StreamState.ERROR} <= ends


def test_only_a_start_makes_an_idle_stream_active() -> None:
    for each in TRANSITIONS:
        if each.after in ACTIVE and not set(each.before) <= set(ACTIVE):
            assert each in {STARTED_COPYING, STARTED_RUNNING}


def test_the_frozen_message_is_that_of_a_switch_alone() -> None:
    assert [t for t in TRANSITIONS if t.message == FROZEN] == [SWITCHED]
