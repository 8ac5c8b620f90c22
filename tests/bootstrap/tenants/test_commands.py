"""`tidegate tenant` and `tidegate migrations` against a real node and real schemas."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_node import NodeProcess, until
from fix_tenants import ORDERS
from tidegate.cli.main import run
from tidegate.errors import ExitStatus, InvalidArgumentError, TenantUpgradeError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.client import Client
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@dataclass
class Town:
    """A node, a database with schemas ``tenant_1`` … ``tenant_6``, a folder of migrations."""

    node: NodeProcess
    client: Client
    server: LocalServer
    database: str
    folder: Path

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            self.server.conninfo(self.database), password=self.server.password, autocommit=True
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture
def town(
    tmp_path: Path,
    source_server: LocalServer,
    new_database: Callable[[LocalServer], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Town]:
    node = NodeProcess(tmp_path / "state").start()
    database = new_database(source_server)
    folder = tmp_path / "sql"
    folder.mkdir()
    monkeypatch.setenv("TIDEGATE_URL", node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", node.token)
    with node.client() as client:
        client.cell.create("zone1")
        client.keyspace.create("saas", shards=["0"])
        client.tablet.create(
            "zone1-100",
            keyspace="saas",
            shard="0",
            conninfo=source_server.conninfo(database),
            secret=source_server.secret,
        )
        made = Town(node, client, source_server, database, folder)
        for number in range(1, 7):
            made.execute(f"CREATE SCHEMA tenant_{number}")
        yield made
    node.stop()


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory, source_server: LocalServer) -> Iterator[Town]:
    """A town for all tests that change nothing, with a source and without a tenant."""
    folder = tmp_path_factory.mktemp("settled")
    (folder / "sql").mkdir()
    node = NodeProcess(folder / "state").start()
    with node.client() as client:
        client.cell.create("zone1")
        client.keyspace.create("saas", shards=["0"])
        client.tablet.create(
            "zone1-100",
            keyspace="saas",
            shard="0",
            conninfo=source_server.conninfo(),
            secret=source_server.secret,
        )
        made = Town(node, client, source_server, "postgres", folder / "sql")
        made.write("001_orders.sql", ORDERS)
        client.migrations.create("app", f"sql:{made.folder}")
        yield made
    node.stop()


def tidegate(line: str, status: ExitStatus = ExitStatus.DONE) -> None:
    assert run(line.split()) == status, line


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_from_discovery_to_the_last_wave(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    town.write("001_orders.sql", ORDERS)
    tidegate("tenant discover --keyspace saas --schemas tenant_% -o json")
    found = printed(capsys)
    assert [item["registered"] for item in found["items"]] == [False] * 6
    tidegate("tenant discover --keyspace saas --schemas tenant_% --register")
    assert town.client.tenant.discover("saas", schemas="tenant_%")["new"] == 0
    tidegate(f"migrations create app sql:{town.folder}")
    capsys.readouterr()
    tidegate("tenant upgrade --wave canary:2 --then 3 --dry-run -o json")
    plan = printed(capsys)
    assert [len(wave["tenants"]) for wave in plan["waves"]] == [2, 3, 1]
    assert plan["steps"] == [{"from": "", "tenants": 6, "versions": ["001"]}]
    assert town.client.tenant.runs()["items"] == []
    tidegate("tenant upgrade --wave canary:2 --then 3")
    shown = capsys.readouterr()
    assert "6 done" in shown.out
    assert all(json.loads(line)["id"] == 1 for line in shown.err.splitlines())
    tidegate("tenant status -o json")
    assert printed(capsys)["items"] == [{"version": "001", "tenants": 6}]
    tidegate("tenant upgrade -o json")
    again = printed(capsys)
    assert (again["state"], again["at_target"], again["total"]) == ("done", 6, 0)


def test_a_stopped_wave_ends_with_status_9_and_goes_on_after_a_retry(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    town.write("001_orders.sql", ORDERS)
    tidegate("tenant discover --keyspace saas --schemas tenant_% --register")
    tidegate(f"migrations create app sql:{town.folder}")
    tidegate("tenant upgrade")
    town.execute("INSERT INTO tenant_2.orders VALUES (1, 'bad')")
    town.write("002_check.sql", "ALTER TABLE orders ADD CHECK (note <> 'bad');")
    tidegate(
        "tenant upgrade --wave canary:3 --then 1 --max-failures 1 --jobs 1",
        ExitStatus.PARTLY_FAILED,
    )
    shown = capsys.readouterr()
    assert "tenant_2  TG-TEN-MIGRATION" in shown.out
    assert "tidegate tenant retry 2" in shown.err
    town.execute("UPDATE tenant_2.orders SET note = 'good'")
    tidegate("tenant retry --wait -o json")
    report = printed(capsys)
    assert report["state"] == "done"
    assert report["counts"]["done"] == 6
    tidegate("tenant runs -o name")
    assert capsys.readouterr().out.split() == ["2", "1"]
    tidegate("tenant run 2 --all -o json")
    assert {item["to_version"] for item in printed(capsys)["items"]} == {"002"}


def test_one_tenant_is_upgraded_when_it_logs_in(town: Town) -> None:
    town.write("001_orders.sql", ORDERS)
    town.client.tenant.add("acme", keyspace="saas", schema="tenant_1")
    town.client.migrations.create("app", f"sql:{town.folder}")
    assert town.client.tenant.ensure("acme")["upgraded"] is True
    assert town.execute("SELECT count(*) FROM tenant_1.orders") == [(0,)]
    assert town.client.tenant.ensure("acme")["upgraded"] is False
    town.write("002_wrong.sql", "SELECT no_such_function();")
    with pytest.raises(TenantUpgradeError, match="no_such_function"):
        town.client.tenant.ensure("acme")
    assert town.client.tenant.show("acme")["versions"] == {"app": "001"}


def test_a_tenant_can_be_renamed_and_forgotten(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    tidegate("tenant add acme --keyspace saas --shard 0 --schema tenant_1")
    tidegate("tenant add globex --tablet zone1-100 --schema tenant_2")
    tidegate("tenant add other --keyspace saas --schema tenant_2", ExitStatus.CONFLICT)
    tidegate("tenant rename acme acme-inc")
    tidegate("tenant rename globex acme-inc", ExitStatus.CONFLICT)
    capsys.readouterr()
    tidegate("tenant list -o name")
    assert capsys.readouterr().out.split() == ["acme-inc", "globex"]
    tidegate("tenant remove acme-inc --yes")
    tidegate("tenant show acme-inc", ExitStatus.NOT_FOUND)
    assert town.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'tenant_1'") == [(1,)]


def test_a_node_runs_no_program_from_a_folder_it_was_not_told(town: Town) -> None:
    with pytest.raises(InvalidArgumentError, match="does not run programs"):
        town.client.migrations.create(
            "app", "python:upgrades:migrate", folder=str(town.folder), dry_run=True
        )


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("add", {"name": "a b", "keyspace": "saas", "schema": "x"}),
        ("add", {"name": "a\0b", "keyspace": "saas", "schema": "x"}),
        ("add", {"name": "a", "keyspace": "saas"}),
        ("add", {"name": "a", "keyspace": "none", "schema": "x"}),
        ("add", {"name": "a", "schema": "x"}),
        ("add", {"name": "a", "tablet": "zone1-100", "keyspace": "other", "schema": "x"}),
        ("add", {"name": "a", "keyspace": "saas", "schema": "x" * 64}),
        ("discover", {"keyspace": "saas"}),
        ("discover", {"keyspace": "saas", "schemas": "a%", "databases": "b%"}),
        ("discover", {"keyspace": "saas", "schemas": "%\\"}),
        ("discover", {"keyspace": "saas", "schemas": "a\0"}),
        ("discover", {"keyspace": "saas", "schemas": "a%", "query": "SELECT 'a' AS schema"}),
        ("discover", {"keyspace": "saas", "query": "SELECT 1 AS schema; SELECT 2"}),
        ("discover", {"keyspace": "saas", "query": "SELECT 'a' AS tenant"}),
        ("discover", {"keyspace": "saas", "query": "SELECT '\0' AS schema"}),
        ("upgrade", {"source": "none"}),
        ("upgrade", {"source": "sql:/no/such/folder"}),
        ("upgrade", {"source": "sql:/\0"}),
        ("upgrade", {"wave": "canary:none"}),
        ("upgrade", {"jobs": 0}),
        ("upgrade", {"to": "999"}),
        ("upgrade", {"where": "version<<3"}),
        ("upgrade", {"sql": True}),
        ("upgrade", {"discover_schemas": "t%"}),
        ("upgrade", {"discover_query": "SELECT 'a' AS schema"}),
        ("upgrade", {"downgrade": True, "verify": True}),
        ("verify", {"tenants": ["nobody"]}),
        ("add", {"name": "a", "keyspace": "saas", "schema": "x", "source": "app"}),
        ("add", {"name": "a", "keyspace": "saas", "schema": "x", "provision": True, "source": "y"}),
        ("baseline", {"version": "999"}),
        ("baseline", {"version": "001", "tenants": ["nobody"]}),
        ("stamp", {"version": "001", "tenants": []}),
        ("repair", {"source": "none"}),
        ("repair", {"lock_timeout_s": 0}),
        ("run", {"run": "seven"}),
        ("run", {"run": "7"}),
        ("cancel", {"run": "last"}),
        ("ensure", {"name": "nobody"}),
        ("rename", {"name": "nobody", "new_name": "x"}),
    ],
)
def test_bad_input_is_refused_with_a_next_step_and_changes_nothing(
    settled: Town, call: str, given: dict[str, Any]
) -> None:
    with pytest.raises(TidegateError) as refused:
        getattr(settled.client.tenant, call)(**given)
    assert refused.value.next_step
    assert 400 <= refused.value.http_status < 500
    assert settled.client.tenant.list()["items"] == []
    assert settled.client.tenant.runs()["items"] == []


def test_records_are_changed_and_sql_is_shown_from_the_command_line(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situation tenants 12: baseline, stamp and repair, variables, the SQL in the dry run."""
    town.write("001_orders.sql", ORDERS)
    town.write("002_days.sql", "CREATE TABLE kept (days int DEFAULT ${days:raw});")
    tidegate("tenant discover --keyspace saas --schemas tenant_% --register")
    tidegate(f"migrations create app sql:{town.folder} --set days=30 --set more=x")
    town.execute(f"SET search_path = tenant_1; {ORDERS}")
    capsys.readouterr()
    tidegate("tenant baseline 001 --tenants tenant_1 --dry-run -o json")
    planned = printed(capsys)
    assert (planned["dry_run"], planned["changed"]) == (True, 1)
    tidegate("tenant baseline 001 --tenants tenant_1 -o json")
    assert printed(capsys)["items"][0]["added"] == ["001"]
    tidegate("tenant baseline 002 --tenants tenant_1", ExitStatus.PARTLY_FAILED)
    assert "a stamp for others" in capsys.readouterr().out
    tidegate("tenant upgrade --dry-run --sql -o json")
    steps = {each["from"]: each for each in printed(capsys)["steps"]}
    assert steps["001"]["sql"] == ("-- 002_days.sql\nCREATE TABLE kept (days int DEFAULT 30);\n")
    tidegate("tenant upgrade --dry-run --sql")
    assert "CREATE TABLE kept (days int DEFAULT 30)" in capsys.readouterr().out
    tidegate("tenant upgrade --sql", ExitStatus.USAGE)
    tidegate("tenant upgrade")
    tidegate("tenant stamp 001 --tenants tenant_2", ExitStatus.USAGE)  # needs --yes
    tidegate("tenant stamp 001 --tenants tenant_2 --yes")
    assert town.client.tenant.show("tenant_2")["versions"] == {"app": "001"}
    town.write("001_orders.sql", ORDERS + " -- edited")
    tidegate("tenant upgrade", ExitStatus.PREFLIGHT)
    tidegate("tenant repair --yes")
    town.execute("DROP TABLE tenant_2.kept")
    tidegate("tenant upgrade")
    assert town.client.tenant.show("tenant_2")["versions"] == {"app": "002"}
    tidegate(f"migrations create other sql:{town.folder} --set days", ExitStatus.USAGE)


def test_new_tenants_drift_and_the_way_back_from_the_command_line(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situations tenants 09 and 12: discovery in the run, provision, verify, downgrade."""
    town.write("001_orders.sql", ORDERS)
    town.write("002_kept.sql", "CREATE TABLE kept (id int);")
    town.write("002_kept.down.sql", "DROP TABLE kept;")
    tidegate(f"migrations create app sql:{town.folder}")
    tidegate("tenant add acme --keyspace saas --schema fresh --from app", ExitStatus.USAGE)
    capsys.readouterr()
    tidegate("tenant add acme --keyspace saas --schema fresh --provision -o json")
    assert printed(capsys)["version"] == "002"
    tidegate("tenant add acme --keyspace saas --schema fresh --provision")
    tidegate("tenant upgrade --discover-schemas tenant_%", ExitStatus.USAGE)
    town.execute(
        "CREATE TABLE account AS SELECT i, 'tenant_' || i AS s FROM generate_series(1, 7) i"
    )
    query = "SELECT s AS schema, 'the ' || i AS name FROM account WHERE i IN (1, 7)"
    assert run(["tenant", "discover", "--keyspace", "saas", "--query", query]) == ExitStatus.DONE
    assert "not registered: the~207 (tenant_7): it is not there" in capsys.readouterr().err
    discover = ["--keyspace", "saas", "--discover-query", query]
    assert run(["tenant", "upgrade", *discover]) == ExitStatus.DONE
    assert "not registered: the~207 (tenant_7): it is not there" in capsys.readouterr().err
    tidegate("tenant rename the~201 tenant_1")
    tidegate("tenant upgrade --keyspace saas --discover-schemas tenant_%")
    assert len(town.client.tenant.list()["items"]) == 7
    capsys.readouterr()
    tidegate("tenant verify -o json")
    assert printed(capsys)["different"] == 0
    town.execute("ALTER TABLE tenant_1.kept ADD COLUMN surprise int")
    tidegate("tenant verify --tenants acme,tenant_1", ExitStatus.MISMATCH)
    assert "tenant_1: column kept.surprise is unexpected" in capsys.readouterr().err
    tidegate("tenant upgrade --to 001 --dry-run", ExitStatus.ERROR)
    tidegate("tenant upgrade --to 001 --downgrade --dry-run")
    assert "would undo 002" in capsys.readouterr().out
    tidegate("tenant upgrade --to 001 --downgrade")
    assert {each["versions"]["app"] for each in town.client.tenant.list()["items"]} == {"001"}


def test_a_trial_is_shown_and_dropped_even_when_its_node_is_killed(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situation tenants 12: a trial, and SIGKILL in it."""
    town.write("001_orders.sql", ORDERS)
    tidegate("tenant discover --keyspace saas --schemas tenant_% --register")
    tidegate(f"migrations create app sql:{town.folder}")
    tidegate("tenant upgrade --trial --dry-run", ExitStatus.USAGE)
    capsys.readouterr()
    tidegate("tenant upgrade --trial --tenants tenant_2")
    shown = capsys.readouterr()
    assert "created table orders" in shown.out
    assert "no tenant was changed" in shown.err
    town.write("002_wrong.sql", "SELECT no_such();")
    tidegate("tenant upgrade --trial", ExitStatus.PARTLY_FAILED)
    assert "copy of tenant tenant_1: 002_wrong.sql line 1" in capsys.readouterr().err
    town.write("002_wrong.sql", "SELECT pg_sleep(60);")
    scratch = "SELECT datname FROM pg_database WHERE datname LIKE '\\_tidegate\\_scratch%'"

    def trial() -> None:
        with town.node.client() as client, contextlib.suppress(TidegateError):
            client.tenant.upgrade(trial=True)

    trying = threading.Thread(target=trial)
    trying.start()
    until(lambda: town.execute("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%'"))
    # Who is at work in one keeps it from being dropped.
    assert town.client.tenant.upgrade(trial=True, to="001")["failure"] is None
    assert len(town.execute(scratch)) == 1
    town.node.kill()
    trying.join(30)
    assert len(town.execute(scratch)) == 1
    town.node.start()
    until(lambda: not town.execute(scratch))
    assert town.execute("SELECT 1 FROM pg_tables WHERE tablename = 'orders'") == []


def test_a_killed_node_goes_on_with_its_run(town: Town) -> None:
    town.write("001_orders.sql", ORDERS)
    town.client.tenant.discover("saas", schemas="tenant_%", register=True)
    town.node.kill()
    town.node.environment["TIDEGATE_CRASH_AT"] = "tenant.committed#3"
    town.node.start()
    with town.node.client() as client:
        run_id = client.tenant.upgrade(source=f"sql:{town.folder}", jobs=1)["id"]
    assert town.node.process is not None
    assert town.node.process.wait(30) == -9
    del town.node.environment["TIDEGATE_CRASH_AT"]
    assert len(town.execute("SELECT 1 FROM pg_tables WHERE tablename = 'orders'")) == 3
    town.node.start()
    with town.node.client() as client:
        from tidegate.cli import follow

        report = follow.until_upgraded(client.tenant, run_id, timeout_s=60)
    assert report["state"] == "done"
    assert report["counts"]["done"] == 6
