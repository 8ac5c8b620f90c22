"""Tenants compared with what their sources make: schemas and databases, two sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_tenants import ORDERS
from make_apps import make_alembic, make_django
from tidegate.bootstrap.tenants.drift import Kind, compare
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.verifying import Verified, VerifyRequest
from tidegate.engines.postgres.tenant_scratch import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

servers = [pytest.mark.servers, pytest.mark.slow]
MORE = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE SEQUENCE numbers;
CREATE VIEW notes AS SELECT id, note FROM orders WHERE note <> ';';
CREATE FUNCTION twice(n int DEFAULT 1) RETURNS int LANGUAGE plpgsql
    AS $$ BEGIN RETURN n * 2; END $$;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TABLE items (id bigserial PRIMARY KEY, order_id bigint NOT NULL REFERENCES orders,
    feeling mood NOT NULL DEFAULT 'happy', CHECK (order_id > 0));
CREATE INDEX items_order ON items (order_id) WHERE feeling = 'sad';
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON items USING (order_id = 1);
"""


def test_what_belongs_to_a_missing_table_is_told_with_it() -> None:
    expected = {("table", "a"): "r", ("column", "a.x"): "int", ("table", "b"): "r"}
    found = {("table", "b"): "p", ("view", "v"): "SELECT 1"}
    assert [(each.kind, each.object) for each in compare(expected, found)] == [
        (Kind.MISSING, "table a"),
        (Kind.DIFFERENT, "table b"),
        (Kind.UNEXPECTED, "view v"),
    ]


def verified(estate: Estate, *tenants: str) -> dict[str, Verified]:
    request = VerifyRequest(Selection(tenants=tenants))
    return {each.tenant: each for each in estate.service.verify(request)}


def told(found: Verified) -> list[str]:
    assert not found.failure, found.failure
    return [f"{each.kind} {each.object}" for each in found.differences]


def scratch(estate: Estate) -> list[Any]:
    with estate.connect() as connection:
        return connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [PREFIX]
        ).fetchall()


class TestServer:
    """Against real schemas and databases."""

    pytestmark = servers

    def test_a_tenant_as_its_sources_make_it_has_no_difference(
        self, estate: Estate, new_database: Callable[[LocalServer], str], tmp_path: Path
    ) -> None:
        """Situation tenants 12: drift against the expected schema, of two sources together."""
        estate.add_schemas(2)
        databases = {f"db{n}": new_database(estate.server) for n in range(2)}
        for name, database in databases.items():
            place = estate.service.registry.place(keyspace="saas", database=database)
            estate.service.registry.add(name, place)
        estate.write("001_orders.sql", ORDERS)
        estate.write("002_more.sql", MORE)
        estate.write(
            "003_index.sql",
            "-- tidegate: no-transaction\nCREATE INDEX CONCURRENTLY notes_ ON orders (note);",
        )
        other = tmp_path / "bill"
        other.mkdir()
        (other / "001_bills.sql").write_text(
            "CREATE TABLE bills (id int, of text DEFAULT ${tenant:literal});"
        )
        estate.service.sources.add("crm", estate.source)
        estate.service.sources.add("bill", f"sql:{other}")
        for source in ("crm", "bill"):
            estate.upgrade(source=source)
        found = verified(estate)
        assert set(found) == {"t001", "t002", "db0", "db1"}
        assert {name: told(each) for name, each in found.items()} == {name: [] for name in found}
        assert found["t001"].versions == {"bill": "001", "crm": "003"}
        with estate.connect() as connection:
            connection.execute(
                "SET search_path = t001;"
                " ALTER TABLE orders ADD COLUMN surprise int; DROP INDEX items_order;"
                " ALTER TABLE items ALTER COLUMN feeling DROP DEFAULT;"
                " CREATE OR REPLACE FUNCTION twice(n int DEFAULT 1) RETURNS int"
                " LANGUAGE plpgsql AS $$ BEGIN RETURN n * 3; END $$;"
                " ALTER TYPE mood ADD VALUE 'odd'; DROP TABLE bills; DROP POLICY mine ON items;"
                " ALTER TABLE orders DISABLE TRIGGER touched"
            )
        with psycopg.connect(
            estate.server.conninfo(databases["db1"]), password=estate.server.password
        ) as whole:
            whole.execute("CREATE SCHEMA extra CREATE TABLE t (id int)")
        found = verified(estate)
        assert told(found["t001"]) == [
            "different column items.feeling",
            "unexpected column orders.surprise",
            "different function twice(n integer)",
            "missing index items_order",
            "missing policy items.mine",
            "missing table bills",
            "different trigger orders.touched",
            "different type mood",
        ]
        assert told(found["t002"]) == told(found["db0"]) == []
        assert told(found["db1"]) == ["unexpected schema extra", "unexpected table extra.t"]
        assert scratch(estate) == []

    def test_shared_schemas_are_there_without_rows_and_untouched(self, estate: Estate) -> None:
        """Situation tenants 12: what a migration does to a shared schema is done beside it."""
        estate.add_schemas(2)
        with estate.connect() as connection:
            connection.execute(
                "CREATE SCHEMA common; CREATE TABLE common.plans (id int PRIMARY KEY);"
                " INSERT INTO common.plans VALUES (1)"
            )
        estate.write(
            "001_orders.sql",
            "CREATE TABLE orders (id int, plan int REFERENCES plans);"
            " CREATE TABLE IF NOT EXISTS common.log (what text); INSERT INTO log VALUES ('made');",
        )
        estate.service.sources.add("app", estate.source, also_search=("common",))
        estate.upgrade(source="app")
        assert [told(each) for each in verified(estate).values()] == [[], []]
        with estate.connect() as connection:
            assert connection.execute("SELECT what FROM common.log").fetchall() == [("made",)] * 2

    def test_what_cannot_be_built_or_is_not_there_is_said(self, estate: Estate) -> None:
        estate.add_schemas(3)
        estate.write("001_orders.sql", ORDERS)
        estate.service.sources.add("app", estate.source)
        estate.upgrade(source="app", tenants=("t001", "t002"))
        with estate.connect() as connection:
            connection.execute("DROP SCHEMA t002 CASCADE")
        found = verified(estate)
        assert told(found["t001"]) == []
        assert "is not there" in found["t002"].failure
        assert "no version" in found["t003"].failure
        assert scratch(estate) == []

    def test_alembic_and_django_build_their_own(self, estate: Estate, tmp_path: Path) -> None:
        """Situation tenants 12: programs are run beside the tenant as well."""
        estate.add_schemas(2)
        site = tmp_path / "site"
        estate.service.sources.add("alembic", make_alembic(tmp_path / "app"))
        estate.service.sources.add("django", make_django(site), folder=str(site))
        for source in ("alembic", "django"):
            estate.upgrade(source=source)
        assert [told(each) for each in verified(estate).values()] == [[], []]
        with estate.connect() as connection:
            connection.execute("ALTER TABLE t002.shop_order ADD COLUMN surprise int")
        found = verified(estate)
        assert told(found["t001"]) == []
        assert told(found["t002"]) == ["unexpected column shop_order.surprise"]
