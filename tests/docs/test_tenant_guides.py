"""The guides on tenants, run as they stand: each command in order, then a look into the schemas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from docs.shell import Shell, blocks_of
from fix_node import NodeProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "how-to"
TENANTS = ("tenant_acme", "tenant_globex", "tenant_initech")

pytestmark = [pytest.mark.servers, pytest.mark.slow]


class Reader:
    """Somebody with a node, a keyspace ``saas`` and three tenant schemas, who reads a guide."""

    def __init__(self, folder: Path, server: LocalServer, database: str) -> None:
        self.server, self.database = server, database
        self.node = NodeProcess(folder / "state", flags=("--migrations-from", str(folder)))
        self.node.start()
        with self.connect() as connection:
            for name in TENANTS:
                connection.execute(f"CREATE SCHEMA {name}")
        with self.node.client() as client:
            client.cell.create("zone1")
            client.keyspace.create("saas", shards=["0"])
            client.tablet.create(
                "zone1-100",
                keyspace="saas",
                shard="0",
                conninfo=server.conninfo(database),
                secret=server.secret,
            )
        self.shell = Shell(
            folder,
            {
                "PATH": os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]]),
                "HOME": str(folder),
                "TIDEGATE_URL": self.node.url,
                "TIDEGATE_TOKEN": self.node.token,
            },
        )

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            self.server.conninfo(self.database), password=self.server.password, autocommit=True
        )

    def follow(self, guide: str, *, register: bool = True) -> list[str]:
        if register:
            with self.node.client() as client:
                client.tenant.discover("saas", schemas="tenant_%", register=True)
        return [self.shell.run(block) for block in blocks_of(GUIDES / guide)]

    def columns(self, schema: str, table: str) -> list[object]:
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
                [schema, table],
            ).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        self.shell.close()
        self.node.stop()


@pytest.fixture
def reader(
    tmp_path: Path, source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> Iterator[Reader]:
    made = Reader(tmp_path, source_server, new_database(source_server))
    yield made
    made.close()


def test_the_guide_on_sql_files(reader: Reader) -> None:
    printed = "\n".join(reader.follow("upgrade-tenants-with-sql-files.md", register=False))
    assert "3 found, 3 new" in printed
    assert "nothing was changed" in printed
    for name in TENANTS:
        assert reader.columns(name, "orders") == ["id", "customer", "note", "total", "kind"]
        assert reader.columns(name, "totals") == ["customer", "total"]
        assert reader.columns(name, "item") == ["id", "order_id", "what"]


def test_the_guide_on_alembic(reader: Reader) -> None:
    reader.follow("upgrade-tenants-with-alembic.md")
    for name in TENANTS:
        assert reader.columns(name, "orders") == ["id", "note"]
        assert reader.columns(name, "alembic_version") == ["version_num"]
    assert reader.columns("public", "orders") == []


def test_the_guide_on_django(reader: Reader) -> None:
    reader.follow("upgrade-tenants-with-django.md")
    for name in TENANTS:
        assert reader.columns(name, "shop_order") == ["id"]
        assert reader.columns(name, "auth_user")
    assert reader.columns("public", "shop_order") == []


def test_the_runbook_of_a_stopped_wave(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "001_orders.sql").write_text("CREATE TABLE orders (id bigint);")
    with reader.node.client() as client:
        client.tenant.discover("saas", schemas="tenant_%", register=True)
        client.migrations.create("app", f"sql:{tmp_path}/sql")
        with reader.connect() as connection:
            connection.execute("CREATE TABLE tenant_acme.orders ()")
        client.tenant.upgrade(source="app", jobs=1, max_failures=1)
        stopped(reader)
        with reader.connect() as connection:
            connection.execute("DROP TABLE tenant_acme.orders")
        printed = "\n".join(reader.follow("mend-a-stopped-wave.md"))
        assert "tenant_acme  TG-TEN-MIGRATION" in printed
        ended(reader)
    for name in TENANTS:
        assert reader.columns(name, "orders") == ["id"]


def stopped(reader: Reader) -> None:
    from tidegate.cli import follow

    with reader.node.client() as client:
        assert follow.until_upgraded(client.tenant, 1, timeout_s=60)["state"] == "stopped"


def ended(reader: Reader) -> None:
    from tidegate.cli import follow

    with reader.node.client() as client:
        assert follow.until_upgraded(client.tenant, 1, timeout_s=60)["state"] == "done"
