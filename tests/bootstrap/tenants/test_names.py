"""Names of schemas as they may be, in every kind of source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from fix_tenants import ORDERS
from make_apps import ENV_GENERIC, make_alembic, make_django, make_function
from tidegate.bootstrap.tenants.model import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

pytestmark = [pytest.mark.servers, pytest.mark.slow]

NAMES = [
    "t%1",
    "t%s%(x)s%%",
    "T Upper",
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "dot.ted",
    "tab\tand\nline",
    "größe-日本",
    "select",
    "$tidegate$",
    "{brace}",
    "x" * 63,
]


def settle(estate: Estate) -> None:
    with estate.connect() as connection:
        for number, name in enumerate(NAMES):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
            place = estate.service.registry.place(keyspace="saas", schema=name)
            estate.service.registry.add(f"n{number}", place)


def holds(estate: Estate, *tables: str) -> None:
    with estate.connect() as connection:
        for name in NAMES:
            rows = connection.execute(
                "SELECT relname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE nspname = %s AND relkind = 'r'",
                [name],
            ).fetchall()
            assert set(tables) <= {row[0] for row in rows}, name
    assert estate.tables("public") == []


@pytest.mark.parametrize("kind", ["sql", "python", "alembic", "alembic by url", "django"])
def test_a_schema_may_have_any_name(estate: Estate, tmp_path: Path, kind: str) -> None:
    """Situation tenants 11: percent signs, quotes, other scripts, the longest names."""
    settle(estate)
    folder = tmp_path / "app"
    how = {"folder": str(folder)}
    if kind == "sql":
        estate.write("001_orders.sql", ORDERS)
        estate.write("002_index.sql", "CREATE INDEX CONCURRENTLY n ON orders (note);")
        address, tables, how = estate.source, ["orders", "tidegate_migration"], {}
    elif kind == "python":
        body = 'connection.cursor().execute(f"CREATE TABLE made_{tenant.version} ()")'
        address = make_function(folder, body)
        tables = ["made_1", "made_2", "tidegate_migration"]
    elif kind == "django":
        address, tables = make_django(folder), ["shop_order", "django_migrations"]
    else:
        env = {"env": ENV_GENERIC} if kind == "alembic by url" else {}
        address, tables, how = make_alembic(folder, **env), ["orders", "alembic_version"], {}
    estate.service.sources.add("app", address, **how)
    run = estate.upgrade(source="app", max_failures=99)
    assert run.state is RunState.DONE, [i.message for i in estate.items(run).values() if i.message]
    holds(estate, *tables)
    assert estate.upgrade(source="app", verify=True).state is RunState.DONE


def test_a_version_table_and_a_source_may_have_any_name(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 11, a relative: the other names in the statements."""
    (name,) = estate.add_schemas(1)
    make_function(tmp_path / "jobs", "pass")
    table, role = 't%s "x"', "ro%le"
    with estate.connect() as connection:
        connection.execute('DROP ROLE IF EXISTS "ro%le"')
        connection.execute('CREATE ROLE "ro%le"')
        connection.execute(f'GRANT ALL ON SCHEMA {name} TO "ro%le"')
    estate.service.sources.add(
        "größe'x\"",
        "python:upgrades:migrate",
        folder=str(tmp_path / "jobs"),
        version_table=table,
        role=role,
    )
    try:
        assert estate.upgrade(source="größe'x\"").state is RunState.DONE
        assert estate.tables(name) == [table]
    finally:
        with psycopg.connect(
            estate.server.conninfo(estate.name), password=estate.server.password, autocommit=True
        ) as connection:
            connection.execute('DROP OWNED BY "ro%le"')
            connection.execute('DROP ROLE "ro%le"')
