"""A machine that was evicted, while its name is another machine's: refused on both ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_members import WHO_LEADS, MemberCluster, answer, members
from fix_node import until
from tidegate.cluster.identity import next_port
from tidegate.errors import TidegateError
from tidegate.server.roster import KNOWN_S

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = pytest.mark.slow

__all__ = ["members"]

SEEN_S = 15.0
READ = b"GET /v1/cluster/members HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def replaced(members: MemberCluster) -> tuple[Member, Member, Member]:
    """The first member, a machine that was evicted, and another one that has its name."""
    first = members.first()
    members.joined("n3", first)  # with two, the cluster database has no majority without one
    gone = members.joined("n2", first)
    gone.node.kill()
    first.ask("evict", "n2", force=True)
    other = members.new("other")
    other.ask("join", first.ask("token_create", "n2")["token"])
    until(lambda: other.stage() == "ready")
    until(lambda: members.sees(first, "n2") == "online")
    return first, gone, other


def test_an_evicted_certificate_is_refused_after_its_name_was_used_again(
    members: MemberCluster,
) -> None:
    """Tenants 14 and 15."""
    first, gone, other = replaced(members)
    for member in (first, other):
        for certificate, status in ((gone, b"403"), (other, b"200")):
            folder = certificate.node.state_dir / "cluster"
            wanted = b"HTTP/1.1 " + status
            until(
                lambda m=member, f=folder, w=wanted: answer(m.address, f, READ).startswith(w),  # type: ignore[misc]
                KNOWN_S + 1.0,
            )
    if members.engine == "dqlite":
        for member in (first, other):
            port = next_port(member.address)
            assert answer(port, other.node.state_dir / "cluster", WHO_LEADS)
            until(lambda p=port: not answer(p, gone.node.state_dir / "cluster", WHO_LEADS), SEEN_S)  # type: ignore[misc]

    refused = gone.node.refused()
    assert refused.returncode != 0
    assert "evicted" in refused.stderr
    # Tenants 20: one owner is listed, also while the evicted row has its name.
    assert [r["address"] for r in other.ask("list")["items"] if r["is_owner"]] == [first.address]
    rows = [row for row in first.ask("list")["items"] if row["status"] != "evicted"]
    assert {row["name"]: row["address"] for row in rows} == {
        "n1": first.address,
        "n2": other.address,
        "n3": members.members[1].address,
    }


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_a_connection_of_an_evicted_member_is_hung_up_on(members: MemberCluster) -> None:
    """Tenants 14: also the one that was open before."""
    first = members.first()
    members.joined("n3", first)
    second = members.joined("n2", first)
    second.node.stop()
    port = next_port(first.address)
    assert answer(port, second.node.state_dir / "cluster", WHO_LEADS)
    first.ask("evict", "n2", force=True)
    until(lambda: not answer(port, second.node.state_dir / "cluster", WHO_LEADS), SEEN_S)
    with pytest.raises(TidegateError, match="no member"):
        first.ask("leave", "n2")
