"""Accounts of rows, against a simulation of one source and several targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dataplane import accounts
from tidegate.dataplane.compaction import GONE, REFETCH
from tidegate.engines.changes import DELETE, INSERT, TRUNCATE, UPDATE
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from tidegate.dataplane.accounts import Accounts

type Event = tuple[str, int, int]  # what, key, target

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "move", "drop", "truncate"]), st.integers(0, 5), st.integers(0, 2)
    ),
    max_size=40,
)
CUTS = st.lists(st.lists(st.integers(0, 40), max_size=6), min_size=3, max_size=3)


def change(kind: int) -> Any:
    return (kind, None, None, None)


class Target:
    """Takes its part of a loose table's log in batches, and counts what it finds."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.keys: set[int] = set()
        self.accounts: Accounts = {}

    def apply(self, told: list[tuple[int, int]]) -> None:
        """Changes as (kind, key); compacted as the applier does: the last word on a key counts."""
        anew = any(kind == TRUNCATE for kind, _ in told)
        if anew:
            self.keys.clear()
        last: dict[int, int] = {}
        for kind, key in told:
            if kind == TRUNCATE:
                last.clear()
            else:
                last[key] = kind
        net = 0
        for key, kind in last.items():
            net -= key in self.keys
            self.keys.discard(key)
            if kind in {INSERT, UPDATE}:
                self.keys.add(key)
                net += 1
        due = accounts.expected(
            (change(kind) for kind, _ in told), speaks_for_deletes=self.place == 0
        )
        self.accounts = accounts.booked(self.accounts, "t", net, due, anew=anew)


def log_of(events: list[Event]) -> list[list[tuple[int, int]]]:
    """What each of three targets is told, event by event; events that cannot be are left out."""
    at: dict[int, int] = {}
    told: list[list[tuple[int, int]]] = []
    for what, key, target in events:
        if what == "truncate":
            at.clear()
            told.append([(TRUNCATE, key)] * 3)
        elif what == "put" and key not in at:
            at[key] = target
            told.append([(INSERT, key) if place == target else (0, key) for place in range(3)])
        elif what == "move" and key in at:
            at[key] = target
            told.append([(UPDATE if place == target else GONE, key) for place in range(3)])
        elif what == "drop" and key in at:
            del at[key]
            told.append([(DELETE, key)] * 3)
    return told


@given(EVENTS, CUTS)
def test_however_the_log_is_cut_the_rows_of_all_targets_add_up(
    events: list[Event], cuts: list[list[int]]
) -> None:
    told = log_of(events)
    targets = [Target(place) for place in range(3)]
    for target, own_cuts in zip(targets, cuts, strict=True):
        begin = 0
        for end in [*sorted(c for c in own_cuts if c < len(told)), len(told)]:
            part = [changes[target.place] for changes in told[begin:end]]
            target.apply([each for each in part if each[0]])
            begin = end
    assert accounts.uneven([target.accounts for target in targets]) == {}


@given(EVENTS, st.integers(0, 2), st.integers(0, 5))
def test_a_row_that_somebody_else_took_shows_once_its_delete_is_applied(
    events: list[Event], victim: int, key: int
) -> None:
    told = log_of([event for event in events if event[0] != "truncate"])
    targets = [Target(place) for place in range(3)]
    for target in targets:
        target.apply([changes[target.place] for changes in told if changes[target.place][0]])
    if key not in targets[victim].keys:
        return
    targets[victim].keys.discard(key)
    for target in targets:
        target.apply([(DELETE, key)])
    found = accounts.uneven([target.accounts for target in targets])
    assert "t" in found
    with pytest.raises(DivergenceError, match="table t"):
        accounts.require_even([target.accounts for target in targets])


def test_a_key_that_waits_to_be_read_again_is_a_row_that_is_missing() -> None:
    opened = accounts.opened({"t": 2, "u": 0})
    assert opened == {"t": (-2, 0)}
    assert accounts.expected([change(REFETCH)], speaks_for_deletes=False) == 1
    assert accounts.settled({"t": (3, 3), "u": (1, 2), "v": (4, 4)}, frozenset({"v"})) == {
        "u": (1, 2),
        "v": (4, 4),
    }
