"""A trial of a run in a copy of one tenant, which is dropped again whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from fix_tenants import ORDERS
from make_apps import make_alembic, make_django
from tidegate.bootstrap.tenants.model import RunState
from tidegate.engines.postgres.beyond_statements import reaches_beyond
from tidegate.engines.postgres.script import statements
from tidegate.engines.postgres.tenant_scratch import PREFIX
from tidegate.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CREATE ROLE a", "CREATE ROLE"),
        ("create /* x */ user a", "CREATE USER"),
        ('ALTER DATABASE "a" SET x = 1', "ALTER DATABASE"),
        ("DROP TABLESPACE a", "DROP TABLESPACE"),
        ("COMMENT ON ROLE a IS 'x'", "COMMENT ROLE"),
        ("ALTER SYSTEM SET x = 1", "ALTER SYSTEM"),
        ("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p", "CREATE SUBSCRIPTION"),
        ("GRANT a TO b", "GRANT of a role"),
        ("REVOKE ALL ON DATABASE d FROM b", "REVOKE … ON DATABASE"),
        ("REASSIGN OWNED BY a TO b", "REASSIGN OWNED"),
        ("COPY (SELECT a FROM t) TO '/tmp/x'", "COPY … TO"),
        ("COPY t FROM PROGRAM 'cat'", "COPY … PROGRAM"),
        ("COPY t FROM '/tmp/to'", None),
        ("COPY t FROM stdin;\n\\.\n", None),
        ("CREATE USER MAPPING FOR a SERVER s", None),
        ("GRANT SELECT ON TABLE t TO a", None),
        ("CREATE TABLE role (database int)", None),
        ("COMMENT ON TABLE t IS 'CREATE ROLE'", None),
        ("ALTER TABLE t RENAME TO role", None),
    ],
)
def test_what_reaches_beyond_a_copy_is_known_by_its_words(text: str, words: str | None) -> None:
    """Situation tenants 12: a trial reaches nothing but its copy."""
    (statement,) = statements(text)
    assert reaches_beyond(statement) == words


ALEMBIC_CHANGES = ["created column orders.note", "created index orders_note"]


def left(estate: Estate) -> list[str]:
    with estate.connect() as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [PREFIX]
        ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.servers
@pytest.mark.slow
class TestOfTenants:
    def test_files_are_tried_one_by_one_and_the_tenant_stays_as_it_was(
        self, estate: Estate
    ) -> None:
        """Situation tenants 12: a trial run in a throw-away copy."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        with estate.connect() as connection:  # structure that no file has made
            connection.execute("CREATE VIEW t001.by_hand AS SELECT id FROM t001.orders")
            connection.execute("INSERT INTO t001.orders VALUES (1, 'kept where it is')")
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        estate.write("003_index.sql", "CREATE INDEX CONCURRENTLY orders_total ON orders (total);")
        estate.write("R__v.sql", "CREATE OR REPLACE VIEW by_hand AS SELECT id, note FROM orders;")
        trial = estate.service.try_out(estate.request(single_transaction=False))
        assert (trial.tenant, trial.failure, trial.missed) == ("t001", "", ())
        assert [(each.versions, each.to_json()["changes"]) for each in trial.steps] == [
            (("002",), ["created column orders.total"]),
            (("003",), ["created index orders_total"]),
            (("R__v",), ["changed view by_hand"]),
        ]
        assert all(0 < each.took_ms < 60_000 for each in trial.steps)
        assert trial.copy_ms > 0
        assert (estate.recorded("t001"), left(estate)) == (["001"], [])
        assert estate.stored()["t001"] == "001"
        assert estate.service.runs.get(None).id == 1
        assert estate.upgrade().state is RunState.DONE
        assert estate.service.try_out(estate.request()).steps == ()

    def test_a_failure_in_the_copy_names_the_file_and_leaves_nothing(self, estate: Estate) -> None:
        """Situation tenants 12: the trial fails where the run would, in the chosen tenant."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        with estate.connect() as connection:
            connection.execute("CREATE TABLE t002.kept ()")
        estate.write("002_kept.sql", "CREATE TABLE kept ();")
        assert estate.service.try_out(estate.request()).failure == ""
        trial = estate.service.try_out(estate.request(tenants=("t002",)))
        assert trial.failure == '002_kept.sql: relation "kept" already exists'
        assert (trial.steps, left(estate)) == ((), [])

    def test_what_cannot_be_tried_is_refused_by_name(self, estate: Estate, tmp_path: Path) -> None:
        """Situation tenants 12: what would reach beyond the copy, or has no record in it."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        estate.write("002_role.sql", "CREATE TABLE a ();\nCREATE ROLE of_a_trial;")
        with pytest.raises(FailedPreconditionError, match=r"002_role.sql line 2: CREATE ROLE"):
            estate.service.try_out(estate.request())
        assert estate.service.try_out(estate.request(to="001")).failure == ""
        with pytest.raises(InvalidArgumentError, match="goes forward only"):
            estate.service.try_out(estate.request(to="001", downgrade=True))
        with estate.connect() as connection:
            assert not connection.execute(
                "SELECT 1 FROM pg_roles WHERE rolname = 'of_a_trial'"
            ).fetchall()
        folder = tmp_path / "app"
        estate.service.sources.add("app", make_alembic(folder))
        tenant = estate.service.tenants.get("t001")
        estate.service.tenants.store_version(tenant.id, "app", "a1")
        with pytest.raises(FailedPreconditionError, match="not in the table t001"):
            estate.service.try_out(estate.request(source="app"))
        assert left(estate) == []

    def test_a_database_and_a_role_of_their_own_are_copied(
        self, estate: Estate, new_database: Callable[[LocalServer], str]
    ) -> None:
        """Situation tenants 12: owners, and a tenant that is a whole database."""
        database = new_database(estate.server)
        place = estate.service.registry.place(keyspace="saas", database=database)
        estate.service.registry.add("whole", place)
        (name,) = estate.add_schemas(1)
        role = "app_of_a_trial"
        with estate.connect() as connection:
            connection.execute(f"DROP ROLE IF EXISTS {role}")
            connection.execute(f"CREATE ROLE {role}")
            connection.execute(f"GRANT ALL ON SCHEMA {name} TO {role}")
        with psycopg.connect(
            estate.server.conninfo(database), password=estate.server.password, autocommit=True
        ) as whole:
            whole.execute(f"GRANT ALL ON SCHEMA public TO {role}")
            estate.write("001_orders.sql", ORDERS)
            estate.service.sources.add("app", estate.source, role=role)
            try:
                assert estate.upgrade(source="app").state is RunState.DONE
                estate.write("002_note.sql", "ALTER TABLE orders DROP COLUMN note;")
                for tenant in ("whole", name):
                    request = estate.request(source="app", tenants=(tenant,))
                    trial = estate.service.try_out(request)
                    assert (trial.failure, trial.missed) == ("", ())
                    (step,) = trial.to_json()["steps"]
                    assert [each.split(".")[-1] for each in step["changes"]] == ["note"]
            finally:
                whole.execute(f"DROP OWNED BY {role}")
                with estate.connect() as connection:
                    connection.execute(f"DROP OWNED BY {role}")
                    connection.execute(f"DROP ROLE {role}")

    @pytest.mark.parametrize("kind", ["alembic", "django"])
    def test_programs_are_tried_as_well(self, estate: Estate, tmp_path: Path, kind: str) -> None:
        """Situation tenants 12: what is pending of Alembic and Django, by their own tables."""
        estate.add_schemas(1)
        if kind == "alembic":
            estate.service.sources.add("app", make_alembic(tmp_path))
            estate.upgrade(source="app", to="a1")
        else:
            estate.service.sources.add("app", make_django(tmp_path), folder=str(tmp_path))
        before = estate.tables("t001")
        trial = estate.service.try_out(estate.request(source="app"))
        assert trial.failure == ""
        (step,) = trial.to_json()["steps"]
        if kind == "alembic":
            assert (step["versions"], step["changes"]) == (["b2"], ALEMBIC_CHANGES)
        else:
            assert "created table shop_order" in step["changes"]
        assert (estate.tables("t001"), left(estate)) == (before, [])

    def test_a_tenant_of_any_name_is_copied(self, estate: Estate) -> None:
        """Situation tenants 12, and tenants 11: quotes, signs of patterns, line ends."""
        names = ["T%s \"q\" 'a' \\ $x.*?", "tab\tand\nline"]
        with estate.connect() as connection:
            for number, name in enumerate(names):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
                place = estate.service.registry.place(keyspace="saas", schema=name)
                estate.service.registry.add(f"n{number}", place)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        for tenant in ("n0", "n1"):
            trial = estate.service.try_out(estate.request(tenants=(tenant,)))
            assert (trial.failure, trial.missed) == ("", ())
            assert [each.versions for each in trial.steps] == [("002",)]
