"""Cluster operations on a real node and real servers: enqueued, killed, followed to their end."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_fleet import PLAIN, SCHEMA, SHARDED, TABLES
from fix_node import NodeProcess, until
from tidegate.cli.main import run
from tidegate.client import Client
from tidegate.errors import (
    ExitStatus,
    FailedPreconditionError,
    ForbiddenError,
    InvalidArgumentError,
    NotFoundError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.engines.postgres.local import LocalServer

ENDS_S = 60.0
SPLIT = {"keyspace": "commerce", "source_shard_list": "0", "dest_shard_list": "-80,80-"}
VERTICAL = {
    "source_keyspace": "commerce",
    "dest_keyspace": "shop",
    "shard_list": "0",
    "tables": ",".join(TABLES),
}


class World:
    """A node that knows ``commerce`` with rows, its empty shards, and an empty ``shop``."""

    def __init__(
        self, folder: Path, server: LocalServer, new_database: Callable[[LocalServer], str]
    ) -> None:
        self.node = NodeProcess(folder / "state")
        self.server = server
        self.secret = folder / "password"
        self.secret.write_text(server.password)
        self.databases = {
            place: new_database(server)
            for place in ("commerce/0", "commerce/-80", "commerce/80-", "shop/0")
        }
        with self.connect("commerce/0") as connection:
            connection.execute(SCHEMA.replace("SET ROLE application;", ""))

    def connect(self, place: str) -> psycopg.Connection[Any]:
        conninfo = self.server.conninfo(self.databases[place])
        return psycopg.connect(conninfo, password=self.server.password, autocommit=True)

    def describe(self) -> None:
        with self.node.client() as client:
            client.cell.create("zone1")
            client.keyspace.create("commerce", shards=["0"])
            client.keyspace.create("shop", shards=["0"])
            client.shard.create("commerce", "-80", "80-")
            for number, (place, name) in enumerate(self.databases.items(), start=100):
                keyspace, _, shard = place.partition("/")
                client.tablet.create(
                    f"zone1-{number}",
                    keyspace=keyspace,
                    shard=shard,
                    conninfo=self.server.conninfo(name),
                    secret=f"file:{self.secret}",
                )
            client.vschema.apply("shop", PLAIN.to_json())

    def rows(self, *places: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for place in places:
            with self.connect(place) as connection:
                for table in TABLES:
                    query = f"SELECT '{table}', t.* FROM public.{table} AS t"
                    found += connection.execute(query).fetchall()
        return sorted(found, key=repr)

    def kill_and_start(self) -> None:
        self.node.kill()
        self.node.environment = {}
        self.node.start()


@pytest.fixture
def world(
    tmp_path: Path, source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> Iterator[World]:
    made = World(tmp_path, source_server, new_database)
    made.node.start()
    made.describe()
    yield made
    made.node.stop()


def task_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    tasks = [task for container in found["containers"] for task in container["tasks"]]
    return next((task for task in tasks if task["name"] == name), {"state": "PLANNED"})


def reached(world: World, id_: str, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The operation once it is so; fails at once when it has failed."""

    def look() -> dict[str, Any] | None:
        try:
            with world.node.client() as client:
                found = client.operation.show(id_)
        except TidegateError:
            return None
        assert found["state"] != "FAILED", found["error"]
        return found if check(found) else None

    return until(look, ENDS_S)


def test_a_resharding_reaches_its_end_although_the_node_is_killed_in_the_copy_and_at_a_gate(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """automation 1, 5 and 16: taken up after each kill, gates kept, approvals audited."""
    with world.node.client() as client:
        client.vschema.apply("commerce", SHARDED.to_json())
        before = world.rows("commerce/0")
        added = client.operation.enqueue(
            "HorizontalReshardingTask", SPLIT, key="split", pause_before=["switch"]
        )
    id_ = added["id"]
    reached(world, id_, lambda found: task_of(found, "SplitCloneTask")["state"] == "RUNNING")
    world.kill_and_start()
    found = reached(world, id_, lambda found: found["state"] == "WAITING" and found["why"] != "")
    assert "approval before switch" in found["why"]
    assert task_of(found, "MigrateServedTypesTask")["state"] == "NOT_STARTED"
    world.kill_and_start()
    monkeypatch.setenv("TIDEGATE_URL", world.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", world.node.token)
    for _ in range(3):
        reached(world, id_, lambda found: "approval" in found["why"])
        assert run(["operation", "approve", id_]) == ExitStatus.DONE
    assert run(["operation", "watch", id_, "--timeout", "60s"]) == ExitStatus.DONE
    capsys.readouterr()
    assert run(["operation", "show", id_, "-o", "json"]) == ExitStatus.DONE
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["tasks_done"]) == ("SUCCEEDED", 11)
    with world.node.client() as client:
        again = client.operation.enqueue(
            "HorizontalReshardingTask", SPLIT, key="split", pause_before=["switch"]
        )
        assert again["id"] == id_
        serving = {row["name"]: row["serving"] for row in client.shard.list("commerce")["items"]}
        assert serving == {"0": False, "-80": True, "80-": True}
        (listed,) = client.workflow.list()["items"]
        assert listed["state"] == "switched"
        audited = [row["what"] for row in client.audit.list()["items"]]
        assert any(f"POST /v1/operations/{id_}/approve" in what for what in audited)
        with pytest.raises(TidegateError, match="has ended"):
            client.operation.cancel(id_)
    assert world.rows("commerce/-80", "commerce/80-") == before


def test_a_switch_that_was_done_and_not_recorded_is_found_done(world: World) -> None:
    """automation 7: killed between the effect and its record, the probe finds it."""
    world.node.stop()
    # The eighth task to return is the last one: the switch of writes.
    world.node.environment = {"TIDEGATE_CRASH_AT": "operations.task_acted#8"}
    world.node.start()
    before = world.rows("commerce/0")
    with world.node.client() as client:
        client.vschema.apply("commerce", PLAIN.to_json())
        id_ = client.operation.enqueue("VerticalSplitTask", VERTICAL)["id"]
    assert world.node.process is not None
    assert world.node.process.wait(ENDS_S) == -9
    world.kill_and_start()
    found = reached(world, id_, lambda found: found["state"] == "SUCCEEDED")
    last = found["containers"][-1]["tasks"][0]
    assert (last["parameters"]["type"], last["attempts"]) == ("primary", 2)
    assert "No changes required" in last["output"]
    assert world.rows("shop/0") == before
    with world.node.client() as client:
        rules = client.routingrules.show()["rules"]
        assert {rule["to_tables"][0] for rule in rules} >= {"shop.customers", "shop.orders"}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A node that knows shards, and is never asked to touch a row."""
    made = World.__new__(World)
    folder = tmp_path_factory.mktemp("operations")
    made.node = NodeProcess(folder / "state").start()
    with made.node.client() as client:
        client.cell.create("zone1")
        client.keyspace.create("commerce", shards=["0"])
        client.shard.create("commerce", "-80", "80-")
        client.keyspace.create("bare", shards=["0"])
        client.shard.create("bare", "-80", "80-")
        for number, shard in enumerate(("0", "-80", "80-")):
            client.tablet.create(
                f"zone1-{number}00",
                keyspace="commerce",
                shard=shard,
                conninfo="host=127.0.0.1 port=1 dbname=nothing user=nobody",
                check=False,
            )
    yield made
    made.node.stop()


@pytest.fixture
def quiet(described: World) -> Iterator[Client]:
    with described.node.client() as client:
        yield client


@pytest.mark.parametrize(
    ("task", "change", "error", "says"),
    [
        ("SplitCloneTask", {}, InvalidArgumentError, "SplitCloneTask.* not a cluster operation"),
        ("HorizontalReshardingTask", {"keyspace": ""}, InvalidArgumentError, "missing: keyspace"),
        ("HorizontalReshardingTask", {"zzz": "1"}, InvalidArgumentError, "unknown.*zzz"),
        ("HorizontalReshardingTask", {"keyspace": "none"}, NotFoundError, "none"),
        ("HorizontalReshardingTask", {"keyspace": "bare"}, FailedPreconditionError, "primary"),
        ("HorizontalReshardingTask", {"dest_shard_list": "-80"}, InvalidArgumentError, "shard 0"),
        (
            "HorizontalReshardingTask",
            {"dest_shard_list": "-40,40-80,80-"},
            NotFoundError,
            "-40",
        ),
        ("HorizontalReshardingTask", {"dest_shard_list": "-80,-80"}, InvalidArgumentError, "twice"),
        ("HorizontalReshardingTask", {"dest_shard_list": "-8,8-"}, InvalidArgumentError, "-8"),
        (
            "HorizontalReshardingTask",
            {"source_shard_list": "-80,80-", "dest_shard_list": "0"},
            FailedPreconditionError,
            "does not serve",
        ),
        (
            "HorizontalReshardingTask",
            {"exclude_tables": "t"},
            InvalidArgumentError,
            "exclude_tables=t would have no effect",
        ),
        (
            "HorizontalReshardingTask",
            {"min_healthy_rdonly_tablets": "two"},
            InvalidArgumentError,
            "min_healthy_rdonly_tablets=two is not a count",
        ),
    ],
)
def test_what_could_never_work_is_refused_before_anything_is_stored(
    quiet: Client,
    task: str,
    change: dict[str, str],
    error: type[TidegateError],
    says: str,
) -> None:
    """automation 12: typed parameters, ranges that cover each other, at the enqueue."""
    for dry_run in (True, False):
        with pytest.raises(error, match=says) as caught:
            quiet.operation.enqueue(task, SPLIT | change, dry_run=dry_run)
        assert caught.value.next_step
    assert quiet.operation.list(name=task)["items"] == []


def test_a_dry_run_prints_the_plan_and_stores_nothing(
    described: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """automation 12: with every check of an enqueue."""
    monkeypatch.setenv("TIDEGATE_URL", described.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", described.node.token)
    words = [f"{name}={value}" for name, value in SPLIT.items()]
    command = ["operation", "enqueue", "HorizontalReshardingTask", *words, "--dry-run"]
    assert run(command) == ExitStatus.DONE
    said = capsys.readouterr().out
    assert "SplitCloneTask keyspace=commerce source_shard=0" in said
    assert said.count("MigrateServedTypesTask") == 3
    with described.node.client() as client:
        assert client.operation.list()["items"] == []


def test_a_reader_may_look_and_not_enqueue(described: World, quiet: Client) -> None:
    """automation 25: by the role of the token."""
    token = quiet.token.create("looker", "read")["token"]
    with Client(described.node.url, token) as reader:
        assert reader.operation.list()["items"] == []
        with pytest.raises(ForbiddenError, match="operate"):
            reader.operation.enqueue("HorizontalReshardingTask", SPLIT)


def test_an_operation_that_is_not_there_is_named(quiet: Client) -> None:
    for ask in (quiet.operation.show, quiet.operation.log, quiet.operation.pause):
        with pytest.raises(NotFoundError, match="no operation nothing"):
            ask("nothing")


@pytest.mark.alone
def test_a_change_is_seen_at_once_and_a_follower_that_comes_back_misses_no_line(
    quiet: Client,
) -> None:
    """automation 15 and 17: lines and changes as events, from any line on, to the end."""
    gate = ["prepare"]
    id_ = quiet.operation.enqueue("HorizontalReshardingTask", SPLIT, pause_before=gate)["id"]
    until(lambda: quiet.operation.show(id_)["state"] == "WAITING" or None, ENDS_S)
    assert quiet.operation.show(id_)["servers"] == ["127.0.0.1:1"]
    seen = [news["seq"] for news in quiet.operation.log(id_, limit=2)["items"]]
    lines, states = list(seen), list[str]()
    for news in quiet.operation.follow(id_, after=seen[-1]):
        if "seq" in news:
            lines.append(news["seq"])
        elif not states:
            states.append(news["state"])
            asked_at = time.monotonic()
            quiet.operation.cancel(id_)
        else:
            states.append(news["state"])
            took_s = time.monotonic() - asked_at
    assert states == ["WAITING", "CANCELLED"]
    assert took_s < 1.0
    assert lines == list(range(1, lines[-1] + 1))
    # from the start again, and from the last line: what has ended is told, and the stream ends
    again = [news["seq"] for news in quiet.operation.follow(id_) if "seq" in news]
    assert again == lines
    (last,) = quiet.operation.follow(id_, after=lines[-1])
    assert last["state"] == "CANCELLED"
    with pytest.raises(NotFoundError, match="no operation nothing"):
        next(quiet.operation.follow("nothing"))


def test_pages_of_the_list_join_up_and_are_filtered_by_the_token(
    described: World, quiet: Client
) -> None:
    """automation 18: the cursor of a page begins the next one, whatever it is filtered by."""
    token = quiet.token.create("pager", "operate")["token"]
    with Client(described.node.url, token) as pager:
        enqueue = pager.operation.enqueue
        ids = []
        for _ in range(3):
            ids.append(enqueue("HorizontalReshardingTask", SPLIT, pause_before=["plan"])["id"])
            pager.operation.cancel(ids[-1])
        found: list[str] = []
        page = pager.operation.list(caller="pager", limit=2)
        while True:
            found += [each["id"] for each in page["items"]]
            if page["next_before"] is None:
                break
            page = pager.operation.list(caller="pager", limit=2, before=page["next_before"])
    assert found == ids[::-1]
