"""A shard's schema is copied to another shard: everything, verified, or nothing."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_fleet import Fleet
from tidegate.engines.postgres.local import find_programs
from tidegate.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    MismatchError,
    NotFoundError,
    PreflightError,
    SchemaDiffersError,
)
from tidegate.topology.records import Tablet, TabletType
from tidegate.workflow.requests import SchemaRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.workflow.copy_schema import SchemaReport

pytestmark = pytest.mark.servers

SCHEMA = """
SET search_path = public;
CREATE SCHEMA sales;
GRANT USAGE ON SCHEMA sales TO application;
CREATE TYPE sales.mood AS ENUM ('sad', 'it''s "ok"');
CREATE FUNCTION sales.positive(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 0';
CREATE DOMAIN sales.amount AS int CHECK (sales.positive(VALUE));
CREATE COLLATION sales.plain (provider = libc, locale = 'C');
CREATE SEQUENCE shared INCREMENT 10 CACHE 5;
CREATE TABLE customers (
  id bigint GENERATED ALWAYS AS IDENTITY (START WITH 100) PRIMARY KEY,
  name text COLLATE sales.plain NOT NULL UNIQUE,
  feels sales.mood DEFAULT 'sad',
  paid sales.amount CHECK (paid > 1),
  twice int GENERATED ALWAYS AS (paid * 2) STORED
);
CREATE TABLE sales."Order" (
  id serial PRIMARY KEY,
  number bigint DEFAULT nextval('shared'),
  customer bigint REFERENCES customers ON DELETE CASCADE
) WITH (fillfactor = 70);
CREATE INDEX by_customer ON sales."Order" (customer, lower(id::text)) WHERE number > 0;
CREATE STATISTICS sales.st ON id, number FROM sales."Order";
COMMENT ON COLUMN sales."Order".number IS 'it''s shared';
GRANT SELECT, INSERT ON sales."Order" TO application;
GRANT UPDATE (number) ON sales."Order" TO application;
ALTER TABLE customers ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON customers FOR SELECT TO application USING (name = current_user);
CREATE TABLE events (at date NOT NULL, what text, PRIMARY KEY (at, what))
  PARTITION BY RANGE (at);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE INDEX events_what ON events (what);
CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO events VALUES (now(), NEW.name); RETURN NEW; END $$;
CREATE TRIGGER log_it AFTER INSERT ON customers FOR EACH ROW EXECUTE FUNCTION log_it();
CREATE FUNCTION total(c bigint) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(*) FROM sales."Order" WHERE customer = c $$;
CREATE VIEW happy AS SELECT id, name FROM customers WHERE feels <> 'sad';
CREATE VIEW happier AS SELECT h.id, total(h.id) FROM happy h;
GRANT SELECT ON happier TO application;
COMMENT ON VIEW happy IS 'those who are';
CREATE RULE no_delete AS ON DELETE TO customers DO INSTEAD NOTHING;
INSERT INTO customers (name, paid) VALUES ('a row', 2);
"""
NAMES = ["customers", "events", "events_1", "events_rest", "sales.Order"]


def execute(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.admin() as session:
        session.execute("SET search_path = public")
        done = session.execute(sql.SQL(statement))
        return done.fetchall() if done.description else []


@pytest.fixture
def shards(
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> Iterator[Fleet]:
    """An empty shard at each of two servers."""
    made = Fleet.make(tmp_path)
    made.add_keyspace("old", {"0": make_database(source_server)})
    made.add_keyspace("new", {"0": make_database(target_server)})
    yield made
    made.close()


def request(**options: Any) -> SchemaRequest:
    return SchemaRequest(
        source_keyspace="old",
        source_shard="0",
        target_keyspace="new",
        target_shard="0",
        **options,
    )


def at_source(fleet: Fleet, statement: str) -> list[tuple[Any, ...]]:
    return execute(fleet.shards["old", "0"], statement)


def at_target(fleet: Fleet, statement: str) -> list[tuple[Any, ...]]:
    return execute(fleet.shards["new", "0"], statement)


def objects(fleet: Fleet) -> list[tuple[Any, ...]]:
    """Everything people made at the target, and settings."""
    return at_target(
        fleet,
        "SELECT 'class', oid::regclass::text FROM pg_class WHERE oid >= 16384"
        " UNION ALL SELECT 'proc', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384"
        " UNION ALL SELECT 'type', oid::regtype::text FROM pg_type WHERE oid >= 16384"
        " UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE oid >= 16384"
        " UNION ALL SELECT 'extension', extname::text FROM pg_extension"
        " UNION ALL SELECT 'setting', s::text FROM pg_db_role_setting s"
        "  JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = current_database()"
        " ORDER BY 1, 2",
    )


def dumped(database: Database) -> list[str]:
    """What pg_dump says of a database, sorted: objects may have been made in another order."""
    done = subprocess.run(
        [
            str(find_programs(18).path("pg_dump")),
            "--schema-only",
            database.server.conninfo(database.name),
        ],
        env={**os.environ, "PGPASSWORD": database.server.password},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    return sorted(line for line in lines if line and not line.startswith(("--", "\\")))


def copied(fleet: Fleet, **options: Any) -> SchemaReport:
    return fleet.service.copy_schema(request(**options))


def test_everything_arrives_and_a_second_copy_finds_nothing_to_do(shards: Fleet) -> None:
    at_source(shards, SCHEMA)
    before = objects(shards)
    found = shards.service.compare_schemas(request())
    assert [each for each in found.diff.missing if each.startswith("table")] == [
        f"table {name}" for name in NAMES
    ]
    assert {"function total(bigint)", "view happier", "schema sales"} <= set(found.diff.missing)
    tried = shards.service.copy_schema(request(), dry_run=True)
    assert (tried.dry_run, tried.verified) == (True, True)
    assert objects(shards) == before
    made = copied(shards)
    assert (made.verified, made.is_equal) == (True, False)
    assert made.statements == tried.statements
    assert any('CREATE TABLE sales."Order"' in each for each in made.statements)
    again = copied(shards)
    assert (again.is_equal, again.statements) == (True, ())
    assert "nothing to copy" in again.summary
    assert shards.service.compare_schemas(request()).is_equal
    assert dumped(shards.shards["old", "0"]) == dumped(shards.shards["new", "0"])
    assert at_target(shards, "SELECT count(*) FROM customers") == [(0,)]
    assert shards.own_objects() == {}
    at_target(
        shards,
        "INSERT INTO customers (name, paid) VALUES ('x', 3); DELETE FROM customers;"
        ' INSERT INTO sales."Order" (customer) SELECT id FROM happy',
    )
    assert at_target(shards, "SELECT id, twice FROM customers") == [(100, 6)]
    assert at_target(shards, "SELECT what FROM events") == [("x",)]


def test_a_schema_of_an_older_server_arrives_at_a_newer_one(
    shards: Fleet, old_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    """Views and rules are written differently there; the copy is equal all the same."""
    database = make_database(old_server)
    shards.add_keyspace("older", {"0": database})
    execute(database, SCHEMA)
    execute(database, "GRANT ALL ON customers TO application")
    between = SchemaRequest(
        source_keyspace="older", source_shard="0", target_keyspace="new", target_shard="0"
    )
    assert shards.service.copy_schema(between).verified
    assert shards.service.copy_schema(between).is_equal


BOTH = """
CREATE TYPE m AS ENUM ('x');
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE b (id serial PRIMARY KEY, v int DEFAULT f(), m m);
CREATE INDEX b_v ON b (v);
CREATE VIEW w AS SELECT v FROM b;
"""


ALTERATIONS = """
ALTER TABLE b ADD extra int;
DROP INDEX b_v;
ALTER TABLE b ALTER v SET DEFAULT 7;
GRANT SELECT ON b TO application;
CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE OR REPLACE VIEW w AS SELECT v, 1 AS k FROM b;
ALTER SEQUENCE b_id_seq INCREMENT 5;
COMMENT ON COLUMN b.v IS 'other';
"""
DIFFERENT = {
    "table b": [
        "column extra is only at the target",
        "column order differs",
        "comment of column v is only at the target",
        "default of v differs",
        "grant to application is only at the target",
        "index b_v is missing at the target",
        "storage of extra is only at the target",
    ],
    "function f()": ["definition differs"],
    "view w": ["definition differs"],
    "type m": ["definition differs"],
    "sequence b_id_seq": ["definition differs"],
}


def test_what_a_copy_cannot_fix_is_refused_by_name(shards: Fleet) -> None:
    """Objects that both have and that differ; what is missing besides is not made either."""
    at_source(shards, BOTH + "CREATE TABLE more (id int PRIMARY KEY)")
    at_target(shards, BOTH)
    at_target(shards, ALTERATIONS)
    at_target(shards, "ALTER TYPE m ADD VALUE 'y'")
    before = objects(shards)
    for dry_run in (True, False):
        with pytest.raises(SchemaDiffersError, match="table b: column extra") as caught:
            shards.service.copy_schema(request(), dry_run=dry_run)
        different = {each["object"]: each["how"] for each in caught.value.details["different"]}
        assert different == DIFFERENT
    assert caught.value.details["missing"] == ["table more"]
    assert objects(shards) == before


def test_only_the_named_tables_come_with_what_they_need(shards: Fleet) -> None:
    at_source(shards, SCHEMA)
    at_source(shards, "CREATE TABLE lonely (id int); CREATE VIEW l AS SELECT id FROM lonely")
    with pytest.raises(FailedPreconditionError, match="Order_customer_fkey of sales"):
        copied(shards, tables=("sales.Order",))
    assert copied(shards, tables=("lonely",), include_views=False).diff.missing == ("table lonely",)
    later = copied(shards, tables=("lonely",))
    assert later.diff.missing == ("view l",)
    part = copied(shards, tables=("customers", "events_1"))
    assert "table events_rest" in part.diff.missing, "a partition comes with its siblings"
    assert "function total(bigint)" in part.diff.missing, "a view needs it"
    assert copied(shards, tables=("sales.Order",)).verified, "customers is there by now"
    assert at_target(
        shards, "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND conparentid = 0"
    ) == [("Order_customer_fkey",)]
    assert copied(shards).is_equal


def test_what_is_left_out_and_what_only_the_target_has_is_no_obstacle(shards: Fleet) -> None:
    at_source(shards, BOTH + "CREATE TABLE out (id int); CREATE MATERIALIZED VIEW k AS SELECT 1")
    at_target(shards, "CREATE TABLE out (other text); CREATE TABLE mine (id int)")
    made = copied(shards, exclude_tables=("out",))
    assert made.diff.only_at_target == ("table mine",)
    assert made.diff.not_compared == ("materialized view k",)
    assert copied(shards, exclude_tables=("out",)).is_equal
    with pytest.raises(SchemaDiffersError, match="table out"):
        copied(shards)
    at_source(
        shards,
        "CREATE TABLE p (k int) PARTITION BY LIST (k); CREATE TABLE p1 PARTITION OF p DEFAULT",
    )
    with pytest.raises(InvalidArgumentError, match="cannot be left out"):
        copied(shards, exclude_tables=("out", "p1"))


def test_a_copy_that_differs_at_the_end_leaves_nothing_behind(shards: Fleet) -> None:
    """An event trigger at the target alters what is made; only the comparison sees it."""
    at_source(shards, BOTH)
    at_target(
        shards,
        "CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF to_regclass('public.b') IS NOT NULL AND to_regclass('public.meddled') IS NULL THEN"
        " CREATE TABLE public.meddled (); ALTER TABLE public.b ADD meddled int; END IF; END $$;"
        " CREATE EVENT TRIGGER meddle ON ddl_command_end EXECUTE FUNCTION meddle()",
    )
    before = objects(shards)
    for dry_run in (True, False):
        with pytest.raises(MismatchError, match="column meddled is only at the target"):
            shards.service.copy_schema(request(), dry_run=dry_run)
    assert objects(shards) == before
    assert copied(shards, verify=False).verified is False
    assert ("class", "meddled") in objects(shards)


def test_what_the_server_refuses_is_named_and_leaves_nothing_behind(shards: Fleet) -> None:
    """A role that is missing, and an event trigger that forbids views."""
    at_source(
        shards,
        BOTH + "DO $$ BEGIN CREATE ROLE nowhere_else; EXCEPTION WHEN duplicate_object THEN END $$;"
        " ALTER TABLE b OWNER TO nowhere_else",
    )
    before = objects(shards)
    with pytest.raises(PreflightError) as caught:
        copied(shards)
    assert {f["id"] for f in caught.value.details["findings"] if f["severity"] == "error"} == {
        "TG-PF-409"
    }
    at_source(shards, "ALTER TABLE b OWNER TO application; DROP ROLE nowhere_else")
    at_target(
        shards,
        "CREATE FUNCTION never() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'no views here'; END $$;"
        " CREATE EVENT TRIGGER never ON ddl_command_start WHEN TAG IN ('CREATE VIEW')"
        " EXECUTE FUNCTION never()",
    )
    before = objects(shards)
    with pytest.raises(PreflightError, match=r"view public\.w cannot be made: .*never.*no views"):
        copied(shards)
    assert objects(shards) == before


def test_settings_and_grants_around_the_tables_come_along(shards: Fleet) -> None:
    database = shards.shards["old", "0"].name
    at_source(
        shards,
        BOTH + "ALTER TABLE b OWNER TO application; CREATE SCHEMA other;"
        f' ALTER ROLE application IN DATABASE "{database}" SET search_path = other, public;'
        f" ALTER DATABASE \"{database}\" SET datestyle = 'German'",
    )
    made = copied(shards)
    assert len(made.changes) == 2
    assert copied(shards).is_equal
    with shards.shards["new", "0"].application() as session:
        row = session.execute("SELECT current_setting('datestyle'), current_setting('search_path')")
        assert row.fetchone() == ("German, DMY", "other, public")


def test_the_source_is_read_beside_writers_and_through_a_replica_if_asked(shards: Fleet) -> None:
    """Whatever conflicts with more than ACCESS SHARE is held at the source all the while."""
    at_source(shards, BOTH)
    source = shards.shards["old", "0"]
    shards.topology.update(
        lambda snapshot: snapshot.with_tablet(
            Tablet(
                "zone1-900",
                "old",
                "0",
                frozenset({TabletType.REPLICA}),
                source.endpoint.conninfo,
                source.endpoint.secret,
            )
        )
    )
    with source.admin() as holder, holder.transaction():
        holder.execute("LOCK TABLE public.b IN EXCLUSIVE MODE")
        assert copied(shards, source_tablet="zone1-900").verified
    with pytest.raises(InvalidArgumentError, match=r"zone1-\d+ is of new/0"):
        copied(shards, source_tablet=shards.topology.read().primary_of("new", "0").alias)


def test_bad_input_is_refused_before_anything_is_done(shards: Fleet) -> None:
    at_source(shards, BOTH)
    with pytest.raises(NotFoundError, match="no such table at the source: nope"):
        copied(shards, tables=("b", "nope"))
    with pytest.raises(NotFoundError, match="nope"):
        copied(shards, exclude_tables=("nope",))
    with pytest.raises(InvalidArgumentError, match="w is not a table"):
        copied(shards, tables=("w",))
    with pytest.raises(InvalidArgumentError, match="TG-PF-201"):
        copied(shards, allow=("TG-PF-201",))
    with pytest.raises(NotFoundError, match="old/7"):
        shards.service.copy_schema(
            SchemaRequest(
                source_keyspace="old", source_shard="7", target_keyspace="new", target_shard="0"
            )
        )
    with pytest.raises(InvalidArgumentError, match="the same shard"):
        SchemaRequest(source_keyspace="a", source_shard="0", target_keyspace="a", target_shard="0")
    assert ("class", "b") not in objects(shards)


def test_a_function_that_reaches_for_what_does_not_come_is_refused_until_accepted(
    shards: Fleet,
) -> None:
    at_source(
        shards,
        "CREATE MATERIALIZED VIEW rates AS SELECT 1 AS r;"
        " CREATE FUNCTION rate() RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN (SELECT r FROM rates); END $$;"
        " CREATE TABLE t (id int PRIMARY KEY, r int DEFAULT rate())",
    )
    with pytest.raises(PreflightError) as caught:
        copied(shards)
    (finding,) = [f for f in caught.value.details["findings"] if f["severity"] == "error"]
    assert finding["id"] == "TG-PF-241"
    assert "--allow TG-PF-241" in finding["next_step"]
    assert "--leave-out-triggers" not in finding["next_step"]
    assert copied(shards, allow=("TG-PF-241",)).verified
