"""Members as processes: they come, answer for each other, take over, go, and are thrown out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fix_members import MemberCluster, members
from fix_node import until
from tidegate.errors import (
    AlreadyExistsError,
    ExitStatus,
    FailedPreconditionError,
    InvalidArgumentError,
    JoinTokenError,
    TidegateError,
)

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = pytest.mark.slow

__all__ = ["members"]

TAKES_OVER_S = 10.0


def cells(member: Member) -> list[str]:
    with member.client() as client:
        return [row["name"] for row in client.cell.list()["items"]]


def create_cell(member: Member, name: str) -> bool:
    try:
        with member.client() as client:
            client.cell.create(name)
    except TidegateError:
        return False
    return True


@pytest.mark.alone
def test_any_member_answers_and_another_takes_over(members: MemberCluster) -> None:
    first = members.first()
    with first.client() as client:
        client.cell.create("before")
    second, third = (members.joined(name, first) for name in ("n2", "n3"))
    assert {m.name: s for m in members.members for s in m.statuses().values()} == {
        "n1": "online",
        "n2": "online",
        "n3": "online",
    }
    assert cells(third) == ["before"]
    assert create_cell(second, "second")
    assert cells(first) == cells(third) == ["before", "second"]

    owner = members.owner()
    rest = [member for member in members.members if member is not owner]
    owner.node.kill()
    until(lambda: create_cell(rest[0], "after"), TAKES_OVER_S)
    assert members.owner(of=rest) is not owner
    assert cells(rest[1]) == ["after", "before", "second"]

    owner.node.start()
    until(lambda: members.sees(rest[0], owner.name) == "online")
    until(lambda: owner.stage() == "ready")
    assert cells(owner) == ["after", "before", "second"]


def test_a_member_that_is_listed_as_online_takes_a_write(members: MemberCluster) -> None:
    """Situation 35: at once, through itself, the first time it is tried."""
    first = members.first()
    for name in ("n2", "n3"):
        member = members.new(name)
        token = first.ask("token_create", name)["token"]
        member.ask("join", token)
        until(lambda n=name: members.sees(first, n) == "online")  # type: ignore[misc]
        with member.client() as client:
            client.cell.create(f"by-{name}")
    assert cells(first) == ["by-n2", "by-n3"]


def test_a_token_lets_one_node_in_once(members: MemberCluster) -> None:
    first = members.first()
    token = first.ask("token_create", "n2")["token"]
    with pytest.raises(AlreadyExistsError):
        first.ask("token_create", "n2")
    with pytest.raises(AlreadyExistsError, match="name n1"):
        first.ask("token_create", "n1")
    stranger = members.new("n2")
    with pytest.raises(InvalidArgumentError, match="whole join token"):
        stranger.ask("join", token[:-9])
    first.ask("token_revoke", "n2")
    with pytest.raises(JoinTokenError, match="there is none"):
        stranger.ask("join", token)
    assert stranger.ask("show")["member"] is None
    assert set(first.listed()) == {"n1"}

    token = first.ask("token_create", "n2")["token"]
    stranger.ask("join", token)
    until(lambda: stranger.stage() == "ready")
    with pytest.raises(FailedPreconditionError, match="part of a cluster"):
        stranger.ask("join", token)
    late = members.new("n3")
    with pytest.raises(JoinTokenError, match="has been used"):
        late.ask("join", token)
    assert late.stage() == "ready"
    assert token not in first.node.log.read_text() + stranger.node.log.read_text()


def test_a_join_whose_address_is_taken_changes_nothing_and_spends_no_token(
    members: MemberCluster,
) -> None:
    """Tenants 19: looked at before, on both ports; the same token is good afterwards."""
    first = members.first()
    token = first.ask("token_create", "n2")["token"]
    node = members.new("n2")
    host, _, port = node.address.rpartition(":")
    for taken in (int(port), int(port) + 1) if members.engine == "dqlite" else (int(port),):
        with (
            socket.create_server((host, taken)),
            pytest.raises(InvalidArgumentError, match=f"cannot listen on {host}:{taken}"),
        ):
            node.ask("join", token)
        until(lambda: node.stage() == "ready")
        assert node.ask("show")["member"] is None
        assert create_cell(first, f"on{taken}")
    assert node.ask("join", token)["name"] == "n2"
    until(lambda: members.sees(first, "n2") == "online")
    late = members.new("n3")
    with pytest.raises(JoinTokenError, match="has been used"):
        late.ask("join", token)


def test_a_node_whose_join_is_refused_stays_ready(members: MemberCluster) -> None:
    """Situation 38: the token is used or wrong, or the address is taken; nothing is closed."""
    first = members.first()
    stranger, late = members.new("n2"), members.new("n3")
    used = first.ask("token_create", "n2")["token"]
    stranger.ask("join", used)
    until(lambda: members.sees(first, "n2") == "online")
    replaced = first.ask("token_create", "n3")["token"]
    first.ask("token_revoke", "n3")
    good = first.ask("token_create", "n3")["token"]
    taken = members.new("n4", address=stranger.address)
    opened = [node.node.log.read_text().count("cluster database open") for node in (late, taken)]
    before = first.listed()
    for token, refusal in ((used, "has been used"), (replaced, "secret is wrong")):
        with pytest.raises(JoinTokenError, match=refusal):
            late.ask("join", token)
        assert late.stage() == "ready"
    with pytest.raises(InvalidArgumentError, match="cannot listen"):
        taken.ask("join", good)
    assert taken.stage() == "ready"
    assert list(first.listed()) == list(before)
    after = [node.node.log.read_text().count("cluster database open") for node in (late, taken)]
    assert after == opened == [1, 1]
    late.ask("join", good)  # the refusal of another node has not used it up
    until(lambda: members.sees(first, "n3") == "online")


def test_a_node_that_holds_something_does_not_join(members: MemberCluster) -> None:
    first = members.first()
    token = first.ask("token_create", "n2")["token"]
    other = members.new("n2")
    assert create_cell(other, "mine")
    with pytest.raises(FailedPreconditionError, match="topology of its own"):
        other.ask("join", token)
    assert cells(other) == ["mine"]


def test_a_node_without_an_address_begins_nothing(members: MemberCluster) -> None:
    node = members.new("n1")
    node.node.stop()
    node.node.flags = ()
    node.node.start()
    with pytest.raises(FailedPreconditionError, match="no address"):
        node.ask("enable", "n1")
    with pytest.raises(FailedPreconditionError, match="not a member"):
        node.ask("token_create", "n2")
    assert node.statuses() == {"none": "online"}


def test_a_member_that_leaves_goes_on_alone_with_nothing(members: MemberCluster) -> None:
    first = members.first()
    second = members.joined("n2", first)
    assert create_cell(first, "shared")
    with pytest.raises(TidegateError, match="no member"):
        first.ask("leave", "n9")
    assert first.ask("leave", "n2", dry_run=True)["dry_run"]
    assert first.statuses() == {"n1": "online", "n2": "online"}
    first.ask("leave", "n2")
    until(lambda: second.stage() == "ready" and second.ask("show")["member"] is None)
    assert cells(second) == []
    assert first.statuses() == {"n1": "online", "n2": "evicted"}
    assert create_cell(first, "still")
    with pytest.raises(FailedPreconditionError, match="only node"):
        first.ask("leave", "n1")
    # It may come back, as a new member.
    token = first.ask("token_create", "n2")["token"]
    second.ask("join", token)
    until(lambda: members.sees(first, "n2") == "online" and second.stage() == "ready")
    assert cells(second) == ["shared", "still"]


def test_the_only_member_is_neither_evicted_nor_leaves(members: MemberCluster) -> None:
    """Situation 54: refused by name, with --force or without, and everything is still there."""
    first = members.first()
    assert create_cell(first, "kept")
    for force in (False, True):
        with pytest.raises(FailedPreconditionError, match="only node"):
            first.ask("evict", "n1", force=force)
        with pytest.raises(FailedPreconditionError, match="only node"):
            first.ask("leave", "n1", force=force)
    members.joined("n2", first)
    for force in (False, True):
        with pytest.raises(FailedPreconditionError, match="does not evict itself"):
            first.ask("evict", "n1", force=force)
    assert cells(first) == ["kept"]
    assert first.statuses() == {"n1": "online", "n2": "online"}


def test_an_evicted_member_stops_and_is_refused(members: MemberCluster) -> None:
    first = members.first()
    second = members.joined("n2", first)
    with pytest.raises(FailedPreconditionError, match="works"):
        first.ask("evict", "n2")
    first.ask("evict", "n2", force=True)
    process = second.node.process
    assert process is not None
    assert process.wait(60) != 0
    second.node.process = None
    assert "evicted" in second.node.log.read_text()
    again = second.node.refused()
    assert again.returncode != 0
    assert "evicted" in again.stderr
    assert create_cell(first, "on")


def test_a_member_that_stays_away_is_offline_and_can_be_evicted(members: MemberCluster) -> None:
    first = members.first()
    second = members.joined("n2", first)
    third = members.joined("n3", first)
    first.ask("set", "offline_threshold", "5")
    with pytest.raises(InvalidArgumentError):
        first.ask("set", "offline_threshold", "4")
    second.node.kill()
    until(lambda: members.sees(third, "n2") == "offline", 40)
    third.ask("evict", "n2")
    assert members.sees(first, "n2") == "evicted"
    assert create_cell(third, "on")


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_a_survivor_goes_on_alone_after_the_majority_is_gone(members: MemberCluster) -> None:
    first = members.first()
    second, third = members.joined("n2", first), members.joined("n3", first)
    assert create_cell(first, "kept")
    until(lambda: {row["role"] for row in first.listed().values()} == {"voter"})
    second.node.kill()
    third.node.kill()
    assert not create_cell(first, "unknown")  # in one log out of three: it may come back

    command = [sys.executable, "-m", "tidegate.cli.main", "cluster", "recover", "-o", "json"]
    command += ["--yes", "--state-dir", str(first.node.state_dir)]
    running = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert running.returncode == ExitStatus.CONFLICT, running.stderr
    first.node.kill()
    looked = subprocess.run([*command, "--dry-run"], capture_output=True, timeout=60, check=True)
    assert json.loads(looked.stdout)["dry_run"]
    subprocess.run(command, capture_output=True, timeout=60, check=True)

    first.node.start()
    until(lambda: first.stage() == "ready")
    assert set(cells(first)) - {"unknown"} == {"kept"}
    assert create_cell(first, "on")
    assert first.statuses() == {"n1": "online", "n2": "evicted", "n3": "evicted"}
    fourth = members.joined("n4", first)
    assert set(cells(fourth)) - {"unknown"} == {"kept", "on"}
    assert {n: s for n, s in fourth.statuses().items() if s != "evicted"} == {
        "n1": "online",
        "n4": "online",
    }
