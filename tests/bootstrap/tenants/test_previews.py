"""The SQL that a dry run shows, for files, Alembic and Django; nothing is run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fix_tenants import ORDERS
from make_apps import ENV_GENERIC, make_alembic, make_django, make_function
from tidegate.bootstrap.tenants.model import RunState
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def shown(estate: Estate, **request: Any) -> dict[str, dict[str, Any]]:
    asked = replace(estate.request(**request), shows_sql=True)
    return {each["from"]: each for each in estate.service.plan(asked).to_json()["steps"]}


def test_files_are_shown_as_they_would_be_sent(
    estate: Estate, new_database: Callable[[LocalServer], str]
) -> None:
    """Situation tenants 12: the SQL in the dry run, for each group of tenants."""
    estate.add_schemas(2)
    place = estate.service.registry.place(keyspace="saas", database=new_database(estate.server))
    estate.service.registry.add("whole", place)
    estate.write("001_orders.sql", ORDERS)
    estate.upgrade(tenants=("t001", "whole"))
    estate.write("002_rows.sql", "COPY ${schema}.orders FROM stdin;\n1\ta\n\\.\n")
    estate.write("003_index.sql", "-- tidegate: no-transaction\nVACUUM ${schema}.orders")
    found = shown(estate)
    assert found["001"]["tenant"] == "t001"
    assert found["001"]["sql"] == (
        '-- 002_rows.sql\nCOPY "t001".orders FROM stdin;\n1\ta\n\\.\n'
        '-- 003_index.sql, outside a transaction\nVACUUM "t001".orders;\n'
    )
    assert found[""]["tenant"] == "t002"
    assert found[""]["sql"].startswith(f"-- 001_orders.sql\n{ORDERS}\n-- 002_rows.sql")
    assert estate.tables("t002") == []
    assert shown(estate, tenants=("whole",))["001"]["sql"].count('"public".orders') == 2
    asked = replace(estate.request(), shows_sql=True)
    with pytest.raises(InvalidArgumentError, match="shown by a dry run only"):
        estate.service.upgrade(asked)


def test_alembic_shows_its_offline_mode(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 12: from the version that is stored, without a connection."""
    estate.add_schemas(2)
    estate.service.sources.add("app", make_alembic(tmp_path / "app", ENV_GENERIC))
    estate.upgrade(source="app", to="a1", tenants=("t001",))
    found = shown(estate, source="app")
    assert found["a1"]["failure"] is None, found
    assert "UPDATE t001.alembic_version SET version_num='b2'" in found["a1"]["sql"]
    assert "a1" not in found["a1"]["sql"].replace("version_num = 'a1'", "").replace("a1 ->", "")
    assert "CREATE TABLE t002.alembic_version" in found[""]["sql"]
    assert estate.tables("t002") == []


def test_django_shows_what_sqlmigrate_shows(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 12: what the tenant lacks, app by app; nothing is applied."""
    estate.add_schemas(2)
    folder = tmp_path / "site"
    estate.service.sources.add("app", make_django(folder), folder=str(folder))
    found = shown(estate, source="app")[""]
    assert found["failure"] is None, found
    assert "-- shop.0001_initial" in found["sql"]
    assert 'CREATE TABLE "shop_order"' in found["sql"]
    assert "shop_order" not in estate.tables("t001")
    assert estate.upgrade(source="app").state is RunState.DONE


def test_a_function_has_no_sql_and_says_so(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(2)
    folder = tmp_path / "app"
    estate.service.sources.add("app", make_function(folder, "pass"), folder=str(folder))
    assert "no SQL" in shown(estate, source="app")[""]["failure"]
