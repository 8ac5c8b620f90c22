"""The owner goes silent: another member ends its sessions, decides, and writers go on."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_members import MemberCluster, members, moving_shop
from fix_node import Shop, until
from tidegate.engines.postgres.sidecar import journal
from tidegate.errors import NoOwnerError, TidegateError
from tidegate.server.processes import start_ticks
from tidegate.steps import FREEZE_VARIABLE

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = [pytest.mark.slow, pytest.mark.alone]

__all__ = ["members", "moving_shop"]

SERVED_AGAIN_S = 15.0
"""No application is refused for longer, whatever happens to a node."""


def phase(member: Member) -> str | None:
    try:
        with member.client() as client:
            status = client.workflow.status("move", "customer")
    except TidegateError:
        return None
    return None if status["workflow"]["operation"] else str(status["phase"])


class Writer(threading.Thread):
    """An application at the source that keeps on writing; how long it was refused at most."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(daemon=True)
        self._shop = shop
        self._ending = threading.Event()
        self.refused_s = 0.0
        with shop.connect("source") as owner:
            owner.execute("CREATE ROLE writing LOGIN PASSWORD 'app'")
            owner.execute("GRANT SELECT, UPDATE ON customer TO writing")

    def run(self) -> None:
        shop, served_at = self._shop, time.monotonic()
        server, name = shop.source, shop.source_database
        with psycopg.connect(
            f"host=127.0.0.1 port={server.port} dbname={name} user=writing password=app",
            autocommit=True,
        ) as session:
            while not self._ending.wait(0.05):
                try:
                    session.execute("UPDATE customer SET name = 'x' WHERE id = 1")
                except psycopg.Error as error:
                    if error.sqlstate != "TG001":
                        raise
                else:
                    self.refused_s = max(self.refused_s, time.monotonic() - served_at)
                    served_at = time.monotonic()

    def finish(self) -> None:
        self._ending.set()
        self.join(10)


def frozen(pid: int) -> bool:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_writers_go_on_when_the_owner_freezes_inside_the_journal(
    members: MemberCluster, moving_shop: Shop
) -> None:
    """Situation 31: three nodes; the owner is stopped with the announcement's row locked.

    Situation 50: the switch was asked of another member, which does not wait for the owner either.
    """
    asked = members.members[0]
    until(lambda: phase(asked) == "running")
    for member in members.members:
        member.node.stop()
    for member in members.members:  # whoever becomes owner freezes at the step
        member.node.environment = {FREEZE_VARIABLE: journal.BEFORE_COMMIT}
        member.node.start()
    first = members.owner()
    second, third = (member for member in members.members if member is not first)
    until(lambda: phase(third) == "running")
    process = first.node.process
    assert process is not None

    writer = Writer(moving_shop)
    writer.start()

    told: list[TidegateError] = []

    def switch() -> None:
        with second.client() as client:
            try:
                client.workflow.switch_traffic("move", "customer", allow_unverified=True)
            except TidegateError as error:
                told.append(error)

    asking = threading.Thread(target=switch, daemon=True)
    asking.start()
    until(lambda: told or frozen(process.pid))
    assert told == [], "the switch came to the step"
    until(lambda: phase(third) == "reads switched", 40.0)  # the writes are taken back
    time.sleep(1.0)  # a second of writes, so that the longest refusal is over
    writer.finish()
    assert writer.refused_s < SERVED_AGAIN_S

    asking.join(10)
    assert not asking.is_alive()
    (error,) = told
    assert isinstance(error, NoOwnerError)
    assert f"{first.name} went silent" in error.message
    assert "/switch" in error.next_step

    process.send_signal(signal.SIGCONT)  # wakes up, and finds that it is nobody's owner
    until(lambda: phase(first) == "reads switched")
    assert start_ticks(process.pid) is not None
    with moving_shop.connect("source") as session:
        assert session.execute("SELECT count(*) FROM _tidegate.journal").fetchone() == (0,)
