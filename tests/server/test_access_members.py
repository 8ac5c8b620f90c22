"""Tokens and the audit log of a cluster: one for all members, whichever is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest

from fix_members import members
from fix_node import until
from tidegate.client import Client, token_of
from tidegate.errors import ForbiddenError, UnauthorizedError

if TYPE_CHECKING:
    from fix_members import MemberCluster

__all__ = ["members"]

pytestmark = [pytest.mark.slow]


def test_members_agree_on_tokens_and_keep_one_audit_log(members: MemberCluster) -> None:
    first = members.first("n1")
    second = members.joined("n2", first)
    # the token the first node began with is good at the node that joined, whose file has its own
    assert token_of(first.node.token) != token_of(second.node.token)
    with Client(second.node.url, first.node.token) as client:
        token = client.token.create("deploy", "operate")["token"]
    for member in (first, second):
        with Client(member.node.url, token) as client:
            until(lambda client=client: client.node.show())  # type: ignore[misc]
            client.cell.create(f"by-{member.name}")
            with pytest.raises(ForbiddenError):
                client.token.list()
    with first.client() as client:
        entries = client.audit.list(limit=4)["items"]
        assert {entry["caller"] for entry in entries} == {"deploy"}, "passed on with its name"
        assert {entry["origin"] for entry in entries} == {"127.0.0.1"}
        assert client.audit.verify()["is_intact"]
    with second.client() as client:
        assert client.audit.list(limit=4)["items"] == entries
        client.token.revoke("deploy")
    for member in (first, second):

        def refused(url: str = member.node.url) -> bool:
            try:
                with Client(url, token) as theirs:
                    theirs.node.show()
            except UnauthorizedError:
                return True
            return False

        until(refused, 10)


def test_only_a_member_says_on_whose_behalf_it_asks(members: MemberCluster) -> None:
    """A caller that claims to be somebody else keeps its own role, at the owner too."""
    first = members.first("n1")
    second = members.joined("n2", first)
    with first.client() as client:
        token = client.token.create("reader", "read")["token"]
    headers = {
        "Authorization": f"Bearer {token}",
        "Tidegate-Caller": '["root", "admin", "::1"]',
        "Tidegate-Forwarded-By": "n1",
    }
    for member in (first, second):
        with httpx2.Client(base_url=member.node.url, headers=headers, trust_env=False) as http:
            answer = until(lambda http=http: _answered(http))  # type: ignore[misc]
            assert answer == 403


def _answered(http: httpx2.Client) -> int | None:
    status = http.post("/v1/cells", json={"name": "x"}).status_code
    return status if status != 401 else None
