"""The way back from an upgrade: which programs may run on a database that is ahead of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster import ledger
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.gate import Versions, decide_for
from tidegate.cluster.ledger import Applied, Update
from tidegate.cluster.members import Member, MemberState, Role
from tidegate.errors import SchemaVersionError

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
    tolerated = upto >= max(schemas) and all(flags[min(schemas) : upto])
    for me in members:
        own = Versions(me.schema_version)
        ready = decide_for(own, me, members, rows).is_ready
        assert ready is (len(set(schemas)) == 1 or (tolerated and upto > min(schemas)))
        assert decide_for(own, me, members).is_ready is (len(set(schemas)) == 1)
