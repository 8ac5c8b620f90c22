"""The rules of membership, over small clusters of every kind."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster import membership as rules
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.members import Member, MemberState, Role
from tidegate.cluster.membership import Candidate, Leftovers, Status
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MemberVersionError,
    NotFoundError,
    TidegateError,
)
from tidegate.server.roster import Roster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THRESHOLD = timedelta(seconds=30)
ONE = Extensions.of(["a"])


def member(number: int, role: Role = Role.VOTER, **changes: object) -> Member:
    made = Member(
        id=number,
        name=f"m{number}",
        address=f"10.0.0.{number}:1",
        schema_version=1,
        extensions=ONE,
        binary_version="1",
        heartbeat_at=NOW,
        role=role,
        state=MemberState.ACTIVE,
        pending_at=NOW,
        active_at=NOW,
        evicted_at=None,
        fingerprint="",
        revision=1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(Role),
        st.sampled_from(MemberState),
        st.booleans(),
        st.integers(1, 2),
        st.sampled_from([Extensions.of([]), ONE]),
    ),
    max_size=7,
).map(
    lambda rows: [
        member(
            number,
            role,
            state=state,
            heartbeat_at=NOW if fresh else NOW - timedelta(seconds=31),
            schema_version=schema,
            extensions=extensions,
        )
        for number, (role, state, fresh, schema, extensions) in enumerate(rows, 1)
    ]
)


@given(MEMBERS)
def test_rebalancing_ends_with_as_many_online_voters_as_there_can_be(members: list[Member]) -> None:
    now_members = {m.id: m for m in members}
    for _ in range(20):
        changes = rules.rebalanced(list(now_members.values()), NOW, THRESHOLD)
        if not changes:
            break
        voters = [m for m in now_members.values() if m.is_active and m.role is Role.VOTER]
        assert changes[0].role is Role.VOTER, "a vote is given before one is taken"
        for change in changes:
            now_members[change.member.id] = replace(change.member, role=change.role)
        after = [m for m in now_members.values() if m.is_active and m.role is Role.VOTER]
        assert len(after) >= min(len(voters), rules.VOTERS)
    else:
        raise AssertionError("roles never settle")
    active = [m for m in now_members.values() if m.is_active]
    online = [m for m in active if m.heartbeat_at == NOW]
    got = sum(m.role is Role.VOTER for m in online)
    crowded = sum(m.is_active and m.role is Role.VOTER for m in members) > rules.VOTERS
    assert got >= min(len(online), rules.VOTERS) or crowded


@given(MEMBERS)
def test_a_list_names_the_gravest_thing_and_compares_active_members_only(
    members: list[Member],
) -> None:
    for entry in rules.listed(members, NOW, THRESHOLD):
        others = [m for m in members if m.is_active and m.id != entry.member.id]
        match entry.status:
            case Status.ONLINE:
                mine = (entry.member.schema_version, entry.member.extensions)
                assert all((m.schema_version, m.extensions) == mine for m in others)
            case Status.OFFLINE:
                assert entry.member.heartbeat_at < NOW - THRESHOLD
            case Status.EVICTED:
                assert entry.member.state is MemberState.EVICTED
            case Status.PENDING:
                assert entry.member.state is MemberState.PENDING


def test_a_name_or_an_address_is_taken_once() -> None:
    members = [member(1)]
    good = Candidate("m2", "10.0.0.2:1", 1, ONE)
    assert rules.check_acceptable(members, good, NOW) == []
    for bad in (replace(good, name="m1"), replace(good, address="10.0.0.1:1")):
        with pytest.raises(AlreadyExistsError):
            rules.check_acceptable(members, bad, NOW)
    for other in (replace(good, schema_version=2), replace(good, extensions=Extensions.of([]))):
        with pytest.raises(MemberVersionError):
            rules.check_acceptable(members, other, NOW)
    with pytest.raises(InvalidArgumentError):
        rules.check_acceptable(members, replace(good, name="a:b"), NOW)


def test_a_pending_row_blocks_its_name_for_a_while_only() -> None:
    pending = member(2, state=MemberState.PENDING)
    candidate = Candidate("m2", "10.0.0.9:1", 1, ONE)
    with pytest.raises(AlreadyExistsError):
        rules.check_acceptable([pending], candidate, NOW)
    later = NOW + timedelta(seconds=rules.PENDING_EXPIRES_S + 1)
    assert rules.check_acceptable([pending], candidate, later) == [pending]


def test_a_certificate_is_good_for_the_present_row_of_its_name_only() -> None:
    """Tenants 14: whatever the name is used for later, the evicted certificate stays refused."""
    gone = member(2, name="m2", state=MemberState.EVICTED, fingerprint="old")
    rows = [member(1, fingerprint="one"), gone]
    assert rules.refusal(rows, "m1", "one") is None
    assert "has been evicted" in str(rules.refusal(rows, "m2", "old"))
    for state in (MemberState.PENDING, MemberState.ACTIVE):
        again = [*rows, member(3, name="m2", state=state, fingerprint="new")]
        assert rules.refusal(again, "m2", "new") is None
        assert "another member now" in str(rules.refusal(again, "m2", "old"))
        assert "another member now" in str(rules.refusal(again, "m2", "one"))
    assert rules.refusal(rows, "m9", "nine") is None, "let in just now, not seen yet"


def test_the_only_member_stays() -> None:
    """Situation 54: whatever is forced, somebody holds the cluster's state afterwards."""
    with pytest.raises(NotFoundError):
        rules.departing([member(1)], "m9")
    for others in (
        [],
        [member(2, state=MemberState.EVICTED)],
        [member(2, state=MemberState.PENDING)],
    ):
        with pytest.raises(FailedPreconditionError, match="only node"):
            rules.departing([member(1), *others], "m1")
    both = [member(1), member(2)]
    going = rules.departing(both, "m2", replicated={1, 2})
    assert (going.member.name, going.replication_id) == ("m2", 2)
    assert rules.departing(both, "m1").replication_id is None, "nothing replicates"


@pytest.mark.parametrize(
    "found",
    [
        Leftovers(has_certificate=True, address="h:1"),
        Leftovers(address=None),
        Leftovers(address=None, is_replicated=True),
        Leftovers(address="h:1", is_replicated=True),
        Leftovers(address="h:1", members=2),
    ],
)
def test_a_node_with_leftovers_begins_no_cluster(found: Leftovers) -> None:
    with pytest.raises(FailedPreconditionError):
        rules.check_beginning("a", found)
    rules.check_beginning("a", Leftovers(address="h:1"))


@pytest.mark.parametrize("name", ["", ":", "a:b", "-a", "a-", "ä", "a b", "x" * 64])
def test_a_name_that_leases_and_certificates_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_name(name)


@pytest.mark.parametrize("setting", ["0", "4", "-5", "aaa", "5.5"])
def test_an_offline_threshold_below_the_heartbeat_is_refused(setting: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.offline_threshold_s(setting)
    assert rules.offline_threshold_s(None) == 30
    assert rules.offline_threshold_s("5") == 5


def test_everybody_is_called_or_nobody() -> None:
    members = [member(1), member(2), member(3, heartbeat_at=NOW - timedelta(minutes=1))]
    seen = rules.listed(members, NOW, THRESHOLD)
    assert [m.id for m in rules.called(seen, 1, everybody=False)] == [2]
    with pytest.raises(TidegateError, match="is down"):
        rules.called(seen, 1, everybody=True)
    assert [m.id for m in rules.called(seen[:2], 1, everybody=True)] == [2]


def test_nobody_is_refused_by_rows_that_are_older_than_the_question() -> None:
    """Tenants 14, relative: a name let in again was "another member's" for a fifth of a second."""
    rows = [member(1), member(2, fingerprint="first")]
    roster = Roster(lambda: list(rows))
    assert roster.refusal("m2", "first") is None
    rows[1] = member(2, fingerprint="second")
    assert roster.refusal("m2", "second") is None
    assert "another member now" in str(roster.refusal("m2", "first"))
    assert roster.known_refusal("m2", "second") is None
