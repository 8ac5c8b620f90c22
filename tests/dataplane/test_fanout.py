"""Which target gets what of a change (datapath rule 4)."""

from __future__ import annotations

import pytest

from tidegate.dataplane import fanout
from tidegate.dataplane.compaction import GONE, REFETCH
from tidegate.dataplane.fanout import Locator, Route
from tidegate.dataplane.reader import Batch, End, Inbox, after, split
from tidegate.engines.changes import DELETE, INSERT, TRUNCATE, UPDATE, AnyRow, Change
from tidegate.engines.postgres.pgoutput import Relation
from tidegate.engines.postgres.split import ShardColumn
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes

INT8 = 20
LOW, HIGH = 5, 9  # `numeric` ids are the number's own eight bytes
MIDDLE = (7).to_bytes(8, "big")


def field(value: int | None) -> bytes:
    return b"\xff" * 4 if value is None else b"\0\0\0\x08" + value.to_bytes(8, "big", signed=True)


def row(tenant: int | None, body: bytes | None = b"\0\0\0\x01x") -> AnyRow:
    return [field(tenant), body]


def relation(*, loose: bool = False, sharded: bool = True) -> Relation:
    route = Route(
        table="t",
        number=0,
        columns=("tenant", "body"),
        type_oids=(INT8, 25),
        key=("tenant",),
        unique=frozenset(),
        binary=True,
    )
    if sharded:
        route.shard, route.loose = (0,), loose
        column = ShardColumn("tenant", "bigint", "int8send", INT8, True, 8)  # noqa: FBT003 - by place
        vindex = vindexes.create("numeric", "v")
        route.locator = Locator(vindex, (column,), [b"", MIDDLE], [MIDDLE, b""], [0, 1])
    return Relation(
        1, "public", "t", "d", route.columns, route.type_oids, (-1, -1), (0,), extra=route
    )


def targets(change: Change) -> list[list[Change]]:
    return fanout.distribute([change], 2)[0]


def test_a_row_goes_where_its_keyspace_id_lies() -> None:
    table = relation()
    low: Change = (INSERT, table, None, row(LOW))
    high: Change = (DELETE, table, row(HIGH), None)
    assert targets(low) == [[low], []]
    assert targets(high) == [[], [high]]


def test_a_row_that_changes_its_shard_leaves_one_and_enters_the_other() -> None:
    table = relation()
    assert targets((UPDATE, table, row(LOW), row(HIGH))) == [
        [(DELETE, table, row(LOW), None)],
        [(INSERT, table, None, row(HIGH))],
    ]
    assert targets((UPDATE, table, row(LOW), row(HIGH, None)))[1] == [
        (REFETCH, table, None, row(HIGH, None))
    ]


def test_without_the_old_shard_an_update_deletes_everywhere_else() -> None:
    table = relation(loose=True)
    change: Change = (UPDATE, table, None, row(HIGH))
    assert targets(change) == [[(GONE, table, row(HIGH), None)], [change]]
    gone: Change = (DELETE, table, row(LOW), None)
    assert targets(gone) == [[gone], [gone]]
    added: Change = (INSERT, table, None, row(LOW))
    assert targets(added) == [[added], []]


def test_tables_without_sharding_columns_and_truncates_go_everywhere() -> None:
    change: Change = (INSERT, relation(sharded=False), None, row(LOW))
    assert targets(change) == [[change], [change]]
    emptied: Change = (TRUNCATE, relation(), None, None)
    assert targets(emptied) == [[emptied], [emptied]]


def test_a_row_without_a_place_is_named() -> None:
    with pytest.raises(ShardKeyError, match="table t: "):
        targets((INSERT, relation(), None, row(None)))


def test_each_target_knows_how_many_of_its_changes_belong_to_a_transaction() -> None:
    table = relation()
    changes: list[Change] = [
        (INSERT, table, None, row(tenant)) for tenant in (LOW, HIGH, HIGH, LOW)
    ]
    _, counts = fanout.distribute(changes, 2, [1, 3, 4])
    assert [c[:3] for c in counts] == [[1, 1, 2], [0, 2, 2]]


def batch(*ends: tuple[int, int], is_open: bool = False) -> Batch:
    change: Change = (INSERT, relation(), None, row(LOW))
    found = [End(upto, lsn, lsn + 10, 0) for upto, lsn in ends]
    begin = found[0].commit_lsn if found else 100
    return Batch([change] * (ends[-1][0] if ends else 3), found, 300, begin, is_open)


def test_a_target_is_not_given_what_it_has() -> None:
    given = batch((1, 100), (3, 200), (4, 300))
    assert after(100, given) is given
    rest = after(200, given)
    assert [(e.upto, e.commit_lsn) for e in rest.ends] == [(2, 200), (3, 300)]
    assert len(rest.changes) == 3
    assert not after(301, given).changes
    assert not after(101, batch(is_open=True)).changes


def test_a_batch_splits_between_transactions() -> None:
    first, second = split(batch((1, 100), (3, 200)), 1)
    assert (len(first.changes), [e.upto for e in first.ends]) == (1, [1])
    assert (len(second.changes), [e.upto for e in second.ends]) == (2, [2])
    assert second.begin_lsn == 200


def test_a_full_inbox_takes_nothing_more_until_there_is_room() -> None:
    inbox = Inbox(0)
    large = batch((1, 100))
    large.size = 1 << 40
    assert inbox.put(large, 0)
    assert not inbox.put(batch((1, 200)), 0)
    assert inbox.take() is large
    assert inbox.put(batch((1, 200)), 0)
