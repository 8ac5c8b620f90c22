"""One of three members is cut off, one way or both, and comes back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import httpx2
import pytest

from fix_gateways import Gateway, dialled_by
from fix_members import MemberCluster, members
from fix_node import until
from free_ports import free_address
from tidegate.cluster.ownership import TTL_S
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_members import Member

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("members", ["dqlite"], indirect=True),
]

__all__ = ["members"]

GOES_ON_S = 30.0
OFFLINE_S = 5
READY_AGAIN_S = TTL_S + 12
"""Its lease, a heartbeat of the owner, and what connections need to be made again."""


@dataclass
class Network:
    """Three members and what lies between them."""

    members: MemberCluster
    gateways: list[Gateway] = field(default_factory=list)
    deaf: Member | None = None
    """Nobody reaches it."""
    mute: Member | None = None
    """It reaches nobody."""

    def new(self, name: str) -> Member:
        """A member behind gateways of its own."""
        inside = free_address()
        member = self.members.prepared(name, "--member-listen", inside)
        outer, inner = (int(each.rpartition(":")[2]) for each in (member.address, inside))
        for step in (0, 1):
            made = Gateway(outer + step, inner + step, lambda port: self._is_shut(member, port))
            self.gateways.append(made)
        member.node.start()
        return member

    def _is_shut(self, host: Member, port: int) -> bool:
        if self.deaf is host:
            return True
        mute = self.mute
        if mute is None or mute is host:
            return False
        assert mute.node.process is not None
        return self._dialled_by(port, mute.node.process.pid)

    def __post_init__(self) -> None:
        self._dialled_by = cache(dialled_by)

    def heal(self) -> None:
        self.deaf = self.mute = None
        self._dialled_by = cache(dialled_by)

    def close(self) -> None:
        self.heal()
        for gateway in self.gateways:
            gateway.close()


@pytest.fixture
def network(members: MemberCluster) -> Iterator[Network]:
    """Three voters."""
    made = Network(members)
    first = made.new("n1")
    first.ask("enable", "n1")
    until(lambda: first.stage() == "ready")
    for name in ("n2", "n3"):
        member = made.new(name)
        member.ask("join", first.ask("token_create", name)["token"])
        until(lambda n=name: members.sees(first, n) == "online")  # type: ignore[misc]
    until(lambda: {row["role"] for row in first.listed().values()} == {"voter"})
    first.ask("set", "offline_threshold", str(OFFLINE_S))
    yield made
    made.close()


def readyz(member: Member) -> tuple[int, str]:
    try:
        answer = httpx2.get(f"{member.node.url}/readyz", timeout=30)
    except httpx2.HTTPError as error:
        return 0, str(error)
    return answer.status_code, answer.text


def writes(member: Member, name: str) -> bool:
    try:
        with member.client() as client:
            client.cell.create(name)
    except TidegateError:
        return False
    return True


@pytest.mark.parametrize("who", ["owner", "another"])
@pytest.mark.parametrize("how", ["nobody reaches it", "it is cut off"])
def test_the_majority_goes_on_and_the_one_cut_off_says_so_and_comes_back(
    network: Network, who: str, how: str
) -> None:
    """Situation 53's relative: nobody was given up, so everybody is a member again."""
    cluster = network.members
    owner = cluster.owner()
    lost = owner if who == "owner" else next(m for m in cluster.members if m is not owner)
    rest = [member for member in cluster.members if member is not lost]
    if how == "it is cut off":
        network.mute = lost
    network.deaf = lost

    until(lambda: writes(rest[0], "during"), GOES_ON_S)
    until(lambda: cluster.sees(rest[1], lost.name) == "offline", GOES_ON_S)
    status, why = until(lambda: found if (found := readyz(lost))[0] == 503 else None, GOES_ON_S)
    assert (status, "cluster database" in why or "leader" in why or "reached" in why) == (503, True)
    until(lambda: all(readyz(member)[0] == 200 for member in rest), GOES_ON_S)

    network.heal()
    healed = time.monotonic()
    until(lambda: readyz(lost)[0] == 200, READY_AGAIN_S)
    print(f"{who}, {how}: ready {time.monotonic() - healed:.1f} s after it healed")  # noqa: T201 - a bound that is held says what it saw
    until(lambda: set(lost.statuses().values()) == {"online"}, GOES_ON_S)
    assert writes(lost, "after")
    with rest[0].client() as client:
        assert {row["name"] for row in client.cell.list()["items"]} == {"during", "after"}
