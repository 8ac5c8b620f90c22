"""Bad input and faults: one clear error with code, next step and exit status, and nothing left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fix_node import NodeProcess, Shop
from free_ports import free_port
from tidegate.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    source_server: LocalServer,
    target_server: LocalServer,
) -> Iterator[Shop]:
    """One shop for all of these tests: none of them may change anything."""
    folder = tmp_path_factory.mktemp("bad-input")
    source_server.create_database("bad_source")
    target_server.create_database("bad_target")
    made = Shop(
        NodeProcess(folder / "state"),
        source_server,
        target_server,
        "bad_source",
        "bad_target",
        folder,
    )
    made.fill(10)
    with made.connect("source") as connection:
        connection.execute("CREATE TABLE keyless (x int)")
        connection.execute("CREATE TABLE taken (id int PRIMARY KEY)")
    with made.connect("target") as connection:
        connection.execute("CREATE TABLE taken (id int PRIMARY KEY)")
        connection.execute("INSERT INTO taken VALUES (1)")
    made.node.start()
    made.describe()
    with made.node.client() as client:
        client.keyspace.create("locked", shards=["0"])
        client.tablet.create(
            "zone1-900",
            keyspace="locked",
            shard="0",
            conninfo=target_server.conninfo("bad_target"),
            secret=wrong_secret(folder),
            check=False,
        )
        client.keyspace.create("away", shards=["0"])
        client.tablet.create(
            "zone1-901",
            keyspace="away",
            shard="0",
            conninfo=f"host=127.0.0.1 port={free_port()} dbname=x user=y",
            check=False,
        )
        client.movetables.create(
            "first",
            "customer",
            source_keyspace="commerce",
            tables=["customer"],
            auto_start=False,
        )
    yield made
    made.node.stop()
    with made.connect("source") as connection:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = 'bad_source'"
        )


def wrong_secret(folder: Path) -> str:
    path = folder / "wrong"
    path.write_text("not the password")
    return f"file:{path}"


def state(world: Shop) -> dict[str, Any]:
    """Everything a failed command might leave behind."""
    with world.node.client() as client:
        workflows = [(w["name"], w["version"]) for w in client.workflow.list()["items"]]
        revision = client.routes.show()["revision"]
    tables = [world.tables(side) for side in ("source", "target")]
    return {
        "workflows": workflows,
        "revision": revision,
        "traces": world.traces(),
        "tables": tables,
    }


CREATE = "movetables create -w other -t customer --source-keyspace commerce"

CASES = {
    "unknown keyspace": ("keyspace show nope", 3, "TG-NOT-001"),
    "unknown keyspace of shards": ("shard list nope", 3, "TG-NOT-001"),
    "unknown source keyspace": (
        "movetables create -w other -t customer --source-keyspace nope --all-tables",
        3,
        "TG-NOT-001",
    ),
    "unknown target keyspace": (
        "movetables create -w other -t nope --source-keyspace commerce --all-tables",
        3,
        "TG-NOT-001",
    ),
    "unknown shard": ("shard show customer/40-80", 3, "TG-NOT-001"),
    "unknown shard of a reshard": (
        "reshard create -w other -t customer --source-shards 0 --target-shards -80,80-",
        3,
        "TG-NOT-001",
    ),
    "unknown table": (f"{CREATE} --tables nope", 4, "TG-PRE-001"),
    "unknown workflow": ("movetables status -w nope -t customer", 3, "TG-NOT-001"),
    "unknown workflow, switched": ("movetables switchtraffic -w nope -t customer", 3, "TG-NOT-001"),
    "unknown vindex": ("vindex map 1 --type nope", 3, "TG-NOT-001"),
    "unknown vdiff": ("vdiff show last -w first -t customer", 3, "TG-NOT-001"),
    "overlapping shards": ("keyspace create bad --shards -80,70-", 2, "TG-ARG-001"),
    "gapped shards": ("keyspace create bad --shards -80,90-", 2, "TG-ARG-001"),
    "malformed shards": ("keyspace create bad --shards -80,zz-", 2, "TG-ARG-001"),
    "gapped new shards": ("shard create customer/-80", 2, "TG-ARG-001"),
    "shard key NULL": ("vindex map null --type hash", 1, "TG-STR-004"),
    "shard key of the wrong type": ("vindex map abc --type hash", 1, "TG-STR-004"),
    "source equal to target": (
        "movetables create -w other -t customer --source-keyspace customer --all-tables",
        2,
        "TG-ARG-001",
    ),
    "second workflow of the same name": (
        "movetables create -w first -t customer --source-keyspace commerce --tables corder",
        7,
        "TG-DUP-001",
    ),
    "table without key": (f"{CREATE} --tables keyless", 4, "TG-PRE-001"),
    "target not empty": (f"{CREATE} --tables taken", 4, "TG-PRE-001"),
    "no tables named": (CREATE, 2, "TG-ARG-001"),
    "wrong password": (
        "movetables create -w other -t locked --source-keyspace commerce --tables corder",
        1,
        "TG-CON-002",
    ),
    "server down": (
        "movetables create -w other -t away --source-keyspace commerce --tables corder",
        1,
        "TG-CON-001",
    ),
    "timeout too short": ("movetables switchtraffic -w first -t customer --timeout 1ms", 2, None),
    "timeout not a duration": (
        "movetables switchtraffic -w first -t customer --timeout x",
        2,
        None,
    ),
    "switch without streams": ("movetables switchtraffic -w first -t customer", 1, "TG-PRE-000"),
    "complete before the switch": (
        "movetables complete -w first -t customer --yes",
        1,
        "TG-WFL-002",
    ),
    "complete without confirmation": ("movetables complete -w first -t customer", 2, "TG-ARG-001"),
    "keyspace in use": ("keyspace delete customer --recursive --yes", 1, "TG-PRE-000"),
    "tablet in use": ("tablet delete zone1-100 --yes", 1, "TG-PRE-000"),
    "unknown flag": (f"{CREATE} --colour red", 2, "TG-ARG-002"),
    "unknown command": ("movetables destroy", 2, "TG-ARG-002"),
    "missing flag": ("movetables create -w other", 2, "TG-ARG-002"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    world: Shop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    line, status, code = CASES[case]
    monkeypatch.setenv("TIDEGATE_URL", world.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", world.node.token)
    before = state(world)
    assert run([*line.split(), "-o", "json"]) == status
    written = capsys.readouterr()
    assert written.out == "", "standard output is for data"
    error = json.loads(written.err.splitlines()[-1])["error"]
    assert error["exit_status"] == status
    assert error["message"]
    assert error["next_step"]
    if code is not None:
        assert error["code"] == code
    assert state(world) == before
    run(line.split())
    text = capsys.readouterr().err
    assert f"error {error['code']}: " in text
    assert "next: " in text


@pytest.mark.parametrize(
    ("conninfo", "code"),
    [("wrong password", "TG-CON-002"), ("down", "TG-CON-001"), ("password=x", "TG-ARG-001")],
)
def test_a_tablet_that_cannot_be_used_is_refused(
    world: Shop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    conninfo: str,
    code: str,
) -> None:
    monkeypatch.setenv("TIDEGATE_URL", world.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", world.node.token)
    given = {
        "wrong password": world.source.conninfo(world.source_database),
        "down": f"host=127.0.0.1 port={free_port()} dbname=x user=y",
        "password=x": f"{world.source.conninfo(world.source_database)} password=hunter2",
    }[conninfo]
    before = state(world)
    line = ["tablet", "create", "zone1-7", "--keyspace", "customer", "--shard", "0"]
    secret = ["--types", "replica", "--secret", wrong_secret(world.folder)]
    assert run([*line, "--conninfo", given, *secret]) != 0
    text = capsys.readouterr().err
    assert code in text
    assert "next: " in text
    assert "hunter2" not in text
    assert "not the password" not in text
    assert state(world) == before


@pytest.mark.parametrize("token", ["wrong", "file:/nowhere/token", "env:NOT_SET_ANYWHERE"])
def test_a_wrong_token_is_refused(
    world: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv("TIDEGATE_URL", world.node.url)
    assert run(["keyspace", "list", "--token", token]) in {1, 2}
    text = capsys.readouterr().err
    assert "TG-API-001" in text or "TG-SEC-001" in text
    assert "next: " in text


def test_a_node_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run(["keyspace", "list", "--url", url, "--token", "x"]) == 1
    text = capsys.readouterr().err
    assert "TG-API-002" in text
    assert "tidegate serve" in text
