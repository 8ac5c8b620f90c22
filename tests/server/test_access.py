"""Who may do what, and what is written down about it."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from fastapi.routing import APIRoute

from fix_node import NodeProcess, until
from tidegate.cli.main import run
from tidegate.client import Client, token_of
from tidegate.errors import (
    AlreadyExistsError,
    ForbiddenError,
    InvalidArgumentError,
    NotFoundError,
    UnauthorizedError,
)
from tidegate.server.access import AccessRole, role_of
from tidegate.server.app import OPEN_PATHS, ROUTERS
from tidegate.server.auditing import NAMED, names_in
from tidegate.server.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path

READ, OPERATE, ADMIN = AccessRole

#: What every role from this one on may do, and none below it.
NEEDS = {
    "GET /v1/keyspaces": READ,
    "GET /v1/routes": READ,
    "POST /v1/routers/{name}": READ,
    "POST /v1/vindex/map": READ,
    "POST /v1/cells": OPERATE,
    "POST /v1/movetables": OPERATE,
    "POST /v1/schema/copy": OPERATE,
    "POST /v1/schema/diff": READ,
    "POST /v1/workflows/{keyspace}/{name}/switchtraffic": OPERATE,
    "POST /v1/tenant-runs": OPERATE,
    "POST /v1/tablets": ADMIN,
    "PATCH /v1/tablets/{alias}": ADMIN,
    "POST /v1/migrations": ADMIN,
    "GET /v1/cluster/backup": ADMIN,
    "POST /v1/cluster/join": ADMIN,
    "DELETE /v1/cluster/members/{name}": ADMIN,
    "POST /v1/cluster/tokens": ADMIN,
    "GET /v1/tokens": ADMIN,
    "POST /v1/tokens": ADMIN,
    "GET /v1/audit": ADMIN,
}


def routes() -> dict[str, AccessRole | None]:
    return {
        f"{method} {route.path}": role_of(route.dependencies)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


def test_every_route_says_which_role_it_needs() -> None:
    found = routes()
    open_ones = {each for each, role in found.items() if role is None}
    assert open_ones == {f"GET {path}" for path in OPEN_PATHS if path != "/openapi.json"}
    for each, role in NEEDS.items():
        assert found[each] is role, each


def test_what_changes_something_needs_more_than_to_read() -> None:
    harmless = {"POST /v1/routers/{name}", "POST /v1/vindex/map", "POST /v1/schema/diff"}
    for each, role in routes().items():
        if not each.startswith("GET ") and each not in harmless:
            assert role in {OPERATE, ADMIN}, each


def make(client: Client, role: str, name: str | None = None) -> str:
    return str(client.token.create(name or f"a-{role}", role)["token"])


@pytest.fixture(scope="module")
def by_role(node: NodeProcess) -> dict[str, str]:
    with node.client() as client:
        return {role: make(client, role) for role in AccessRole}


def test_a_role_may_do_what_it_may_and_no_more(node: NodeProcess, by_role: dict[str, str]) -> None:
    with Client(node.url, by_role["read"]) as client:
        client.keyspace.list()
        client.router.report("mine", 0)
        with pytest.raises(ForbiddenError, match="role operate; a-read has read") as caught:
            client.cell.create("x")
        assert caught.value.details == {"needs": "operate", "role": "read"}
        assert "--role operate" in caught.value.next_step
    with Client(node.url, by_role["operate"]) as client:
        client.cell.create("operated")
        client.cell.delete("operated")
        with pytest.raises(ForbiddenError, match="role admin"):
            client.token.list()
        with pytest.raises(ForbiddenError, match="role admin"):
            client.tablet.create(
                "c-1", keyspace="k", shard="0", conninfo="host=x", check=False, dry_run=True
            )
        with pytest.raises(ForbiddenError, match="role admin"):
            client.audit.list()
        # Somebody else's SQL is no more an operator's than somebody else's program.
        with pytest.raises(ForbiddenError, match="role admin"):
            client.tenant.discover("saas", query="SELECT 'a' AS schema")
        with pytest.raises(ForbiddenError, match="role admin"):
            client.tenant.upgrade(keyspace="saas", discover_query="SELECT 1", dry_run=True)
    with Client(node.url, by_role["admin"]) as client:
        assert {"a-read", "a-operate", "a-admin"} <= {
            t["name"] for t in client.token.list()["items"]
        }
    with node.client() as client:
        client.router.delete("mine")


def test_a_token_is_shown_once_and_kept_as_a_hash(node: NodeProcess, client: Client) -> None:
    token = make(client, "read", "once")
    assert token not in str(client.token.list())
    files = [path for path in node.state_dir.iterdir() if path.is_file()]
    assert files
    for path in files:
        assert token.encode() not in path.read_bytes(), path
    assert stat.S_IMODE((node.state_dir / "tokens.hashes").stat().st_mode) == 0o600
    assert token not in node.log.read_text()
    client.token.revoke("once")


def test_a_revoked_token_is_refused_at_once(node: NodeProcess, client: Client) -> None:
    token = make(client, "read", "gone")
    with Client(node.url, token) as theirs:
        theirs.keyspace.list()
        client.token.revoke("gone", dry_run=True)
        theirs.keyspace.list()
        client.token.revoke("gone")
        with pytest.raises(UnauthorizedError):
            theirs.keyspace.list()
    with pytest.raises(NotFoundError):
        client.token.revoke("gone")


def test_an_expired_token_is_refused_and_its_name_is_free(
    node: NodeProcess, client: Client
) -> None:
    token = str(client.token.create("short", "read", ttl_s=60)["token"])
    with Client(node.url, token) as theirs:
        theirs.keyspace.list()
        with pytest.raises(AlreadyExistsError):
            client.token.create("short", "read")
        with closing(sqlite3.connect(node.state_dir / "cluster.db")) as there:
            there.execute("UPDATE access_token SET expires_at_ms = 1000 WHERE name = 'short'")
            there.commit()

        def refused() -> bool:
            try:
                theirs.keyspace.list()
            except UnauthorizedError as error:
                return "expired" in error.message
            return False

        until(refused, 10)
    assert client.token.create("short", "admin", ttl_s=3600)["role"] == "admin"
    client.token.revoke("short")


@pytest.mark.parametrize(
    ("name", "ttl_s"), [("", None), ("a b", None), ("x", 1), ("x", 1e12), ("x" * 101, None)]
)
def test_a_token_that_cannot_be_is_refused(client: Client, name: str, ttl_s: float | None) -> None:
    with pytest.raises(InvalidArgumentError):
        client.token.create(name, "read", ttl_s=ttl_s)


def test_the_first_token_is_admin_and_outlives_its_file(node: NodeProcess, client: Client) -> None:
    path = node.state_dir / "tokens"
    first = token_of(node.token)
    before = path.read_text()
    try:
        path.write_text("tg_another_one_of_this_node_alone\n")
        with Client(node.url, first) as theirs:
            assert theirs.token.list()["items"]
    finally:
        path.write_text(before)
    assert "first" in {each["name"] for each in client.token.list()["items"]}


def test_a_node_without_its_database_still_knows_its_people(tmp_path: Path) -> None:
    """The copy of the hashes: who asks is known before the cluster database is open."""
    made = NodeProcess(tmp_path / "state").start()
    with made.client() as client:
        token = make(client, "operate")
    made.stop()
    known = Tokens(tmp_path / "state" / "tokens")
    assert known.check(f"Bearer {token}").role is OPERATE
    with pytest.raises(UnauthorizedError):
        known.check("Bearer tg_unknown")


def test_every_changing_call_is_in_the_audit_log(
    node: NodeProcess, client: Client, by_role: dict[str, str]
) -> None:
    """Who, what, from where, and how it ended; also what was refused by the services."""
    with Client(node.url, by_role["operate"]) as theirs:
        theirs.cell.create("audited")
        with pytest.raises(AlreadyExistsError):
            theirs.cell.create("audited")
        theirs.cell.list()
        theirs.cell.delete("audited")
    found = client.audit.list(limit=6)["items"]
    assert [(e["what"], e["outcome"]) for e in reversed(found)] == [
        ('POST /v1/cells {"name": "audited"}', 0),
        ('POST /v1/cells {"name": "audited"}', 201),
        ('POST /v1/cells {"name": "audited"}', 0),
        ('POST /v1/cells {"name": "audited"}', 409),
        ("DELETE /v1/cells/audited", 0),
        ("DELETE /v1/cells/audited", 200),
    ]
    assert {(e["caller"], e["role"], e["origin"]) for e in found} == {
        ("a-operate", "operate", "127.0.0.1")
    }
    assert client.audit.list(before=found[0]["seq"], limit=1)["items"][0] == found[1]
    assert client.audit.verify()["is_intact"]


def test_the_command_line_shows_and_verifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = NodeProcess(tmp_path / "state").start()
    try:
        monkeypatch.setenv("TIDEGATE_URL", made.url)
        monkeypatch.setenv("TIDEGATE_TOKEN", made.token)
        assert run(["token", "create", "ci", "--role", "operate", "--ttl", "90d"]) == 0
        token = capsys.readouterr().out.strip()
        assert token.startswith("tg_")
        monkeypatch.setenv("TIDEGATE_TOKEN", token)
        assert run(["cell", "create", "zone1"]) == 0
        assert run(["audit", "list"]) == 1
        assert "role admin" in capsys.readouterr().err
        monkeypatch.setenv("TIDEGATE_TOKEN", made.token)
        assert run(["audit", "list"]) == 0
        printed = capsys.readouterr().out
        assert "POST /v1/tokens" in printed
        assert "ci" in printed
        assert run(["audit", "verify"]) == 0
        with closing(sqlite3.connect(tmp_path / "state" / "cluster.db")) as there:
            there.execute("DELETE FROM audit_entry WHERE seq = (SELECT max(seq) FROM audit_entry)")
            there.commit()
        assert run(["audit", "verify"]) == 5
        assert "missing at the end" in capsys.readouterr().out
        assert run(["token", "revoke", "ci", "--yes"]) == 0
        capsys.readouterr()
        assert run(["token", "list", "-o", "name"]) == 0
        assert capsys.readouterr().out.split() == ["first"]
    finally:
        made.stop()


def test_no_text_of_a_body_gets_into_the_audit_log() -> None:
    assert names_in(b'{"token": "x", "conninfo": "y", "secret": "z", "where": "w"}') == {}
    assert names_in(b"[1]") == names_in(b"{") == names_in(b"") == {}
    assert names_in(b'{"name": "a", "dry_run": true, "role": null}') == {
        "name": "a",
        "dry_run": True,
    }
    assert not {"token", "conninfo", "secret", "secrets", "value", "url_variable"} & set(NAMED)


def test_an_answer_with_a_secret_is_not_kept_for_repetition(node: NodeProcess) -> None:
    """A token that was made with an Idempotency-Key is in the cluster database as a hash only."""
    import httpx2

    headers = {"Authorization": f"Bearer {token_of(node.token)}", "Idempotency-Key": "k" * 20}
    with httpx2.Client(base_url=node.url, headers=headers, trust_env=False) as http:
        made = http.post("/v1/tokens", json={"name": "keyed", "role": "read"})
        assert made.status_code == 201
        assert http.post("/v1/tokens", json={"name": "keyed", "role": "read"}).status_code == 409
    with closing(sqlite3.connect(node.state_dir / "cluster.db")) as there:
        kept = str(there.execute("SELECT * FROM request_answer").fetchall())
    assert made.json()["token"] not in kept
