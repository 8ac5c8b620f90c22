"""Nodes killed at every durable step of coming and going: whoever repeats it reaches the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from fix_members import MemberCluster, members
from fix_node import until
from tidegate import steps
from tidegate.errors import AlreadyExistsError, TidegateError
from tidegate.server import serving

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = pytest.mark.slow

__all__ = ["members"]

BEGINNING = {"cluster.begin.copied", "cluster.begin.named", "cluster.identity.written"}
JOINING = {"cluster.join.let_in", "cluster.identity.written", "cluster.member.joined"}
LETTING_IN = {"cluster.member.accepted", "cluster.member.replicates"}
REMOVING = {"cluster.member.forgotten", "cluster.member.evicted"}
LEAVING = {"cluster.forget.set_aside"}


def test_every_step_of_membership_is_killed_here() -> None:
    assert serving.LOOKS_AGAIN_S, "importing the node declares its steps"
    declared = {step.name for step in steps.declared() if step.plan == "membership"}
    assert declared == BEGINNING | JOINING | LETTING_IN | REMOVING | LEAVING


def killed_at(member: Member, step: str) -> None:
    """Have a node die at a step, the next time it gets there."""
    member.node.stop()
    member.node.environment = {"TIDEGATE_CRASH_AT": step}
    member.node.start()
    until(lambda: member.stage() == "ready")


def survives(member: Member) -> None:
    """Wait for the death, and start again."""
    process = member.node.process
    assert process is not None
    assert process.wait(60) == -9, member.node.log.read_text()[-2000:]
    member.node.environment = {}
    member.node.start()
    until(lambda: member.stage() == "ready")


def cells(member: Member) -> list[str]:
    with member.client() as client:
        return [row["name"] for row in client.cell.list()["items"]]


def fresh(members: MemberCluster) -> Member:
    """A node that is to begin a cluster, with something to lose."""
    shared = f"sqlite:///{members.folder / 'shared.db'}"
    flags = ("--cluster-database", shared) if members.engine == "sqlite" else ()
    member = members.new("n1", *flags)
    with member.client() as client:
        client.cell.create("kept")
    return member


@pytest.mark.parametrize(
    ("members", "step"),
    [
        ("sqlite", "cluster.begin.named"),
        ("sqlite", "cluster.identity.written"),
        *(("dqlite", step) for step in sorted(BEGINNING)),
    ],
    indirect=["members"],
)
def test_a_first_member_killed_on_the_way(members: MemberCluster, step: str) -> None:
    first = fresh(members)
    killed_at(first, step)
    with contextlib.suppress(TidegateError):  # it may die after it has answered
        first.ask("enable", "n1")
    survives(first)
    if first.ask("show")["member"] is None:
        assert step == "cluster.begin.copied"
        first.ask("enable", "n1")
    until(lambda: members.sees(first, "n1") == "online" and first.stage() == "ready")
    assert cells(first) == ["kept"]
    assert members.joined("n2", first).statuses() == {"n1": "online", "n2": "online"}


@pytest.mark.parametrize("step", sorted(JOINING))
def test_a_joining_node_killed_on_the_way(members: MemberCluster, step: str) -> None:
    first = members.first()
    second = members.new("n2")
    killed_at(second, step)
    with contextlib.suppress(TidegateError):
        second.ask("join", first.ask("token_create", "n2")["token"])
    survives(second)
    if second.ask("show")["member"] is None:
        second.ask("join", first.ask("token_create", "n2")["token"])
    until(lambda: members.sees(first, "n2") == "online" and second.stage() == "ready")
    assert first.statuses() == {"n1": "online", "n2": "online"}


@pytest.mark.parametrize("step", sorted(LETTING_IN))
def test_a_member_killed_while_it_lets_another_in(members: MemberCluster, step: str) -> None:
    first = members.first()
    killed_at(first, step)
    second = members.new("n2")
    token = first.ask("token_create", "n2")["token"]
    try:
        second.ask("join", token)
    except TidegateError:
        assert step == "cluster.member.accepted"
    survives(first)
    if second.ask("show")["member"] is None:
        second.ask("join", first.ask("token_create", "n2")["token"])
    until(lambda: members.sees(first, "n2") == "online" and second.stage() == "ready")
    assert second.statuses() == {"n1": "online", "n2": "online"}


@pytest.mark.parametrize("step", sorted(REMOVING))
def test_a_member_killed_while_it_removes_another(members: MemberCluster, step: str) -> None:
    first = members.first()
    second, third = members.joined("n2", first), members.joined("n3", first)
    killed_at(first, step)
    with contextlib.suppress(TidegateError):
        first.ask("leave", "n3")
    survives(first)
    if members.sees(first, "n3") != "evicted":
        first.ask("leave", "n3")
    assert members.sees(second, "n3") == "evicted"
    process = third.node.process
    assert process is not None
    # Told or not, it is out: it goes on alone, or ends because it was refused.
    until(lambda: process.poll() is not None or _is_alone(third))
    until(lambda: _created(second, "after"))  # another owner may have to be found first
    until(lambda: _cells(first) == ["after"])


def _created(member: Member, name: str) -> bool:
    try:
        with member.client() as client:
            client.cell.create(name)
    except AlreadyExistsError:
        return True  # an earlier attempt came through
    except TidegateError:
        return False
    return True


def _cells(member: Member) -> list[str] | None:
    try:
        return cells(member)
    except TidegateError:
        return None


def _is_alone(member: Member) -> bool:
    try:
        return member.ask("show")["member"] is None
    except TidegateError:
        return False


def test_a_member_killed_while_it_forgets_the_cluster(members: MemberCluster) -> None:
    first = members.first()
    second = members.joined("n2", first)
    killed_at(second, "cluster.forget.set_aside")
    first.ask("leave", "n2")
    survives(second)
    assert second.ask("show")["member"] is None
    assert cells(second) == []
    token = first.ask("token_create", "n2")["token"]
    second.ask("join", token)
    until(lambda: members.sees(first, "n2") == "online" and second.stage() == "ready")
