"""Compacted sets have the effect of the changes, one by one (datapath rules 1, 10, 18)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.dataplane.compaction import REFETCH, Lenient, Strict
from tidegate.engines.changes import DELETE, INSERT, TRUNCATE, UPDATE, unpacked
from tidegate.errors import DivergenceError

type Row = list[bytes | None]
type Table = dict[Any, Row]
type Change = tuple[int, Row | None, Row | None]

KEYS = [bytes([k]) for k in range(5)]


@dataclass
class Naive:
    """A table to which changes are applied one by one; records what the log would say."""

    rows: Table
    log: list[Change] = field(default_factory=list)
    serial: int = 0

    def value(self) -> bytes:
        self.serial += 1
        return b"v%d" % self.serial

    def insert(self, key: bytes) -> None:
        if key not in self.rows:
            self.rows[key] = [key, self.value(), self.value()]
            self.log.append((INSERT, None, list(self.rows[key])))

    def delete(self, key: bytes) -> None:
        if self.rows.pop(key, None) is not None:
            self.log.append((DELETE, [key, b"", b""], None))

    def update(self, before: bytes, key: bytes, *, small: bool, large: bool) -> None:
        if before not in self.rows or (key != before and key in self.rows):
            return
        row = self.rows.pop(before)
        row = [key, self.value() if small else row[1], self.value() if large else row[2]]
        self.rows[key] = row
        logged = [key, row[1], row[2] if large else None]
        self.log.append((UPDATE, None if key == before else [before, b"", b""], logged))

    def truncate(self) -> None:
        self.rows.clear()
        self.log.append((TRUNCATE, None, None))


key = st.sampled_from(KEYS)
flag = st.booleans()
actions = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), key),
        st.tuples(st.just("delete"), key),
        st.tuples(st.just("update"), key, key, flag, flag),
        st.tuples(st.just("touch"), key, flag, flag),
    ),
    max_size=30,
)


def play(naive: Naive, script: list[tuple[Any, ...]]) -> None:
    for name, *arguments in script:
        if name == "update":
            before, after, small, large = arguments
            naive.update(before, after, small=small, large=large)
        elif name == "touch":
            one, small, large = arguments
            naive.update(one, one, small=small, large=large)
        else:
            getattr(naive, name)(*arguments)


def start(present: set[bytes]) -> Table:
    return {k: [k, b"a" + k, b"b" + k] for k in present}


def cut(moved: list[tuple[Any, Any]]) -> list[tuple[Any, Row]]:
    return [(origin, unpacked(row)) for origin, row in moved]


def merged(row: Row, donor: Row) -> Row:
    return [old if new is None else new for new, old in zip(row, donor, strict=True)]


def apply_strict(table: Table, compactor: Strict) -> Table:
    """What the database does with the sets, with every expectation asserted."""
    sets = compactor.sets()
    table = {} if sets.truncate else dict(table)
    for gone in sets.deletes:
        del table[gone]
    donors = {}
    for moved in sets.moves.values():
        for origin, row in cut(moved):
            donors[row[0]] = table.pop(origin)
    for present, rows in sets.updates.items():
        for row in map(unpacked, rows):
            assert row[0] in table, "an update in place finds its row"
            table[row[0]] = [
                new if i in present else old
                for i, (new, old) in enumerate(zip(row, table[row[0]], strict=True))
            ]
    for moved in sets.moves.values():
        for _, row in cut(moved):
            assert row[0] not in table
            donor = donors[row[0]]
            table[row[0]] = [
                old if new is None else new for new, old in zip(row, donor, strict=True)
            ]
    for row in map(unpacked, sets.inserts):
        assert row[0] not in table, "an insert finds its key free"
        assert None not in row
        table[row[0]] = row
    return table


@settings(max_examples=200, deadline=None)
@given(present=st.sets(key), script=actions)
def test_strict_sets_have_the_effect_of_the_changes(
    present: set[bytes], script: list[tuple[Any, ...]]
) -> None:
    naive = Naive(start(present))
    play(naive, script)
    compactor = Strict([0])
    for change in naive.log:
        compactor.add(*change)
    assert apply_strict(start(present), compactor) == naive.rows


@settings(max_examples=100, deadline=None)
@given(present=st.sets(key), first=actions, second=actions)
def test_strict_sets_start_anew_at_a_truncate(
    present: set[bytes], first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]
) -> None:
    naive = Naive(start(present))
    play(naive, first)
    naive.truncate()
    play(naive, second)
    compactor = Strict([0])
    for change in naive.log:
        compactor.add(*change)
    assert apply_strict(start(present), compactor) == naive.rows


def apply_lenient(  # noqa: C901, PLR0912 - the model of one long order of statements
    table: Table, newer: set[bytes], again: set[Any], log: list[Change], *, donors: bool
) -> Table:
    compactor = Lenient([0], (lambda k: k not in newer) if donors else None)
    for change in log:
        compactor.add(*change)
    sets = compactor.sets()
    table = {} if sets.truncate else dict(table)
    taken: Table = {}
    for moved in sets.moves.values():
        for origin, row in cut(moved):
            assert row[0] is not None
            if origin in table:
                taken[row[0]] = table.pop(origin)
    upserted = {row[0] for row in map(unpacked, sets.upserts)}
    targets = {row[0] for moved in sets.moves.values() for _, row in cut(moved)}
    for gone in {*sets.deletes, *sets.refetch, *upserted, *targets}:
        table.pop(gone, None)
    again -= {*sets.deletes, *upserted}
    again |= set(sets.refetch)
    for present, rows in sets.updates.items():
        for row in map(unpacked, rows):
            if row[0] in table:
                table[row[0]] = [
                    new if i in present else old
                    for i, (new, old) in enumerate(zip(row, table[row[0]], strict=True))
                ]
            else:
                again.add(row[0])
    for moved in sets.moves.values():
        for _, row in cut(moved):
            if row[0] in taken:
                donor = taken[row[0]]
                table[row[0]] = merged(row, donor)
            else:
                again.add(row[0])
    for row in map(unpacked, sets.upserts):
        table[row[0]] = row
    return table


@settings(max_examples=300, deadline=None)
@given(
    present=st.sets(key),
    before=actions,
    middle=actions,
    later=actions,
    split=st.sets(key),
    cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_replay_over_a_copy_of_two_moments_and_one_round_is_exact(
    *,
    present: set[bytes],
    before: list[tuple[Any, ...]],
    middle: list[tuple[Any, ...]],
    later: list[tuple[Any, ...]],
    split: set[bytes],
    cuts: tuple[int, int],
) -> None:
    """Rule 1: each key is copied at one of two moments, then everything is replayed to H."""
    naive = Naive(start(present))
    play(naive, before)
    one = dict(naive.rows)
    play(naive, middle)
    two = dict(naive.rows)
    target = {k: r for k, r in one.items() if k in split} | {
        k: r for k, r in two.items() if k not in split
    }
    again: set[bytes] = set()
    a, b = sorted(min(cut, len(naive.log)) for cut in cuts)
    for part in (naive.log[:a], naive.log[a:b], naive.log[b:]):
        target = apply_lenient(target, set(), again, part, donors=False)
    assert {k: r for k, r in naive.rows.items() if k not in again} == target
    at_h, done = dict(target), len(naive.log)
    play(naive, later)  # the round reads from a newer snapshot than H
    found = {k: naive.rows[k] for k in again if k in naive.rows}
    at_h |= found
    waiting: set[bytes] = set()
    at_h = apply_lenient(at_h, set(found), waiting, naive.log[done:], donors=True)
    assert {k: r for k, r in naive.rows.items() if k not in waiting} == at_h


def test_a_row_that_arrives_with_a_value_left_out_is_read_again() -> None:
    compactor = Lenient([0], lambda _: True)
    compactor.add(REFETCH, None, [b"k", b"v", None])
    assert compactor.sets().refetch == [b"k"]
    compactor.add(DELETE, [b"k", b"", b""], None)
    assert compactor.sets().refetch == []


@pytest.mark.parametrize(
    "second",
    [(DELETE, [b"k", b"", b""], None), (UPDATE, None, [b"k", b"x", None])],
)
def test_a_change_of_a_row_that_is_gone_is_a_divergence(second: Change) -> None:
    compactor = Strict([0], "t")
    compactor.add(DELETE, [b"k", b"", b""], None)
    with pytest.raises(DivergenceError):
        compactor.add(*second)


def test_an_insert_of_a_row_that_is_there_is_a_divergence() -> None:
    compactor = Strict([0], "t")
    compactor.add(INSERT, None, [b"k", b"x", b"y"])
    with pytest.raises(DivergenceError):
        compactor.add(INSERT, None, [b"k", b"x", b"y"])
