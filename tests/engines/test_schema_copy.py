"""Schema copy (rule 23): everything comes along, in the right order, from two versions."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING

import psycopg
import pytest

from tidegate.engines.postgres import fence, schema_copy, schema_dump, schema_make
from tidegate.engines.postgres.catalog import read_tables
from tidegate.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from tidegate.topology.connections import Endpoint
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

UUID = "0192f0a4-5b5e-7c3a-8f00-0123456789ab"

SCHEMA = """
CREATE SCHEMA "Sales";
CREATE SCHEMA untouched;
GRANT USAGE ON SCHEMA "Sales" TO application;
CREATE TYPE "Sales".mood AS ENUM ('sad', 'it''s "ok"');
COMMENT ON TYPE "Sales".mood IS 'how they are';
CREATE FUNCTION "Sales".positive(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 0';
CREATE DOMAIN "Sales".amount AS int CHECK ("Sales".positive(VALUE));
CREATE TYPE "Sales".address AS (street text, mood "Sales".mood);
CREATE FUNCTION "Sales".note() RETURNS trigger LANGUAGE plpgsql AS $f$
-- Name: fake; Type: TABLE; Schema: x; Owner: y
BEGIN NEW.b := NEW.b || ';'; RETURN NEW; END $f$;
CREATE FUNCTION untouched.unused() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE COLLATION "Sales".plain (provider = libc, locale = 'C');
CREATE SEQUENCE public.shared INCREMENT 10 CACHE 5;
CREATE TABLE public.stays (id int PRIMARY KEY);
CREATE TABLE "Sales"."Order" (
  id bigint GENERATED ALWAYS AS IDENTITY (START WITH 100 INCREMENT BY 2) PRIMARY KEY,
  m "Sales".mood DEFAULT 'sad',
  amount "Sales".amount,
  addresses "Sales".address[],
  s serial,
  sh bigint DEFAULT nextval('public.shared'),
  g int GENERATED ALWAYS AS (s * 2) STORED,
  b text COLLATE "Sales".plain NOT NULL UNIQUE,
  stays int REFERENCES public.stays,
  CHECK (s > 0),
  EXCLUDE USING btree (amount WITH =)
);
ALTER TABLE "Sales"."Order" ADD CONSTRAINT later CHECK (sh > 0) NOT VALID;
CREATE INDEX plain_one ON "Sales"."Order" (s, m);
CREATE UNIQUE INDEX unique_one ON "Sales"."Order" (lower(b));
CREATE STATISTICS "Sales".st ON s, sh FROM "Sales"."Order";
CREATE TRIGGER note BEFORE INSERT ON "Sales"."Order"
  FOR EACH ROW EXECUTE FUNCTION "Sales".note();
ALTER TABLE "Sales"."Order" DISABLE TRIGGER note;
COMMENT ON TABLE "Sales"."Order" IS 'what they; ''bought''';
COMMENT ON COLUMN "Sales"."Order".b IS 'note';
CREATE INDEX "Plain Two" ON "Sales"."Order" (m);
COMMENT ON INDEX "Sales"."Plain Two" IS 'and another';
COMMENT ON INDEX "Sales".unique_one IS 'one of a kind';
COMMENT ON CONSTRAINT later ON "Sales"."Order" IS 'some day';
COMMENT ON TRIGGER note ON "Sales"."Order" IS 'notes';
GRANT SELECT ON "Sales"."Order" TO PUBLIC;
GRANT UPDATE (b) ON "Sales"."Order" TO application;
ALTER TABLE "Sales"."Order" OWNER TO application;
CREATE TABLE public.line (
  k int NOT NULL, o bigint NOT NULL REFERENCES "Sales"."Order", v text
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX line_k ON public.line (k);
ALTER TABLE public.line REPLICA IDENTITY USING INDEX line_k;
CREATE TABLE public.whole (a int);
GRANT ALL ON public.whole TO application;
ALTER TABLE public.whole REPLICA IDENTITY FULL;
CREATE PUBLICATION others FOR TABLE public.line;
CREATE SCHEMA _tidegate;
"""

ORDER, LINE, WHOLE = (
    TableName("Sales", "Order"),
    TableName("public", "line"),
    TableName("public", "whole"),
)
NAMES = [ORDER, LINE, WHOLE]


@pytest.fixture(params=["source_server", "old_server"])
def source(
    request: pytest.FixtureRequest, make_database: Callable[[LocalServer], Database]
) -> Database:
    database = make_database(request.getfixturevalue(request.param))
    with database.admin() as connection:
        connection.execute(SCHEMA)
        connection.execute(fence.DDL)
        fence.arm(connection, UUID, "source", NAMES, workflow="w", denying=False)
    return database


@pytest.fixture
def target(
    target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> Database:
    database = make_database(target_server)
    with database.admin() as connection:
        connection.execute("CREATE SCHEMA _tidegate")
        connection.execute(fence.DDL)
    return database


def test_tables_arrive_as_they_were(source: Database, target: Database) -> None:
    plan = schema_copy.plan_schema(source.endpoint, NAMES)
    assert plan.roles == ("application", "postgres")
    assert plan.left_out == (
        "foreign key Order_stays_fkey of Sales.Order, which leads out of the set",
    )
    with source.admin() as old, target.admin() as new:
        schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        early = read_tables(new, NAMES)
        assert early[ORDER].primary_key == ("id",)
        assert early[LINE].replica_identity_columns == ("k",)
        assert [i.name for i in early[ORDER].indexes] == ["Order_pkey"]
        assert not early[LINE].foreign_keys
        for _, ddl in plan.after_copy:
            new.execute(ddl)
        assert [i.name for i in read_tables(new, NAMES)[ORDER].indexes] == [
            "Order_pkey",
            "Plain Two",
            "plain_one",
        ]
        for _, ddl in plan.after_catchup:
            new.execute(ddl)
        before, after = read_tables(old, NAMES), read_tables(new, NAMES)
        for name in NAMES:
            assert _shape(after[name]) == _shape(before[name])
        comments = (
            "SELECT array_agg(description ORDER BY description) FROM pg_description"
            " WHERE objoid >= 16384"
        )
        assert new.execute(comments).fetchone() == old.execute(comments).fetchone()
        for query in (
            "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'Sales'",
            "SELECT attacl::text FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid >= 16384",
            "SELECT seqstart, seqincrement, seqcache FROM pg_sequence ORDER BY 1, 2, 3",
            "SELECT enumlabel FROM pg_enum ORDER BY enumsortorder",
            "SELECT stxname FROM pg_statistic_ext",
            "SELECT reloptions FROM pg_class WHERE relname = 'line'",
        ):
            assert new.execute(query).fetchall() == old.execute(query).fetchall()
        assert new.execute(
            "SELECT to_regnamespace('untouched'), to_regclass('public.stays'),"
            " (SELECT count(*) FROM pg_publication)"
        ).fetchone() == (None, None, 0)


def _shape(table: object) -> dict[str, object]:
    facts = asdict(table)  # type: ignore[call-overload]
    for different in ("oid", "relfilenode", "est_rows", "bytes", "referenced_by"):
        facts.pop(different)
    facts["acl"] = [item for item in facts["acl"] if not item.startswith(f"{facts['owner']}=")]
    facts["acl"] = [item.replace("m/", "/") for item in facts["acl"]]  # MAINTAIN is new in 17
    for column in facts["columns"]:
        column.pop("type_oid")
    for part in (*facts["indexes"], *facts["sequences"]):
        part.pop("oid")
    facts["foreign_keys"] = [k for k in facts["foreign_keys"] if k["referenced"]["name"] != "stays"]
    facts["triggers"] = [t for t in facts["triggers"] if not t["own"]]
    for part in (*facts["constraints"], *facts["checks"], *facts["foreign_keys"]):
        part.pop("validated", None)
    return dict(facts)


def test_the_application_never_sees_the_new_tables_open(source: Database, target: Database) -> None:
    plan = schema_copy.plan_schema(source.endpoint, NAMES)
    with target.admin() as new:
        schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        state = fence.state(new, UUID, "target")
        assert state is not None
        assert (state.denying, state.unprotected, set(state.tables)) == (True, (), set(NAMES))
        assert {t.name for t in read_tables(new, [LINE])[LINE].triggers} == {
            "_tidegate_fence_0192f0a45b5e_target",
            "_tidegate_fence_0192f0a45b5e_target_all",
        }
    with target.application() as shop, pytest.raises(psycopg.Error) as caught:
        shop.execute("INSERT INTO public.whole VALUES (1)")
    assert caught.value.sqlstate == fence.FENCE_SQLSTATE


def test_a_table_that_is_there_leaves_the_target_untouched(
    source: Database, target: Database
) -> None:
    plan = schema_copy.plan_schema(source.endpoint, NAMES)
    with target.admin() as new:
        new.execute("CREATE TABLE public.line (id int)")
        with pytest.raises(AlreadyExistsError, match="line"):
            schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        assert new.execute("""SELECT to_regnamespace('"Sales"')""").fetchone() == (None,)
        assert fence.state(new, UUID, "target") is None


def test_a_second_workflow_finds_the_types_there(source: Database, target: Database) -> None:
    with target.admin() as new:
        for number, name in enumerate((ORDER, LINE)):
            plan = schema_copy.plan_schema(source.endpoint, [name])
            uuid = f"{number}{UUID[1:]}"
            schema_make.create_tables(new, plan, workflow_uuid=uuid, workflow="w")
        new.execute("""DROP TABLE "Sales"."Order", public.line""")
        plan = schema_copy.plan_schema(source.endpoint, [ORDER])
        schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        assert ORDER in read_tables(new)


def test_missing_roles_are_refused(database: Database, target: Database) -> None:
    with database.admin() as old, target.admin() as new:
        old.execute("CREATE ROLE only_here; CREATE TABLE public.t (id int PRIMARY KEY)")
        old.execute("GRANT SELECT ON public.t TO only_here")
        try:
            plan = schema_copy.plan_schema(database.endpoint, [TableName("public", "t")])
            with pytest.raises(FailedPreconditionError, match="only_here"):
                schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
            assert read_tables(new) == {}
        finally:
            old.execute("DROP OWNED BY only_here; DROP ROLE only_here")


def test_extensions_come_along_with_their_schema(database: Database, target: Database) -> None:
    with database.admin() as old, target.admin() as new:
        old.execute(
            "CREATE SCHEMA tools; CREATE EXTENSION citext SCHEMA tools;"
            " CREATE EXTENSION btree_gin;"
            " CREATE TABLE public.t (id tools.citext PRIMARY KEY, n int);"
            " CREATE INDEX t_n ON public.t USING gin (n)"
        )
        plan = schema_copy.plan_schema(database.endpoint, [TableName("public", "t")])
        assert plan.extensions == ("citext", "btree_gin")
        schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        for _, ddl in plan.after_copy:
            new.execute(ddl)
        assert new.execute(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'citext'"
        ).fetchone() == ("tools",)


def test_the_password_is_in_no_argument(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    run = subprocess.run

    def watching(command: list[str], **rest: object) -> object:
        seen.append(command)
        return run(command, **rest)  # type: ignore[call-overload]

    with database.admin() as old:
        old.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    monkeypatch.setattr(subprocess, "run", watching)
    schema_copy.plan_schema(database.endpoint, [TableName("public", "t")])
    assert len(seen) >= 3
    assert database.server.password not in str(seen)


def test_a_missing_table_and_a_wrong_database_are_named(database: Database) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        schema_copy.plan_schema(database.endpoint, [TableName("public", "nope")])
    with pytest.raises(schema_dump.SchemaDumpError, match="nowhere"):
        schema_dump.dump_items(
            Endpoint(database.server.conninfo("nowhere"), database.server.secret),
            major=18,
            snapshot="x",
            arguments=[],
        )


def test_a_source_newer_than_every_pg_dump_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FailedPreconditionError, match="pg_dump 19 or newer"):
        schema_dump.dump_items(database.endpoint, major=19, snapshot="x", arguments=[])


def test_the_listing_names_what_would_be_made(source: Database) -> None:
    lines = schema_copy.plan_schema(source.endpoint, NAMES).listing()
    assert 'type "Sales".mood, unless it is there' in lines
    assert "sequence public.shared, unless it is there" in lines
    assert "table Sales.Order" in lines
