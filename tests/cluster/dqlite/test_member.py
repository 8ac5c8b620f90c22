"""A member's life: its folder, how it joins, changes its role, leads, leaves and is recovered."""

from __future__ import annotations

import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_engines.numbers import create, insert
from fix_dqlite import FAST, STEADY, Members
from fix_node import until
from free_ports import free_address
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.dqlite.client import Handover, RaftMember, plan_handover
from tidegate.cluster.dqlite.disk import CRITICAL_BYTES, LOW_BYTES, DiskAction, disk_action
from tidegate.cluster.dqlite.log import LogEnd, log_end
from tidegate.cluster.dqlite.member import (
    FIRST_ID,
    DqliteMember,
    last_entry,
    new_member_id,
    recover,
)
from tidegate.cluster.dqlite.node import FolderLock, NodeOptions
from tidegate.cluster.members import Role
from tidegate.errors import (
    ConflictError,
    DqliteError,
    FailedPreconditionError,
    InvalidArgumentError,
    NodeRunningError,
    NotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fix_dqlite import Authority


def test_a_folder_belongs_to_one_member_and_one_process(
    member: DqliteMember, tmp_path: Path, authority: Authority
) -> None:
    folder, tls = tmp_path / "first", authority.tls
    with pytest.raises(NodeRunningError, match="another process works on"):
        DqliteMember.reopen(folder, tls)
    with pytest.raises(NodeRunningError):
        recover(folder, [RaftMember(FIRST_ID, member.address, Role.VOTER)])
    member.close()
    with pytest.raises(FailedPreconditionError, match=f"member {FIRST_ID} at {member.address}"):
        DqliteMember.open(folder, FIRST_ID, "127.0.0.1:9", tls, first=True)
    with pytest.raises(FailedPreconditionError):
        DqliteMember.open(folder, 7, member.address, tls)
    with DqliteMember.reopen(folder, tls, options=FAST) as again:
        again.start()
        assert until(again.client.leader).member_id == FIRST_ID


def test_only_the_first_member_begins_a_cluster(tmp_path: Path, authority: Authority) -> None:
    for member_id, first in ((FIRST_ID, False), (7, True), (0, False), (2**63, False)):
        with pytest.raises(InvalidArgumentError):
            DqliteMember.open(tmp_path / "x", member_id, "127.0.0.1:9", authority.tls, first=first)
    assert not (tmp_path / "x").exists()
    with pytest.raises(NotFoundError):
        DqliteMember.reopen(tmp_path / "x", authority.tls)
    address = free_address()
    with DqliteMember.open(tmp_path / "x", new_member_id(), address, authority.tls) as lonely:
        lonely.start()
        assert lonely.client.leader() is None


def test_a_member_that_never_had_a_log_starts_again_and_waits(
    member: DqliteMember, tmp_path: Path, authority: Authority
) -> None:
    """Situation 49: a spare, and one that nobody has added yet; later each becomes a voter."""
    assert until(member.client.leader)
    for name in ("spare", "stranger"):
        folder, address = tmp_path / name, free_address()
        made = DqliteMember.open(folder, new_member_id(), address, authority.tls, options=FAST)
        made.start()
        if name == "spare":
            member.client.add(made.member_id, address)
        made.close()
        for _ in range(2):
            with DqliteMember.reopen(folder, authority.tls, options=FAST) as again:
                again.start()
        with DqliteMember.reopen(folder, authority.tls, options=FAST) as again:
            again.start()
            member.client.add(again.member_id, address, role=Role.VOTER)
            assert until(again.client.leader)
        # Now it has voted: without its log it must not return.
        shutil.rmtree(folder / "raft")
        with pytest.raises(FailedPreconditionError, match="has lost its log"):
            DqliteMember.reopen(folder, authority.tls)
        member.client.remove(again.member_id)


def test_a_member_that_lost_its_log_does_not_come_back(
    member: DqliteMember, tmp_path: Path, authority: Authority
) -> None:
    assert until(member.client.leader)
    member.close()
    member.close()
    shutil.rmtree(tmp_path / "first" / "raft")
    with pytest.raises(FailedPreconditionError, match="has lost its log"):
        DqliteMember.reopen(tmp_path / "first", authority.tls)
    # The refusal gave the folder back.
    FolderLock(tmp_path / "first").release()


def test_a_damaged_folder_is_named(
    member: DqliteMember, tmp_path: Path, authority: Authority
) -> None:
    folder = tmp_path / "first"
    member.close()
    (folder / "raft" / "metadata1").write_bytes(b"x" * 32)
    (folder / "raft" / "metadata2").write_bytes(b"x" * 32)
    with DqliteMember.reopen(folder, authority.tls) as damaged:
        with pytest.raises(DqliteError, match="damaged") as caught:
            damaged.start()
        assert caught.value.next_step
    (folder / "member.json").write_text("{")
    with pytest.raises(DqliteError, match=r"member\.json"):
        DqliteMember.reopen(folder, authority.tls)


@pytest.mark.slow
def test_members_join_change_roles_and_leave(members: Members) -> None:
    client = members.grow(voters=2).client
    third = members.process().start()
    client.add(third.member_id, third.address)
    client.add(third.member_id, third.address)  # it is there: no error

    def roles() -> dict[int, Role]:
        return {member.member_id: member.role for member in client.list()}

    assert roles()[third.member_id] is Role.SPARE
    for role in (Role.STANDBY, Role.VOTER, Role.SPARE, Role.VOTER):
        client.promote(third.member_id, role)
        assert roles()[third.member_id] is role
    with pytest.raises(ConflictError, match="has the address"):
        client.add(new_member_id(), third.address)
    with pytest.raises(ConflictError):
        client.add(third.member_id, free_address())
    with pytest.raises(NotFoundError):
        client.promote(12345, Role.VOTER)
    client.set_weight(third.address, 3)
    assert client.weight(third.address) == 3
    assert client.failure_domain(third.address) == 0

    client.transfer(third.member_id)
    assert until(client.leader).member_id == third.member_id
    client.remove(third.member_id)  # the leader: another one leads first
    client.remove(third.member_id)
    assert third.member_id not in roles()
    assert until(client.leader).member_id != third.member_id


def test_the_only_voter_stays(member: DqliteMember) -> None:
    with pytest.raises(FailedPreconditionError, match="only voter"):
        member.client.remove(FIRST_ID)
    with pytest.raises(NotFoundError):
        member.client.transfer(2)


@pytest.mark.alone
@pytest.mark.slow
def test_an_orderly_stop_of_the_leader_needs_no_election(members: Members) -> None:
    client = members.grow(voters=3).client
    leader = members.leader()
    assert leader.end(signal.SIGTERM) == 0
    started = time.monotonic()
    assert until(client.leader).member_id != leader.member_id
    assert time.monotonic() - started < 1.0
    leader.start()
    assert until(client.leader).member_id != leader.member_id


@pytest.mark.slow
def test_the_longest_log_is_found_among_stopped_members(members: Members) -> None:
    members.options = NodeOptions(
        latency_ms=STEADY.latency_ms, snapshot_entries=32, trailing_entries=32
    )
    members.grow(voters=3)
    behind = next(p for p in members.processes.values() if p is not members.leader())
    with ClusterDatabase.open(members.url("numbers")) as database:
        create(database)
        for stage in (1, 2, 3):
            # It stops early; the others go on, over the bounds of segments and snapshots.
            if stage == 2:
                behind.end(signal.SIGKILL)
            for number in range(40):
                with database.transaction() as connection:
                    insert(connection, stage * 1000 + number)
    with pytest.raises(NodeRunningError):
        last_entry(members.leader().folder)
    for process in members.processes.values():
        if process is not behind:
            process.end(signal.SIGKILL)
    ends = {key: last_entry(process.folder) for key, process in members.processes.items()}
    assert ends.pop(behind.member_id) < min(ends.values())
    for end in ends.values():
        assert end.term >= 1
        assert 120 < end.index < 160


@given(
    free=st.integers(0, 2 * LOW_BYTES), runs=st.booleans(), leads=st.booleans(), heir=st.booleans()
)
def test_a_member_short_of_room_never_leads_on(
    *, free: int, runs: bool, leads: bool, heir: bool
) -> None:
    action = disk_action(free, runs=runs, leads=leads, has_heir=heir)
    if not runs:
        assert (action is DiskAction.START) == (free >= LOW_BYTES)
        return
    assert action is not DiskAction.START
    if free >= LOW_BYTES or not leads:
        assert action is DiskAction.NOTHING
    elif free < CRITICAL_BYTES:
        assert action is DiskAction.STOP
    else:
        assert (action is DiskAction.HAND_OVER) == heir


def test_an_empty_log_has_no_end_and_a_strange_one_is_named(tmp_path: Path) -> None:
    assert log_end(tmp_path) == LogEnd(0, 0)
    (tmp_path / "open-1").write_bytes(bytes(100))
    assert log_end(tmp_path) == LogEnd(0, 0)
    (tmp_path / "open-2").write_bytes((7).to_bytes(8, "little"))
    with pytest.raises(DqliteError, match="version 7"):
        log_end(tmp_path)
    with pytest.raises(DqliteError, match="cannot be read"):
        log_end(tmp_path / "nowhere")


@pytest.mark.slow
def test_one_survivor_goes_on_alone_and_takes_new_members(
    members: Members, authority: Authority
) -> None:
    members.grow(voters=3)
    survivor, *lost = members.processes.values()
    for process in (survivor, *lost):
        process.end()
    for process in lost:
        shutil.rmtree(process.folder)
        del members.processes[process.member_id]
    alone = RaftMember(survivor.member_id, survivor.address, Role.VOTER)
    recover(survivor.folder, [alone])
    survivor.start()
    assert until(members.client.leader) == alone
    assert members.client.list() == [alone]
    members.grow(voters=3)
    assert [m.role for m in members.client.list()] == [Role.VOTER] * 3
    assert authority.tls


def test_a_recovery_names_this_member_and_each_only_once(
    member: DqliteMember, tmp_path: Path
) -> None:
    member.close()
    own = RaftMember(FIRST_ID, member.address, Role.VOTER)
    standby = RaftMember(FIRST_ID, member.address, Role.STANDBY)
    twin = RaftMember(2, member.address, Role.VOTER)
    for wrong in ([], [twin], [own, own], [own, twin], [standby]):
        with pytest.raises(InvalidArgumentError):
            recover(tmp_path / "first", wrong)
    with pytest.raises(NotFoundError):
        recover(tmp_path, [own])


ROLES = st.sampled_from(list(Role))


@given(
    roles=st.lists(ROLES, min_size=1, max_size=7), me=st.integers(1, 7), leader=st.integers(1, 7)
)
def test_a_handover_never_costs_a_vote_and_never_leaves_the_leader_leading(
    roles: list[Role], me: int, leader: int
) -> None:
    before = dict(enumerate(roles, start=1))
    members = [RaftMember(number, f"h:{number}", role) for number, role in before.items()]
    plan = plan_handover(members, me, leader)
    after = dict(before)
    if plan.promote is not None:
        after[plan.promote] = Role.VOTER
    for heir in plan.heirs:
        assert leader == me
        assert after[heir] is Role.VOTER
        assert heir != me
    if plan.demote:
        after[me] = Role.SPARE
    votes = [list(roles.values()).count(Role.VOTER) for roles in (before, after)]
    assert votes[0] == votes[1]
    if before.get(me) is not Role.VOTER:
        assert plan == Handover(None, (), demote=False)
    elif leader == me and len(members) > 1:
        assert plan.heirs
