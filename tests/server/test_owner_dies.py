"""The owner is killed in the middle of a switch: another member takes it back, or finishes it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_members import MemberCluster, members, moving_shop
from fix_node import Shop, until
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from fix_members import Member

pytestmark = pytest.mark.slow

__all__ = ["members", "moving_shop"]

TAKEN_UP_S = 40.0
"""The lease of the workflow has to expire, then what was begun is ended."""


def phase(member: Member) -> str | None:
    try:
        with member.client() as client:
            status = client.workflow.status("move", "customer")
    except TidegateError:
        return None
    return None if status["workflow"]["operation"] else str(status["phase"])


def writable(shop: Shop, side: str) -> bool:
    """Whether an application, which is not Tidegate's own role, can write there."""
    server = shop.source if side == "source" else shop.target
    name = shop.source_database if side == "source" else shop.target_database
    role = f"app_{name}"
    with shop.connect(side) as owner:
        found = owner.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone()
        if found is None:
            owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'app'")
        owner.execute(f"GRANT SELECT, UPDATE ON customer TO {role}")
    try:
        with psycopg.connect(
            f"host=127.0.0.1 port={server.port} dbname={name} user={role} password=app"
        ) as application:
            application.execute("UPDATE customer SET name = 'x' WHERE id = 1")
    except psycopg.Error as error:
        if error.sqlstate != "TG001":
            raise
        return False
    return True


def make_owner(members: MemberCluster, wanted: Member) -> None:
    """Restart whoever owns the work until it is the wanted one; each time another takes over."""
    for _ in range(20):
        owner = members.owner()
        if owner is wanted:
            return
        owner.node.stop()
        members.owner(of=[member for member in members.members if member is not owner])
        owner.node.start()
    raise AssertionError("another member is owner each time")


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
@pytest.mark.parametrize(
    ("step", "ends"),
    [("switch.source.denied", "reads switched"), ("switch.journaled", "switched")],
)
def test_another_member_ends_what_the_owner_began(
    members: MemberCluster, moving_shop: Shop, step: str, ends: str
) -> None:
    first, second, third = members.members
    until(lambda: phase(second) == "running")

    for member in (second, third):  # so that the first is owner again, and dies at the step
        member.node.stop()
    first.node.stop()
    first.node.environment = {"TIDEGATE_CRASH_AT": step}
    for member in (first, second):
        member.node.start()
    third.node.start()
    make_owner(members, first)
    until(lambda: phase(third) == "running")

    with second.client() as client, contextlib.suppress(TidegateError):
        client.workflow.switch_traffic("move", "customer", allow_unverified=True)
    process = first.node.process
    assert process is not None
    assert process.wait(60) == -9
    until(lambda: phase(third) == ends, TAKEN_UP_S)
    assert writable(moving_shop, "source") is (ends == "reads switched")
    assert writable(moving_shop, "target") is (ends == "switched")
