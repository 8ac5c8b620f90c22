"""A cluster that goes on after a recovery, and the members that were given up and come back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from fix_members import WHO_LEADS, MemberCluster, answer, members, moving_shop
from fix_node import Shop, until
from tidegate.cluster.generation import first_epoch
from tidegate.cluster.identity import next_port
from tidegate.errors import NoOwnerError, TidegateError

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("members", ["dqlite"], indirect=True),
]

__all__ = ["members", "moving_shop"]

GIVEN_UP_S = 60


def recovered(member: Member) -> None:
    """Kill nothing: recover a member that is stopped, then start it."""
    command = [sys.executable, "-m", "tidegate.cli.main", "cluster", "recover", "-o", "json"]
    command += ["--yes", "--state-dir", str(member.node.state_dir)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["name"] == member.name
    member.node.start()
    until(lambda: member.stage() == "ready")


def cells(member: Member) -> list[str]:
    with member.client() as client:
        return [row["name"] for row in client.cell.list()["items"]]


def create_cell(member: Member, name: str) -> None:
    """As soon as there is an owner, the one before having been killed."""

    def created() -> bool:
        try:
            with member.client() as client:
                client.cell.create(name)
        except NoOwnerError:
            return False
        return True

    until(created)


def three(members: MemberCluster) -> tuple[Member, Member, Member]:
    """Three voters."""
    first = members.first()
    second, third = members.joined("n2", first), members.joined("n3", first)
    until(lambda: {row["role"] for row in first.listed().values()} == {"voter"})
    return first, second, third


def test_members_given_up_are_refused_and_the_recovered_one_goes_on(
    members: MemberCluster,
) -> None:
    """Situation 53: the lost majority comes back after a recovery."""
    first, second, third = three(members)
    create_cell(first, "before")
    for member in (first, second, third):
        member.node.kill()
    recovered(first)
    create_cell(first, "acknowledged")

    for member in (second, third):
        refused = member.node.refused()
        assert refused.returncode != 0
        assert "TG-CLU-007" in refused.stderr
        assert "the cluster was recovered on member n1" in refused.stderr
    for address, question in (
        (first.address, b"GET /v1/cells HTTP/1.1\r\nHost: x\r\n\r\n"),
        (next_port(first.address), WHO_LEADS),
    ):
        assert answer(address, first.node.state_dir / "cluster", question)
        assert not answer(address, second.node.state_dir / "cluster", question)
    assert first.statuses() == {"n1": "online", "n2": "evicted", "n3": "evicted"}
    assert cells(first) == ["acknowledged", "before"]

    # A second recovery is one more generation, and what the first gave up is told of the last.
    first.node.kill()
    recovered(first)
    assert "TG-CLU-007" in third.node.refused().stderr
    fourth = members.joined("n4", first)
    assert cells(fourth) == ["acknowledged", "before"]


def test_members_given_up_that_run_already_end_once_they_meet_the_recovered_one(
    members: MemberCluster,
) -> None:
    """Situation 53: they came up while the recovered member was down, as a cluster of their own."""
    first, second, third = three(members)
    for member in (first, second, third):
        member.node.kill()
    starting = [threading.Thread(target=member.node.start) for member in (second, third)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    until(lambda: second.stage() == third.stage() == "ready")
    recovered(first)
    create_cell(first, "acknowledged")
    for member in (second, third):
        process = member.node.process
        assert process is not None
        assert process.wait(GIVEN_UP_S) != 0
        member.node.process = None
        assert "TG-CLU-007" in member.node.log.read_text()
    assert cells(first) == ["acknowledged"]


@pytest.mark.timeout(240)
def test_shards_refuse_the_owner_of_an_older_generation(
    members: MemberCluster, moving_shop: Shop
) -> None:
    """Situation 53: the two clusters cannot reach each other, but both reach the shards."""
    first, second, third = members.members
    until(lambda: {row["role"] for row in first.listed().values()} == {"voter"})
    for member in members.members:
        member.node.kill()
    # As a member sees it whose peers are out of reach: nobody it knows is the recovered one.
    for member in (second, third):
        path = member.node.state_dir / "cluster" / "member.json"
        known = json.loads(path.read_text())
        known["peers"] = [each for each in known["peers"] if each != first.address]
        path.write_text(json.dumps(known))
    recovered(first)

    def epoch() -> int:
        with moving_shop.connect("target") as target:
            row = target.execute("SELECT max(epoch) FROM _tidegate.stream").fetchone()
        assert row is not None
        return int(row[0])

    until(lambda: epoch() >= first_epoch(1))
    with first.client() as client:
        until(lambda: client.workflow.status("move", "customer")["phase"] == "running")
    first.node.stop()  # its workers too: nobody is in the way of the others but the rows
    reached = epoch()
    starting = [threading.Thread(target=member.node.start) for member in (second, third)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    until(lambda: second.stage() == third.stage() == "ready")
    until(lambda: second.ask("show")["owner"] in {"n2", "n3"})  # the dead one's lease is over
    with second.client() as client:
        with pytest.raises(TidegateError, match="belongs to generation") as refused:
            client.movetables.cancel("move", "customer")
        assert refused.value.code == "TG-CLU-007"
        workers = until(lambda: [s for s in client.node.spans()["items"] if s.get("error")])
    assert "belongs to generation" in json.dumps(workers)
    assert epoch() == reached
