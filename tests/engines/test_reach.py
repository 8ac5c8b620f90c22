"""What tables reach for through the bodies of functions is found, and made at a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tidegate.engines.postgres import (
    fence,
    schema_copy,
    schema_make,
    support_removal,
    surroundings,
)
from tidegate.engines.postgres.bodies.reach import reach
from tidegate.engines.postgres.catalog import require_tables
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.engines.postgres.bodies.graph import Reach
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

UUID = "00000000-0000-4000-8000-000000000007"
ORDERS, ITEMS = TableName("public", "orders"), TableName("sales", "items")

SCHEMA = """
SET search_path = public;
CREATE SCHEMA sales; CREATE SCHEMA calc; CREATE SCHEMA application;
CREATE TYPE calc.mood AS ENUM ('sad', 'happy');
CREATE TEXT SEARCH DICTIONARY public.stems (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION public.words (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION public.words ALTER MAPPING FOR asciiword WITH public.stems;
CREATE TABLE public.audit_log (at timestamptz DEFAULT now(), what text);
CREATE TABLE public.orders (id bigint PRIMARY KEY, total int, said text, found tsvector,
                            feeling text, seen text);
CREATE TABLE sales.items (id bigint PRIMARY KEY, price int);
CREATE VIEW public.cheap AS SELECT id, price FROM sales.items WHERE price < 100;
CREATE VIEW public.watched AS SELECT o.id, a.what FROM orders o JOIN audit_log a ON a.what = o.said;
CREATE MATERIALIZED VIEW public.counted AS SELECT count(*) FROM sales.items;
COMMENT ON VIEW public.cheap IS 'bargains';
GRANT SELECT ON public.cheap TO application;

CREATE FUNCTION public.thrice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 3';
CREATE FUNCTION public.twice(n int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN RETURN thrice(n) - n; END $$;
CREATE FUNCTION calc.plus(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b';
CREATE OPERATOR calc.#+ (LEFTARG = int, RIGHTARG = int, FUNCTION = calc.plus);
CREATE FUNCTION calc.hidden(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
CREATE FUNCTION application.owned() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$;
CREATE PROCEDURE public.note(t text) LANGUAGE plpgsql AS $$ BEGIN PERFORM length(t); END $$;
CREATE FUNCTION public.definer() RETURNS text LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = "$user", public AS $$ BEGIN RETURN owned(); END $$;
ALTER FUNCTION public.definer() OWNER TO application;
CREATE FUNCTION public.pathed(n int) RETURNS int LANGUAGE plpgsql SET search_path = calc, pg_temp AS
  $$ BEGIN RETURN hidden(n) #+ 0; END $$;
CREATE FUNCTION public.label(o orders) RETURNS text LANGUAGE sql AS $$ SELECT o.said $$;
CREATE FUNCTION public.fill() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r orders; m calc.mood := 'happy';
BEGIN
  r := NEW;
  r.total := pathed(twice(NEW.total));
  CALL note(NEW.said);
  r.found := to_tsvector('public.words', NEW.said);
  r.feeling := m;
  r.seen := definer() || label(NEW) || (SELECT count(*) FROM cheap);
  RETURN r;
END $$;
CREATE FUNCTION public.log_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit_log (what) VALUES (NEW.said); RETURN NULL; END $$;
CREATE TRIGGER fill BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fill();
CREATE TRIGGER log_it AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION log_it();
COMMENT ON TRIGGER log_it ON orders IS 'who did it';
CREATE FUNCTION public.total_of(k bigint) RETURNS int LANGUAGE sql AS
  'SELECT total FROM orders WHERE id = k';
"""


def make(server: LocalServer, make_database: Callable[[LocalServer], Database], sql: str) -> Any:
    database = make_database(server)
    with database.admin() as connection:
        connection.execute(sql)
    return database


def read(connection: Connection[TupleRow], *tables: TableName, **options: Any) -> Reach:
    found = require_tables(connection, tables)
    return reach(
        connection,
        {name: table.oid for name, table in found.items()},
        {s.name: s.oid for table in found.values() for s in table.sequences},
        **options,
    )


def test_what_a_trigger_needs_comes_along_and_works_there(
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    """Situation 2, situation 3: functions, procedures, types, operators, text search and views."""
    source = make(source_server, make_database, SCHEMA)
    target = make(target_server, make_database, f"CREATE SCHEMA _tidegate; {fence.DDL}")
    with source.admin() as old, target.admin() as new:
        reached = read(old, ORDERS, ITEMS, without=["orders.log_it"])
        assert reached.stays == ()
        assert reached.views == ("public.cheap",)
        assert dict(reached.views_left) == {
            "public.counted": "it is materialised",
            "public.watched": "it reads audit_log, which stays",
        }
        assert reached.callers == {ORDERS: ("function public.total_of(bigint)",)}
        plan = schema_copy.plan_schema(source.endpoint, [ORDERS, ITEMS], reached)
        assert plan.left_out == ("trigger log_it of orders, as asked",)
        made = support_removal.absent(new, plan)
        schema_make.create_tables(new, plan, workflow_uuid=UUID, workflow="w")
        for _, ddl in (*plan.after_copy, *plan.after_catchup):
            new.execute(ddl)
        fence.remove(new, UUID, "target")
        new.execute("GRANT ALL ON SCHEMA public, sales, calc, application TO application")
        new.execute("GRANT ALL ON public.orders, public.cheap TO application")
        application = target.application()
        application.execute("INSERT INTO orders (id, total, said) VALUES (1, 21, 'the words')")
        row = application.execute("SELECT total, found, feeling, seen FROM orders").fetchone()
        assert row == (42, "'words':2", "happy", "minethe words0")
        comment = "SELECT obj_description('public.cheap'::regclass)"
        assert new.execute(comment).fetchone() == old.execute(comment).fetchone() == ("bargains",)
        application.close()
        support_removal.remove(new, made)
        new.execute("DROP TABLE public.orders, sales.items")
        support_removal.remove(new, made)
        left = new.execute(
            "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')"
        ).fetchone()
        assert left == (0,)


def test_a_trigger_that_writes_to_a_table_that_stays_is_named(
    database: Database,
) -> None:
    """Situation 1: trigger, function and table are named; carried or present tables are no matter.

    So is what a view leads to, and what a called function reads.
    """
    with database.admin() as session:
        session.execute(SCHEMA)
        (stay,) = read(session, ORDERS, ITEMS).stays
        assert (stay.table, stay.part) == (ORDERS, "trigger log_it")
        assert stay.routine == "function public.log_it()"
        assert (stay.relation, stay.kind, stay.writes) == (
            TableName("public", "audit_log"),
            "table",
            True,
        )
        assert read(session, ORDERS, ITEMS, there=frozenset({stay.relation})).stays == ()
        assert read(session, ORDERS, ITEMS, stay.relation).stays == ()
        assert read(session, ORDERS, without=["orders.nope"]).unknown_triggers == ("orders.nope",)
        (_, view) = sorted(read(session, ORDERS).stays, key=lambda each: each.part != "trigger log")
        relations = {str(each.relation) for each in read(session, ORDERS).stays}
        assert relations == {"audit_log", "sales.items"}, view


@pytest.mark.parametrize("server", ["source_server", "old_server"])
def test_sequences_and_functions_that_lean_on_what_stays_are_named(
    server: str, request: pytest.FixtureRequest, make_database: Callable[[LocalServer], Database]
) -> None:
    """Situation 3, relatives: a sequence only a body draws from, and a default's whole chain.

    A sequence that belongs to a column of a table that stays is named; a free one comes along.
    """
    with make_database(request.getfixturevalue(server)).admin() as session:
        session.execute(
            """
            SET search_path = public;
            CREATE SEQUENCE invoice_no; CREATE TABLE rates (rate int, no serial);
            CREATE FUNCTION rate() RETURNS int LANGUAGE sql
              BEGIN ATOMIC SELECT max(rate) FROM rates; END;
            CREATE FUNCTION next_invoice() RETURNS int LANGUAGE sql
              AS $$ SELECT nextval('invoice_no')::int + nextval('rates_no_seq')::int $$;
            CREATE TABLE invoices (id bigint PRIMARY KEY, n int DEFAULT next_invoice(),
                                   r int DEFAULT rate());
            CREATE FUNCTION run(q text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE q; END $$;
            CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
              BEGIN PERFORM run('INSERT INTO rates VALUES (1)'); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER late AFTER INSERT ON invoices
              FOR EACH ROW EXECUTE FUNCTION late();
            """
        )
        found = read(session, TableName("public", "invoices"))
        assert [(s.part, str(s.relation), s.kind) for s in found.stays] == [
            ("default n", "rates_no_seq", "sequence"),
            ("default r", "rates", "table"),
        ]
        assert [str(name) for name in found.sequences] == ["invoice_no"]
        (unread,) = found.unread
        assert unread.part == "trigger late"
        assert unread.routine == "function public.run(pg_catalog.text)"
        assert unread.chain == ("function public.late()", "function public.run(pg_catalog.text)")


def test_a_text_search_configuration_is_found_among_the_arguments_of_a_trigger(
    database: Database,
) -> None:
    """Situation 3, relative: tsvector_update_trigger names it in an argument, not in a body."""
    with database.admin() as session:
        session.execute(
            """
            CREATE TEXT SEARCH CONFIGURATION public.words (COPY = pg_catalog.simple);
            CREATE TABLE public.page (id bigint PRIMARY KEY, t text, v tsvector);
            CREATE TRIGGER fill BEFORE INSERT ON public.page FOR EACH ROW EXECUTE FUNCTION
              tsvector_update_trigger(v, 'public.words', t);
            """
        )
        found = read(session, TableName("public", "page"))
        assert [node.catalog for node in found.carried] == ["pg_ts_config"]


def test_an_extension_whose_function_only_a_body_calls_is_needed(database: Database) -> None:
    """Situation 3, relative: the function is the extension's, so the extension comes along.

    An extension's overload of a name of the system's is no reason to need it.
    """
    with database.admin() as session:
        session.execute(
            """
            CREATE EXTENSION pg_trgm SCHEMA public; CREATE EXTENSION citext SCHEMA public;
            CREATE FUNCTION public.fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              NEW.v := public.similarity(replace(NEW.t, 'a', 'b'), 'word'); RETURN NEW; END $$;
            CREATE TABLE public.page (id bigint PRIMARY KEY, t text, v real);
            CREATE TRIGGER fill BEFORE INSERT ON public.page
              FOR EACH ROW EXECUTE FUNCTION public.fill();
            """
        )
        page = TableName("public", "page")
        plan = schema_copy.plan_schema(database.endpoint, [page], read(session, page))
        assert plan.extensions == ("pg_trgm",)
        assert [each.identity for each in plan.support] == ["public.fill()"]


def test_settings_and_grants_are_made_where_the_role_may_and_named_otherwise(
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    """Situation 4: search_path, TimeZone, statement_timeout, lc_* and an extension's parameter."""
    source = make(source_server, make_database, "CREATE SCHEMA sales")
    target = make(target_server, make_database, "CREATE SCHEMA sales")
    with source.admin() as old, target.admin() as new:
        for statement in (
            'ALTER ROLE application IN DATABASE {} SET search_path = sales, "$user", public',
            "ALTER ROLE application IN DATABASE {} SET statement_timeout = '7s'",
            "ALTER DATABASE {} SET \"TimeZone\" = 'Asia/Tokyo'",
            "ALTER DATABASE {} SET lc_monetary = 'C'",
            "ALTER DATABASE {} SET shop.tenant = 'it''s'",
            "ALTER DATABASE {} SET role = application",
            "ALTER ROLE {role} IN DATABASE {} SET search_path = nowhere",
        ):
            role = old.info.user
            old.execute(statement.format(f'"{source.name}"', role=f'"{role}"'))
        old.execute("GRANT USAGE ON SCHEMA sales TO application")
        new.execute(f"ALTER DATABASE \"{target.name}\" SET lc_monetary = 'C.UTF-8'")

        def found(*, shared: bool = False) -> dict[str, str]:
            wanted = surroundings.changes(
                surroundings.read(old, ["application"], ["sales"]),
                surroundings.read(new, ["application"], ["sales"]),
                database=target.name,
                roles=frozenset({"application"}),
                users=frozenset({"application"}),
                shared=shared,
            )
            return {c.statement: c.held_back for c in surroundings.tried(new, wanted)}

        database, role = (
            f'DATABASE "{target.name}"',
            f'ROLE "application" IN DATABASE "{target.name}"',
        )
        before = found()
        assert before == {
            f"ALTER {database} SET \"TimeZone\" TO 'Asia/Tokyo'": "",
            f"ALTER {database} SET \"lc_monetary\" TO 'C'": "the target has 'C.UTF-8'",
            f"ALTER {database} SET \"role\" TO 'application'": (
                "it would hold for Tidegate's own role"
            ),
            f"ALTER {database} SET \"shop\".\"tenant\" TO 'it''s'": "",
            f"ALTER {role} SET \"search_path\" TO 'sales', '$user', 'public'": "",
            f"ALTER {role} SET \"statement_timeout\" TO '7s'": "",
            'GRANT USAGE ON SCHEMA "sales" TO "application"': "",
        }
        assert found() == before, "trying them has changed nothing"
        held_back = found(shared=True)
        assert all(held_back[s] for s in before if s.startswith("ALTER"))
        for statement, why in before.items():
            if not why:
                new.execute(statement)
        assert not [statement for statement, why in found().items() if not why]
        new.execute(f'ALTER {database} RESET "TimeZone"; SET SESSION AUTHORIZATION application')
        reasons = found()
        assert "must be owner" in reasons[f"ALTER {database} SET \"TimeZone\" TO 'Asia/Tokyo'"]
        new.execute(f"RESET SESSION AUTHORIZATION; ALTER {database} SET timezone = 'Asia/Tokyo'")
        session = target.application()
        shown = session.execute(
            "SELECT current_setting('search_path'), current_setting('TimeZone')"
        )
        assert shown.fetchone() == ('sales, "$user", public', "Asia/Tokyo")
