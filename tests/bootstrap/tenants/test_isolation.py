"""Each file runs as if it were alone, in a transaction of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from make_apps import add_django_migration, add_revision, make_alembic, make_django, make_function
from tidegate.bootstrap.tenants.model import ItemState, RunState

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

pytestmark = [pytest.mark.servers, pytest.mark.slow]

LEAKS = {
    "search path": "SET search_path = public;",
    "local search path": "SET LOCAL search_path = public;",
    "all": "RESET ALL;",
    "role": "SET ROLE tidegate_guest;",
    "session": "SET SESSION AUTHORIZATION tidegate_guest;",
    "prepared": "PREPARE named AS SELECT 1; SET search_path = public;",
    "temporary": "CREATE TEMP TABLE orders (id int);",
    "durability": "SET synchronous_commit = off; SET lock_timeout = '1ms';",
    "cursor": "DECLARE c CURSOR WITH HOLD FOR SELECT 1;",
    "lock": "SELECT pg_advisory_unlock_all(); SELECT pg_advisory_lock(7);",
    "setting of its own": "SET shop.tenant = 'x';",
    "replication role": "SET session_replication_role = replica;",
}
SECOND = """
CREATE TABLE orders (id int);
CREATE TABLE seen AS SELECT current_user::text AS role, current_setting('search_path') AS path,
    current_setting('shop.tenant', true) AS own,
    current_setting('session_replication_role') AS repl,
    (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors)
    + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
       AND objid = 7) AS held;
"""


@pytest.fixture
def guest(estate: Estate) -> None:
    with estate.connect() as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE tidegate_guest; EXCEPTION WHEN duplicate_object THEN END $$"
        )


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("single", [False, True], ids=["one each", "all in one"])
def test_nothing_that_a_file_sets_or_holds_is_found_by_the_next(
    estate: Estate, *, single: bool
) -> None:
    """Situation tenants 01: settings, roles, prepared statements, temporary tables, locks."""
    with estate.connect() as connection:
        for number in range(len(LEAKS)):
            connection.execute(f"CREATE SCHEMA leak{number}")
    estate.service.registry.discover("saas", schemas="leak%", register=True)
    for number, text in enumerate(LEAKS.values()):
        folder = estate.folder / f"f{number}"
        folder.mkdir()
        (folder / "001_leak.sql").write_text(text)
        (folder / "002_orders.sql").write_text(SECOND)
        run = estate.upgrade(
            source=f"sql:{folder}", tenants=(f"leak{number}",), single_transaction=single
        )
        assert run.state is RunState.DONE, (text, estate.items(run))
    with estate.connect() as connection:
        for number, what in enumerate(LEAKS):
            schema = f"leak{number}"
            found = connection.execute(f"SELECT * FROM {schema}.seen").fetchall()
            # Inside one transaction, a setting of its own making stays known, and empty.
            own = "" if single and what == "setting of its own" else None
            assert found == [("postgres", f'"{schema}"', own, "origin", 0)], what
            assert estate.tables(schema) == ["orders", "seen", "tidegate_migration"], what
    assert estate.tables("public") == []


def test_a_label_of_an_enum_is_used_in_the_file_after_the_one_that_adds_it(estate: Estate) -> None:
    """Situation tenants 02: files that work one by one work for a tenant that is behind."""
    estate.add_schemas(2)
    estate.write("001_kind.sql", "CREATE TYPE kind AS ENUM ('a'); CREATE TABLE o (k kind);")
    estate.write("002_label.sql", "ALTER TYPE kind ADD VALUE 'b';")
    estate.write("003_use.sql", "INSERT INTO o VALUES ('b');")
    assert estate.upgrade(to="001").state is RunState.DONE
    run = estate.upgrade(tenants=("t001",), single_transaction=True)
    failed = estate.items(run)["t001"]
    assert failed.state is ItemState.FAILED
    assert "in a later file" in failed.message
    assert estate.recorded("t001") == ["001"]
    assert estate.upgrade(tenants=("t002",)).state is RunState.DONE
    assert estate.recorded("t002") == ["001", "002", "003"]


def test_a_file_that_fails_leaves_those_before_it_and_nothing_of_itself(estate: Estate) -> None:
    """Situation tenants 02: one transaction a file, with its record; all in one by choice."""
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    estate.write("002_half.sql", "CREATE TABLE half (id int); SELECT no_such_function();")
    run = estate.upgrade(tenants=("t001",))
    item = estate.items(run)["t001"]
    assert "002_half.sql line 1: function no_such_function() does not exist" in item.message
    assert (item.from_version, item.to_version) == ("", "001")
    assert estate.tables("t001") == ["orders", "tidegate_migration"]
    assert estate.recorded("t001") == ["001"]
    estate.service.sources.add("whole", estate.source, single_transaction=True)
    run = estate.upgrade(source="whole", tenants=("t002",))
    assert "002_half.sql line 1" in estate.items(run)["t002"].message
    assert estate.tables("t002") == []


def test_a_file_cannot_be_recorded_as_another_role_or_lost_after_its_commit(estate: Estate) -> None:
    """Situation tenants 01, a relative: the record is written under our settings."""
    estate.add_schemas(1)
    estate.write("001_orders.sql", ORDERS + "SET search_path = nowhere; SET lock_timeout = '1ms';")
    assert estate.upgrade().state is RunState.DONE
    assert estate.recorded("t001") == ["001"]


def test_versions_of_a_function_run_alone_too(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 01 and 02, a relative: Python functions."""
    estate.add_schemas(1)
    body = """
    connection.cursor().execute(f"CREATE TABLE made_{tenant.version} ()")
    connection.cursor().execute("SET search_path = public")
    if tenant.version == "3":
        raise RuntimeError("the third")
    """
    make_function(tmp_path / "jobs", body, '("1", "2", "3")')
    estate.service.sources.add("jobs", "python:upgrades:migrate", folder=str(tmp_path / "jobs"))
    run = estate.upgrade(source="jobs")
    assert "the third" in estate.items(run)["t001"].message
    assert estate.tables("t001") == ["made_1", "made_2", "tidegate_migration"]
    assert estate.tables("public") == []
    assert estate.recorded("t001") == ["1", "2"]


def test_revisions_of_alembic_find_the_tenants_path(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 01, a relative: Alembic."""
    estate.add_schemas(1)
    folder = tmp_path / "app"
    source = make_alembic(folder)
    leak = """
    revision, down_revision = "{0}", "{1}"

    def upgrade():
        op.create_table("made_{0}", sa.Column("id", sa.BigInteger))
        op.execute("SET search_path = public")
    """
    add_revision(folder, "c3", leak.format("c3", "b2"))
    add_revision(folder, "d4", leak.format("d4", "c3"))
    estate.service.sources.add("app", source)
    run = estate.upgrade(source="app")
    assert run.state is RunState.DONE, estate.items(run)
    assert {"made_c3", "made_d4"} <= set(estate.tables("t001"))
    assert estate.tables("public") == []


def test_migrations_of_django_find_the_tenants_path(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 01, a relative: Django, whose record follows the migration."""
    estate.add_schemas(1)
    folder = tmp_path / "site"
    source = make_django(folder)
    add_django_migration(
        folder, "0003_leak", "0002_note", 'migrations.RunSQL("SET search_path = public")'
    )
    add_django_migration(
        folder, "0004_more", "0003_leak", 'migrations.RunSQL("CREATE TABLE more ()")'
    )
    estate.service.sources.add("site", source, folder=str(folder))
    run = estate.upgrade(source="site")
    assert run.state is RunState.DONE, estate.items(run)
    assert {"more", "django_migrations"} <= set(estate.tables("t001"))
    assert estate.tables("public") == []
