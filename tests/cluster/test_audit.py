"""The audit log: a changed or missing entry is found, wherever it is."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from tidegate.cluster import audit
from tidegate.cluster.audit import Audit, Call, Entry, Head, judged
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.members import PLACEHOLDER
from tidegate.server.node import UPDATES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALL = Call("deploy", "operate", "10.0.0.7", "a", "c1", 'POST /v1/cells {"name": "x"}')


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as made:
        Cluster(Extensions.of(()), NewSchema(UPDATES), database=made).ensure_schema(
            PLACEHOLDER, tmp_path
        )
        yield made


def run(database: ClusterDatabase, statement: str) -> None:
    with database.transaction() as connection:
        assert connection.execute(text(statement)).rowcount > 0


def test_a_log_that_nobody_touched_is_whole(database: ClusterDatabase) -> None:
    log = Audit(database)
    assert log.verify().why is None
    for outcome in (0, 201, 0, 409):
        log.append(CALL, outcome)
    found = log.verify()
    assert (found.why, found.entries, found.head.seq) == (None, 4, 4)
    assert [entry.seq for entry in log.newest(before=None, limit=3)] == [4, 3, 2]
    assert [entry.seq for entry in log.newest(before=2, limit=3)] == [1]


@pytest.mark.parametrize(
    ("statement", "at"),
    [
        ("UPDATE audit_entry SET what = 'DELETE /v1/cells/x' WHERE seq = 3", 3),
        ("UPDATE audit_entry SET caller = 'nobody' WHERE seq = 1", 1),
        ("UPDATE audit_entry SET outcome = 403 WHERE seq = 6", 6),
        ("UPDATE audit_entry SET at_ms = at_ms + 1 WHERE seq = 2", 2),
        ("UPDATE audit_entry SET hash = 'x' WHERE seq = 4", 4),
        ("DELETE FROM audit_entry WHERE seq = 1", 1),
        ("DELETE FROM audit_entry WHERE seq = 4", 4),
        ("DELETE FROM audit_entry WHERE seq = 6", 6),
        ("DELETE FROM audit_entry WHERE seq > 4", 5),
        ("DELETE FROM audit_entry", 1),
        ("UPDATE audit_entry SET seq = 7 WHERE seq = 6", 6),
        ("UPDATE audit_head SET seq = 5", 5),
        ("UPDATE audit_head SET hash = 'x'", 6),
        ("UPDATE audit_head SET removed = 2, removed_hash = 'x'", 3),
    ],
)
def test_one_changed_or_missing_entry_is_found(
    database: ClusterDatabase, statement: str, at: int
) -> None:
    """One entry anywhere, at the end as well, and the head itself."""
    log = Audit(database)
    for number in range(6):
        log.append(replace(CALL, call=f"c{number}"), 200)
    run(database, statement)
    found = log.verify()
    assert found.why
    assert found.broken_at == at
    log.append(CALL, 200)
    if statement != "UPDATE audit_head SET seq = 5":  # then all entries are as they were
        assert log.verify().why, "what comes later does not heal it"


def test_entries_that_change_places_are_found(database: ClusterDatabase) -> None:
    log = Audit(database)
    for number in range(3):
        log.append(replace(CALL, call=f"c{number}"), 200)
    run(database, "UPDATE audit_entry SET seq = seq + 10 WHERE seq < 3")
    run(database, "UPDATE audit_entry SET seq = 1 WHERE seq = 12")
    run(database, "UPDATE audit_entry SET seq = 2 WHERE seq = 11")
    assert log.verify().broken_at == 1


def test_the_log_is_bounded_and_whole_after_its_oldest_entries_have_gone(
    database: ClusterDatabase,
) -> None:
    log = Audit(database, rows_max=10)
    for number in range(35):
        log.append(replace(CALL, call=f"c{number}"), 200)
        found = log.verify()
        assert found.why is None
        assert found.entries <= 10
    assert found.head.removed >= 25
    run(database, f"DELETE FROM audit_entry WHERE seq = {found.head.removed + 1}")
    assert log.verify().broken_at == found.head.removed + 1


def test_many_writers_leave_one_chain(database: ClusterDatabase) -> None:
    def write() -> None:
        for _ in range(10):
            Audit(database).append(CALL, 200)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = Audit(database).verify()
    assert (found.why, found.entries) == (None, 40)


@given(st.data())
def test_any_single_change_is_found(data: st.DataObject) -> None:
    """The pure rule, over every field of every entry."""
    entries: list[Entry] = []
    before = ""
    for seq in range(1, data.draw(st.integers(1, 6)) + 1):
        draft = Entry(seq, seq * 1000, "a", "admin", "::1", "m", f"c{seq}", "POST /x", 200, "")
        before = draft.hash_after(before)
        entries.append(replace(draft, hash=before))
    head = Head(len(entries), before, 0, "")
    assert judged(head, entries).why is None
    at = data.draw(st.integers(0, len(entries) - 1))
    if data.draw(st.booleans()):
        changed = [*entries[:at], *entries[at + 1 :]]
    else:
        values = asdict(entries[at])
        name = data.draw(st.sampled_from(sorted(values)))
        old = values[name]
        values[name] = old + 1 if isinstance(old, int) else f"{old}x"
        changed = [*entries[:at], Entry(**values), *entries[at + 1 :]]
    assert judged(head, changed).why is not None


def test_long_words_are_cut(database: ClusterDatabase) -> None:
    made = Audit(database).append(replace(CALL, what="x" * 5000), 200)
    assert len(made.what) == audit.WHAT_MAX_CHARS
    assert Audit(database).verify().why is None
