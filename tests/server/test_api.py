from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from fix_node import NodeProcess, until
from tidegate.client import Client, token_of
from tidegate.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthorizedError,
)
from tidegate.router import HttpSource, Router
from tidegate.server.config import load
from tidegate.server.serving import listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def http(node: NodeProcess) -> Iterator[httpx2.Client]:
    """Raw requests without a token."""
    with httpx2.Client(base_url=node.url, trust_env=False) as made:
        yield made


@pytest.fixture
def bearer(node: NodeProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(node.token)}"}


def test_health_and_metrics_need_no_token(http: httpx2.Client) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    until(lambda: http.get("/readyz").status_code == 200)
    assert http.get("/readyz").json() == {"status": "ready"}
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "tidegate_topology_revision" in metrics.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic abc"},
    ],
)
def test_a_missing_or_wrong_token_is_refused(http: httpx2.Client, headers: dict[str, str]) -> None:
    answer = http.get("/v1/keyspaces", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    problem = answer.json()
    assert problem["code"] == "TG-API-001"
    assert problem["next_step"]
    assert http.post("/v1/cells", json={"name": "x"}, headers=headers).status_code == 401


def test_the_token_file_is_private_and_can_be_changed_while_the_node_runs(
    node: NodeProcess,
) -> None:
    path = node.state_dir / "tokens"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    with path.open("a") as file:
        file.write("another-token\n")
    with Client(node.url, "another-token") as client:
        client.cell.list()
    path.write_text(before)
    with Client(node.url, "another-token") as client, pytest.raises(UnauthorizedError):
        client.cell.list()


def test_a_newer_api_level_is_refused(http: httpx2.Client, bearer: dict[str, str]) -> None:
    answer = http.get("/v1/cells", headers={**bearer, "Tidegate-Api-Level": "99"})
    assert answer.json()["code"] == "TG-API-003"
    assert answer.headers["tidegate-api-level"] == "1"


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        ("GET /v1/nothing", None, 404),
        ("PATCH /v1/cells", None, 405),
        ("POST /v1/cells", b"{", 400),
        ("POST /v1/cells", b"{}", 400),
        ("POST /v1/cells", b'{"name": "a", "colour": "red"}', 400),
        ("POST /v1/cells", b'{"name": "no spaces"}', 400),
        ("PUT /v1/routingrules/table", b'{"rules": [{"from": 1}]}', 400),
        ("PUT /v1/routingrules/table", b'{"rule": []}', 400),
        ("PUT /v1/routingrules/colour", b'{"rules": []}', 400),
        ("POST /v1/vindex/map", b'{"type": "hash", "values": "x"}', 400),
        ("GET /v1/workflows/nope/nope", None, 404),
    ],
)
def test_every_failure_is_a_problem_with_a_next_step(
    http: httpx2.Client,
    bearer: dict[str, str],
    request_line: str,
    body: bytes | None,
    status: int,
) -> None:
    headers = {**bearer, "Content-Type": "application/json"}
    answer = http.request(*request_line.split(), content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"].startswith("TG-")
    assert problem["detail"]
    assert problem["next_step"]


def test_the_topology_is_made_shown_and_removed(client: Client) -> None:
    client.cell.create("cell1")
    client.keyspace.create("ks1", shards=["-80", "80-"])
    client.tablet.create(
        "cell1-1", keyspace="ks1", shard="-80", conninfo="host=nowhere", check=False
    )
    client.vschema.apply(
        "ks1",
        {
            "sharded": True,
            "vindexes": {"hash": {"type": "hash"}},
            "tables": {"t": {"column_vindexes": [{"column": "id", "name": "hash"}]}},
        },
    )
    shown = client.keyspace.show("ks1")
    assert [shard["name"] for shard in shown["shards"]] == ["-80", "80-"]
    assert shown["shards"][0]["tablets"][0]["alias"] == "cell1-1"
    assert client.tablet.show("cell1-1")["types"] == ["PRIMARY", "RDONLY", "REPLICA"]
    changed = client.tablet.update("cell1-1", conninfo="host=elsewhere", check=False, dry_run=True)
    assert (changed["conninfo"], changed["dry_run"]) == ("host=elsewhere", True)
    assert client.tablet.show("cell1-1")["conninfo"] == "host=nowhere"
    client.tablet.update("cell1-1", secret="env:TIDEGATE_SECRET_X", check=False)
    shown = client.tablet.update("cell1-1", conninfo="host=elsewhere", check=False)
    assert (shown["conninfo"], shown["secret"]) == ("host=elsewhere", "env:TIDEGATE_SECRET_X")
    assert client.tablet.update("cell1-1", without_secret=True, check=False)["secret"] is None
    with pytest.raises(InvalidArgumentError, match="password"):
        client.tablet.update("cell1-1", conninfo="host=x password=y", check=False)
    with pytest.raises(NotFoundError):
        client.tablet.update("cell1-9", secret="env:TIDEGATE_SECRET_X", check=False)
    assert [k["name"] for k in client.keyspace.list()["items"]] == ["ks1"]
    with pytest.raises(AlreadyExistsError):
        client.keyspace.create("ks1")
    with pytest.raises(FailedPreconditionError):
        client.keyspace.delete("ks1")
    with pytest.raises(FailedPreconditionError):
        client.cell.delete("cell1")
    client.keyspace.delete("ks1", recursive=True)
    client.cell.delete("cell1")
    assert client.keyspace.list()["items"] == []


def test_a_dry_run_of_the_topology_changes_nothing(client: Client) -> None:
    before = client.routes.show()["revision"]
    answer = client.keyspace.create("dry", shards=["0"], dry_run=True)
    assert answer["dry_run"]
    client.cell.create("dry", dry_run=True)
    with pytest.raises(NotFoundError):
        client.keyspace.delete("dry", dry_run=True)
    assert client.routes.show()["revision"] == before


def test_values_are_mapped_to_keyspace_ids_and_shards(client: Client) -> None:
    client.keyspace.create("mapped", shards=["-80", "80-"])
    items = client.vindex.map("hash", [1, 3, 5], keyspace="mapped")["items"]
    assert [item["keyspace_id"] for item in items] == [
        "166b40b44aba4bd6",
        "4eb190c9a2fa169c",
        "70bb023c810ca87a",
    ]
    assert [item["shard"] for item in items] == ["-80", "-80", "-80"]
    with pytest.raises(NotFoundError):
        client.vindex.map("nope", [1])
    with pytest.raises(NotFoundError):
        client.vindex.map("hash", [1], keyspace="nope")
    with pytest.raises(InvalidArgumentError):
        client.vindex.map("hash", [1], params={"nope": "1"})
    client.keyspace.delete("mapped", recursive=True)


@pytest.mark.alone
def test_followers_get_the_routes_and_every_change_within_100_ms(client: Client) -> None:
    with client.routes.watch() as events:
        first = next(events)
        assert first["revision"] == client.routes.show()["revision"]
        took = []
        for number in range(5):
            client.cell.create(f"event{number}")
            began = time.monotonic()
            event = next(events)
            took.append(time.monotonic() - began)
            assert {"name": f"event{number}"} in event["cells"]
        assert sorted(took)[2] < 0.1
        seen = event["revision"]
    with client.routes.watch(last_revision=seen) as events:
        client.cell.delete("event0")
        assert next(events)["revision"] == seen + 1, "what was seen is not sent again"
    for number in range(1, 5):
        client.cell.delete(f"event{number}")


def test_the_router_library_follows_this_node_and_reports(
    node: NodeProcess, client: Client
) -> None:
    client.keyspace.create("followed", shards=["0"])
    with Router(HttpSource(node.url, token=node.token), router_id="mine") as router:
        assert ("followed", "0") in router.routes().snapshot.shards
        client.cell.create("later")
        until(lambda: "later" in router.routes().snapshot.cells)

        def reported() -> bool:
            known = {r["router"]: r["revision"] for r in client.router.list()["items"]}
            return bool(known.get("mine") == client.routes.show()["revision"])

        until(reported)
        assert {r["state"] for r in client.router.list()["items"]} == {"following"}
        assert client.router.delete("mine", dry_run=True)["dry_run"]
        assert client.router.list()["items"]
    assert client.router.list()["items"] == []
    client.router.report("dead", 0)
    assert [r["state"] for r in client.router.list()["items"]] == ["behind"]
    client.router.delete("dead")
    assert client.router.list()["items"] == []
    client.cell.delete("later")
    client.keyspace.delete("followed", recursive=True)


def test_a_second_node_on_the_same_state_is_refused(node: NodeProcess) -> None:
    command = [sys.executable, "-m", "tidegate.cli.main", "serve", "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--state-dir", str(node.state_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert "TG-API-004" in done.stderr


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (["--listen", "nonsense"], {}, "TG-ARG-001"),
        (["--log-level", "loud"], {}, "log_level"),
        (["--listen", "0.0.0.0:0"], {}, "insecure_listen"),
        (["--listen", "[::]:0"], {}, "insecure_listen"),
        (
            ["--secret-folder", "/a", "--log-level", "x"],
            {"TIDEGATE_BODY_MAX_BYTES": "1"},
            "body_max",
        ),
        ([], {"TIDEGATE_SECRET_FOLDERS": "relative"}, "absolute"),
        ([], {"TIDEGATE_CONFIG": "/nowhere.toml"}, "does not exist"),
        (["--on-route-change", "/no/such/program x"], {}, "hook"),
        (["--state-dir", "/proc/nothing"], {}, "state directory"),
    ],
)
def test_a_node_with_wrong_settings_says_so_and_ends(
    tmp_path: Path, flags: list[str], environment: dict[str, str], said: str
) -> None:
    command = [sys.executable, "-m", "tidegate.cli.main", "serve", "--listen", "127.0.0.1:0"]
    state = [] if "--state-dir" in flags else ["--state-dir", str(tmp_path / "state")]
    listen = command[:-2] if "--listen" in flags else command
    done = subprocess.run(
        [*listen, *state, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_the_hook_gets_the_routes_after_each_change(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> {seen}\necho >> {seen}\n")
    hook.chmod(0o755)
    node = NodeProcess(tmp_path / "state", flags=("--on-route-change", str(hook))).start()
    try:
        with node.client() as client:
            client.cell.create("zone1")
        until(lambda: seen.exists() and '"zone1"' in seen.read_text())
        last: dict[str, Any] = json.loads(seen.read_text().splitlines()[-1])
        assert last["cells"] == [{"name": "zone1"}]
    finally:
        assert node.stop() == 0


def test_the_version_a_caller_saw_is_checked() -> None:
    from tidegate.server.api.common import check_version

    check_version(None, 3, "w")
    check_version('"3"', 3, "w")
    check_version("*", 3, "w")
    with pytest.raises(ConflictError):
        check_version('"2"', 3, "w")
    with pytest.raises(InvalidArgumentError):
        check_version('"x"', 3, "w")


def test_answers_are_not_held_back_for_an_acknowledgement(tmp_path: Path) -> None:
    """Without the protocol on the socket asyncio leaves Nagle's algorithm on: 40 ms an answer."""
    settings = load({"listen": "127.0.0.1:0", "state_dir": str(tmp_path)})

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def on_connect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listening(settings) as server:
            async with await asyncio.start_server(on_connect, sock=server):
                _, writer = await asyncio.open_connection(*server.getsockname())
                try:
                    return await asyncio.wait_for(found, 10)
                finally:
                    writer.close()

    assert asyncio.run(accepted()) != 0
