"""The way back from an upgrade: which programs may run on a database that is ahead of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster import ledger, member_store
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.gate import Versions, decide_for, is_left_behind
from tidegate.cluster.ledger import Applied, Update
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.members import Member, MemberState, Role
from tidegate.cluster.membership import Status, listed
from tidegate.errors import SchemaVersionError, TidegateError

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UPDATES = tuple(Update(f"u{n}", (f"SELECT {n}",), older_works=n > 1) for n in range(1, 6))
FLAGS = st.lists(st.booleans(), min_size=5, max_size=5)


def applied(flags: list[bool], upto: int) -> list[Applied]:
    return [
        Applied(n, update.name, update.sha256, 0, int(flag))
        for n, (update, flag) in enumerate(zip(UPDATES, flags, strict=True), 1)
    ][:upto]


def member(number: int, schema: int) -> Member:
    return Member(
        id=number,
        name=f"m{number}",
        address=f"h:{number}",
        schema_version=schema,
        extensions=Extensions(),
        binary_version="1",
        heartbeat_at=NOW,
        role=Role.VOTER,
        state=MemberState.ACTIVE,
        pending_at=NOW,
        active_at=NOW,
        evicted_at=None,
        fingerprint="",
        revision=1,
    )


@given(FLAGS, st.integers(1, 5), st.integers(1, 5))
def test_a_program_works_on_a_newer_database_only_if_every_unknown_update_says_so(
    flags: list[bool], upto: int, known: int
) -> None:
    rows = applied(flags, upto)
    if upto <= known:
        assert ledger.missing(UPDATES[:known], rows) == UPDATES[upto:known]
    elif all(flags[known:upto]):
        assert ledger.missing(UPDATES[:known], rows) == ()
    else:
        with pytest.raises(SchemaVersionError, match="more recent"):
            ledger.missing(UPDATES[:known], rows)


@given(FLAGS, st.integers(1, 5), st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_members_run_side_by_side_only_when_nothing_is_left_to_apply_and_all_are_tolerated(
    flags: list[bool], upto: int, schemas: list[int]
) -> None:
    rows = applied(flags, upto)
    members = [member(number, schema) for number, schema in enumerate(schemas, 1)]
    for me in members:
        own = Versions(me.schema_version)
        ready = decide_for(own, me, members, rows).is_ready
        alive = {n for n in schemas if not is_left_behind(n, rows)} | {me.schema_version}
        tolerated = upto >= max(alive) and all(flags[min(alive) : upto])
        assert ready is (len(alive) == 1 or (tolerated and upto > min(alive)))
        assert decide_for(own, me, members).is_ready is (len(set(schemas)) == 1)


@given(FLAGS, st.integers(1, 5), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_list_says_of_each_member_what_the_gate_says_to_it(
    flags: list[bool], upto: int, schemas: list[int]
) -> None:
    """Tenants 17: one function decides what is listed, what is ready, and what may be evicted."""
    rows = applied(flags, upto)
    members = [member(number, schema) for number, schema in enumerate(schemas, 1)]
    for entry in listed(members, NOW, timedelta(seconds=30), rows):
        decision = decide_for(Versions(entry.member.schema_version), entry.member, members, rows)
        assert (entry.status is Status.ONLINE) is decision.is_ready


def program(known: int, database: ClusterDatabase) -> Cluster:
    """The program that knows this many updates beyond the members' table."""
    updates = (*member_store.UPDATES, *UPDATES[:known])
    return Cluster(Extensions(), NewSchema(updates), database=database)


def test_a_program_two_versions_back_is_refused_and_the_one_before_is_not(tmp_path: Path) -> None:
    """Tenants 18: nothing was finalised; the next upgrade closes the way back of the last one."""
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'cluster.db'}") as database:
        for known in (1, 2, 3):
            assert program(known, database).ensure_schema("a:1").is_ready
        assert program(2, database).ensure_schema("a:1").is_ready, "the way back"
        with pytest.raises(SchemaVersionError, match="more recent"):
            program(1, database).ensure_schema("a:1")
        assert program(3, database).ensure_schema("a:1").is_ready


def test_members_do_not_wait_for_one_whose_program_the_database_refuses(tmp_path: Path) -> None:
    """Tenants 16: there is no way back; the old program was started on one member and ended."""
    last = (*member_store.UPDATES, Update("last", ("SELECT 9",)))
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'cluster.db'}") as database:
        old = Cluster(Extensions(), NewSchema(member_store.UPDATES), database=database)
        new = Cluster(Extensions(), NewSchema(last), database=database)
        assert old.ensure_schema("alone").is_ready
        store = MemberStore(database)
        (first,) = store.all()
        store.write(first, replace(first, name="n1", address="a:1"))
        for name in ("n2", "n3"):
            made = store.add(
                name=name,
                address=f"{name}:1",
                schema_version=len(member_store.UPDATES),
                extensions=Extensions(),
                binary_version="",
            )
            store.activate(made)
        names = ("n1", "n2", "n3")
        for name in names:
            ready = new.ensure_schema("", name=name).is_ready
            assert ready is (name == "n3"), "the last one is not waited for any more"
        with pytest.raises(TidegateError):
            old.ensure_schema("", name="n3")
        for name in ("n1", "n2"):
            assert new.ensure_schema("", name=name).is_ready
        assert store.by_name("n3").schema_version == len(member_store.UPDATES), "it is seen"
        assert new.ensure_schema("", name="n3").is_ready
