"""Alembic, Django and Python functions in worker processes, over real schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from make_apps import (
    ENV_ATTRIBUTES,
    ENV_GENERIC,
    ENV_VARIABLE,
    add_django_migration,
    add_revision,
    make_alembic,
    make_django,
    make_function,
)
from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.bootstrap.tenants.model import Run

pytestmark = [pytest.mark.servers, pytest.mark.slow]

MAKE_TABLE = """
with connection.cursor() as cursor:
    cursor.execute(f"CREATE TABLE made_{tenant.version} (name text)")
    cursor.execute(f"INSERT INTO made_{tenant.version} VALUES (%s)", (tenant.name,))
"""


def register(estate: Estate, source: str, folder: Path, **how: Any) -> str:
    if not source.startswith("alembic:"):
        how["folder"] = str(folder)
    estate.service.sources.add("app", source, **how)
    return "app"


def failed(estate: Estate, run: Run, name: str) -> str:
    item = estate.items(run)[name]
    assert item.state is ItemState.FAILED
    return item.message


def alembic_version(estate: Estate, schema: str) -> list[str]:
    with estate.connect() as connection:
        rows = connection.execute(f"SELECT version_num FROM {schema}.alembic_version")
        return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("env", "how"),
    [
        pytest.param(ENV_ATTRIBUTES, {}, id="connection from attributes"),
        pytest.param(ENV_GENERIC, {}, id="sqlalchemy.url"),
        pytest.param(ENV_VARIABLE, {"url_variable": "SHOP_DATABASE_URL"}, id="variable"),
    ],
)
def test_alembic_environments_as_users_have_them(
    estate: Estate, tmp_path: Path, env: str, how: dict[str, Any]
) -> None:
    names = estate.add_schemas(4)
    with estate.connect() as connection:
        # What a tenant must never take for its own.
        connection.execute("CREATE TABLE public.alembic_version (version_num text)")
        connection.execute("INSERT INTO public.alembic_version VALUES ('b2')")
    source = register(estate, make_alembic(tmp_path / "app", env), tmp_path / "app", **how)
    run = estate.upgrade(source=source, to="a1", jobs=2)
    assert run.state is RunState.DONE, estate.items(run)
    run = estate.upgrade(source=source, jobs=2)
    assert run.state is RunState.DONE
    assert estate.items(run)[names[0]].from_version == "a1"
    for name in names:
        assert estate.tables(name) == ["alembic_version", "orders"]
        assert alembic_version(estate, name) == ["b2"]
    assert set(estate.stored("app").values()) == {"b2"}
    assert estate.tables("public") == ["alembic_version"]
    assert estate.upgrade(source=source, verify=True).state is RunState.DONE


def test_an_env_that_connects_elsewhere_is_refused_before_it_runs(
    estate: Estate, tmp_path: Path
) -> None:
    estate.add_schemas(1)
    elsewhere = ENV_GENERIC.replace(
        "with connectable.connect() as connection:",
        "with connectable.connect() as connection:\n"
        "    connection.exec_driver_sql('SET search_path TO public')",
    )
    source = register(estate, make_alembic(tmp_path / "app", elsewhere), tmp_path / "app")
    run = estate.upgrade(source=source)
    assert "not to the tenant" in failed(estate, run, "t001")
    assert estate.tables("public") == []


def test_a_revision_that_raises_leaves_the_tenant_as_it_was(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(2)
    folder = tmp_path / "app"
    source = register(estate, make_alembic(folder), folder)
    estate.upgrade(source=source)
    add_revision(
        folder,
        "c3_broken",
        """
        revision, down_revision = "c3", "b2"

        def upgrade():
            op.create_table("half", sa.Column("id", sa.BigInteger))
            raise RuntimeError("the third half")
        """,
    )
    run = estate.upgrade(source=source)
    assert run.state is RunState.STOPPED
    assert "the third half" in failed(estate, run, "t001")
    assert estate.tables("t001") == ["alembic_version", "orders"]
    assert alembic_version(estate, "t001") == ["b2"]


def test_revisions_ahead_and_unknown_are_refused(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(2)
    folder = tmp_path / "app"
    source = register(estate, make_alembic(folder), folder)
    estate.upgrade(source=source, tenants=("t001",))
    with estate.connect() as connection:
        connection.execute(
            "CREATE TABLE t002.alembic_version (version_num varchar(32) NOT NULL);"
            "INSERT INTO t002.alembic_version VALUES ('zz')"
        )
    with pytest.raises(FailedPreconditionError, match=r"1 of 2 tenants are ahead of a1: t001"):
        estate.upgrade(source=source, to="a1")
    # The truth is in the tenant: it is refused there as well if the stored version is behind.
    estate.service.tenants.store_version(estate.service.tenants.get("t001").id, source, "")
    run = estate.upgrade(source=source, to="a1")
    assert "ahead of a1" in failed(estate, run, "t001")
    assert "not among the revisions" in failed(estate, run, "t002")


def test_django_migrates_each_schema_with_all_that_belongs_to_it(
    estate: Estate, tmp_path: Path
) -> None:
    names = estate.add_schemas(2)
    folder = tmp_path / "site"
    source = register(estate, make_django(folder), folder)
    run = estate.upgrade(source=source, jobs=2)
    assert run.state is RunState.DONE, estate.items(run)
    with estate.connect() as connection:
        for name in names:
            assert {"shop_order", "auth_user", "django_migrations"} <= set(estate.tables(name))
            row = connection.execute(f"SELECT count(*) FROM {name}.auth_permission").fetchone()
            assert row is not None
            assert row[0] > 0  # what post_migrate makes
    assert estate.tables("public") == []
    add_django_migration(
        folder, "0003_total", "0002_note", 'migrations.RunSQL("SELECT no_such_function()")'
    )
    before = estate.stored("app")
    run = estate.upgrade(source=source, wave="canary:1")
    assert run.state is RunState.STOPPED
    assert "no_such_function" in failed(estate, run, "t001")
    assert estate.stored("app") == before


def test_a_schema_with_migrations_that_django_does_not_know_is_refused(
    estate: Estate, tmp_path: Path
) -> None:
    estate.add_schemas(1)
    folder = tmp_path / "site"
    source = register(estate, make_django(folder), folder)
    estate.upgrade(source=source)
    with estate.connect() as connection:
        connection.execute(
            "INSERT INTO t001.django_migrations (app, name, applied)"
            " VALUES ('shop', '0009_future', now())"
        )
    run = estate.upgrade(source=source, verify=True)
    assert "shop.0009_future" in failed(estate, run, "t001")


def test_a_function_is_called_once_for_each_version(estate: Estate, tmp_path: Path) -> None:
    names = estate.add_schemas(3)
    folder = tmp_path / "jobs"
    source = register(estate, make_function(folder, MAKE_TABLE), folder)
    assert estate.upgrade(source=source, to="1").state is RunState.DONE
    run = estate.upgrade(source=source)
    assert run.state is RunState.DONE
    for name in names:
        assert estate.tables(name) == ["made_1", "made_2", "tidegate_migration"]
        assert estate.recorded(name) == ["1", "2"]


def test_a_function_that_ends_its_transaction_is_told(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(1)
    folder = tmp_path / "jobs"
    source = register(estate, make_function(folder, "connection.commit()"), folder)
    run = estate.upgrade(source=source)
    assert "ended the tenant's transaction" in failed(estate, run, "t001")


def test_a_worker_that_dies_costs_its_tenant_a_retry(estate: Estate, tmp_path: Path) -> None:
    names = estate.add_schemas(4)
    folder = tmp_path / "jobs"
    die_once = (
        "import os, pathlib\n"
        f"mark = pathlib.Path({str(tmp_path)!r}) / 'died'\n"
        "if tenant.name == 't002' and not mark.exists():\n"
        "    mark.touch()\n"
        "    os.kill(os.getpid(), 9)\n" + MAKE_TABLE
    )
    source = register(estate, make_function(folder, die_once, '("1",)'), folder)
    run = estate.upgrade(source=source, jobs=2)
    assert run.state is RunState.DONE
    items = estate.items(run)
    assert {name: items[name].attempts for name in names} == {
        "t001": 1,
        "t002": 2,
        "t003": 1,
        "t004": 1,
    }


def test_a_tenant_that_kills_every_worker_fails_alone(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(3)
    folder = tmp_path / "jobs"
    die = 'if tenant.name == "t002":\n    import os\n    os.kill(os.getpid(), 9)'
    source = register(estate, make_function(folder, die, '("1",)'), folder)
    run = estate.upgrade(source=source, retries=1)
    assert run.state is RunState.PARTLY_FAILED
    assert estate.in_state(run, ItemState.DONE) == ["t001", "t003"]
    assert "SIGKILL" in failed(estate, run, "t002")
    assert estate.items(run)["t002"].attempts == 2


def test_a_worker_that_hangs_is_ended(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(1)
    folder = tmp_path / "jobs"
    hang = "import signal\nsignal.pause()"
    source = register(estate, make_function(folder, hang, '("1",)'), folder)
    run = estate.upgrade(source=source, tenant_timeout_s=2)
    assert "not done within 2 s" in failed(estate, run, "t001")


def test_workers_are_replaced_after_so_many_tenants(estate: Estate, tmp_path: Path) -> None:
    estate.add_schemas(6)
    folder = tmp_path / "jobs"
    note = """
    import os
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE worker_{os.getpid()} ()")
    """
    source = register(estate, make_function(folder, note, '("1",)'), folder)
    assert estate.upgrade(source=source, jobs=1, recycle_after=2).state is RunState.DONE
    workers = [
        table
        for number in range(1, 7)
        for table in estate.tables(f"t{number:03d}")
        if table.startswith("worker_")
    ]
    assert [workers.count(each) for each in dict.fromkeys(workers)] == [2, 2, 2]


def test_passwords_reach_neither_errors_nor_the_command_line(
    estate: Estate, tmp_path: Path
) -> None:
    estate.add_schemas(1)
    folder = tmp_path / "jobs"
    tell = """
    import os, pathlib, sys
    lines = pathlib.Path("/proc/self/cmdline").read_text() + repr(dict(os.environ))
    raise RuntimeError(f"password={connection.info.password} in process: "
                       f"{connection.info.password in lines} {connection.info.password}")
    """
    source = register(estate, make_function(folder, tell, '("1",)'), folder)
    message = failed(estate, estate.upgrade(source=source), "t001")
    assert estate.server.password not in message
    assert "in process: False" in message


def test_sources_that_cannot_be_loaded_are_refused_at_once(estate: Estate, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    make_function(folder, "pass")
    for source in ("python:nothing:migrate", "django:no.settings", "python:upgrades:other"):
        with pytest.raises(MigrationSourceError, match="cannot be loaded"):
            register(estate, source, folder)
    with pytest.raises(InvalidArgumentError, match="does not run programs"):
        register(estate, "python:upgrades:migrate", tmp_path / "app" / ".." / ".." / "elsewhere")
    ini = make_alembic(tmp_path / "two")
    body = 'revision, down_revision = "x9", "a1"\n\ndef upgrade():\n    pass\n'
    add_revision(tmp_path / "two", "x9_other", body)
    estate.add_schemas(1)
    register(estate, ini, tmp_path)
    with pytest.raises(InvalidArgumentError, match="2 heads"):
        estate.upgrade(source="app")
