"""Moving tables whose triggers, settings and views reach beyond them, through the whole service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fix_fleet import TABLES, move_tables, switch_request
from tidegate.errors import PreflightError
from tidegate.workflow.requests import CancelRequest, SchemaRequest

if TYPE_CHECKING:
    from fix_fleet import Fleet

pytestmark = pytest.mark.servers

AUDIT = """
CREATE TABLE public.audit_log (what text);
CREATE FUNCTION public.twice(n bigint) RETURNS bigint LANGUAGE sql AS 'SELECT n * 2';
CREATE FUNCTION public.log_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit_log VALUES (twice(NEW.id)::text); RETURN NULL; END $$;
CREATE TRIGGER log_it AFTER INSERT OR UPDATE ON public.orders
  FOR EACH ROW EXECUTE FUNCTION public.log_it();
CREATE FUNCTION public.check_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM public.twice(NEW.id); RETURN NEW; END $$;
CREATE TRIGGER check_it BEFORE INSERT ON public.orders
  FOR EACH ROW EXECUTE FUNCTION public.check_it();
CREATE VIEW public.few AS SELECT id FROM public.orders WHERE public.twice(id) < 10;
"""


def findings(fleet: Fleet, **options: Any) -> dict[str, Any]:
    """The findings of a dry run by id; of several, the last."""
    outcome = fleet.service.create(move_tables(**options), dry_run=True)
    return {finding.id: finding for finding in outcome.findings}


def test_a_trigger_that_reaches_for_a_table_that_stays_asks_for_a_decision(moving: Fleet) -> None:
    """Situation 1: refused by name; each decision that is offered acts."""
    source, target = moving.shards["commerce", "0"], moving.shards["shop", "0"]
    with source.admin() as session:
        session.execute(AUDIT)
    with pytest.raises(PreflightError, match="TG-PF-241") as refused:
        moving.service.create(move_tables(), dry_run=True)
    (found,) = [f for f in refused.value.details["findings"] if f["id"] == "TG-PF-241"]
    for named in ("log_it of orders", "public.log_it()", "writes to table audit_log"):
        assert named in found["message"]
    for offered in ("--tables", "--leave-out-triggers orders.log_it", "--allow TG-PF-241"):
        assert offered in found["next_step"]
    assert moving.own_objects() == {}
    carried = (*move_tables().tables, "audit_log")
    with pytest.raises(PreflightError) as still:  # it has no key; that is another matter
        moving.service.create(move_tables(tables=carried), dry_run=True)
    assert "TG-PF-241" not in {f["id"] for f in still.value.details["findings"]}
    assert str(findings(moving, allow=("TG-PF-241",))["TG-PF-241"].severity) == "warning"
    left_out: dict[str, Any] = {"leave_out_triggers": ("orders.log_it",)}
    differs = findings(moving, **left_out)["TG-PF-244"]
    assert "trigger log_it is left out" in differs.details["differences"]
    with pytest.raises(PreflightError) as unknown:
        moving.service.create(move_tables(leave_out_triggers=("orders.nope",)), dry_run=True)
    assert "TG-PF-243" in {f["id"] for f in unknown.value.details["findings"]}

    moving.service.create(move_tables(auto_start=False, **left_out))
    with target.admin() as session:
        actions = session.execute("SELECT ddl FROM _tidegate.post_copy_action").fetchall()
        made = session.execute(
            "SELECT to_regprocedure('public.twice(bigint)') IS NOT NULL,"
            " to_regprocedure('public.log_it()') IS NULL, to_regclass('public.few') IS NOT NULL"
        ).fetchone()
    assert made == (True, True, True)
    assert "TRIGGER check_it" in str(actions)
    assert "log_it" not in str(actions)
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    with target.admin() as session:
        left = session.execute(
            "SELECT to_regclass('public.few'), to_regprocedure('public.twice(bigint)')"
        ).fetchone()
    assert left == (None, None)


def test_a_trigger_of_a_table_that_stays_and_uses_one_that_moves_is_named(moving: Fleet) -> None:
    """Situation 1, the other way round: it fails at the source, with the table that stays.

    So does one whose function calls another that reads a view, and one whose function a table that
    moves has, too. One that only has a row of the table does not.
    """
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(
            "CREATE TABLE public.visits (id int PRIMARY KEY);"
            " CREATE FUNCTION public.count_it() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN UPDATE public.customers SET balance = balance + 1; RETURN NEW; END $$;"
            " CREATE TRIGGER counts AFTER INSERT ON public.visits"
            " FOR EACH ROW EXECUTE FUNCTION public.count_it();"
            " CREATE VIEW public.rich AS SELECT id FROM public.customers WHERE balance > 9;"
            " CREATE FUNCTION public.any_rich() RETURNS bool LANGUAGE sql AS"
            " 'SELECT EXISTS (SELECT FROM public.rich)';"
            " CREATE FUNCTION public.ask() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN IF public.any_rich() THEN RETURN NEW; END IF; RETURN NULL; END $$;"
            " CREATE FUNCTION public.shared() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN PERFORM FROM public.customers; RETURN NULL; END $$;"
            " CREATE TRIGGER asks BEFORE INSERT ON public.visits"
            " FOR EACH ROW EXECUTE FUNCTION public.ask();"
            " CREATE TRIGGER shared AFTER UPDATE ON public.orders"
            " FOR EACH ROW EXECUTE FUNCTION public.shared();"
            " CREATE TRIGGER shared AFTER UPDATE ON public.visits"
            " FOR EACH ROW EXECUTE FUNCTION public.shared();"
            " CREATE FUNCTION public.has_row() RETURNS trigger LANGUAGE plpgsql AS $$"
            " DECLARE r public.customers; BEGIN RETURN NEW; END $$;"
            " CREATE TRIGGER has_row BEFORE INSERT ON public.visits"
            " FOR EACH ROW EXECUTE FUNCTION public.has_row()"
        )
    outcome = moving.service.create(move_tables(), dry_run=True)
    begins = "trigger {} of visits, which stays: function public.{}() uses customers, which moves"
    named = sorted(f.message for f in outcome.findings if f.id == "TG-PF-245")
    assert named == [
        f"{begins.format('asks', 'ask')} through function public.any_rich(), view public.rich",
        begins.format("counts", "count_it"),
        begins.format("shared", "shared"),
    ]


def test_settings_come_along_and_go_again_with_the_workflow(moving: Fleet) -> None:
    """Situation 4: a search path and a time zone are made at the empty target, and taken back."""
    source, target = moving.shards["commerce", "0"], moving.shards["shop", "0"]
    with source.admin() as session:
        for statement in (
            "ALTER ROLE application IN DATABASE {} SET search_path = sales, public",
            "ALTER DATABASE {} SET \"TimeZone\" = 'Asia/Tokyo'",
        ):
            session.execute(statement.format(f'"{source.name}"'))
    settings = (
        "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d"
        " ON d.oid = s.setdatabase WHERE d.datname = current_database() ORDER BY 1"
    )
    lines = moving.service.create(move_tables(), dry_run=True).lines
    assert [line for line in lines if line.startswith("run on shop/0: ALTER ROLE")]
    moving.service.create(move_tables(auto_start=False))
    with target.admin() as session:
        assert session.execute(settings).fetchall() == [
            ("TimeZone=Asia/Tokyo",),
            ("search_path=sales, public",),
        ]
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    with target.admin() as session:
        assert session.execute(settings).fetchall() == []
    with target.admin() as session:
        session.execute("CREATE TABLE public.others (id bigint PRIMARY KEY)")
    found = findings(moving)["TG-PF-441"]
    assert "the target has other tables" in found.message
    assert found.next_step.startswith("ALTER ")


INVOICES = """
CREATE SCHEMA numbers; GRANT USAGE ON SCHEMA numbers TO application;
CREATE SEQUENCE numbers.invoice_no START 500 INCREMENT 3;
COMMENT ON SEQUENCE numbers.invoice_no IS 'of all invoices';
CREATE SEQUENCE numbers.atomic_no;
CREATE FUNCTION public.next_invoice() RETURNS bigint LANGUAGE plpgsql AS
  $$ BEGIN RETURN nextval('numbers.invoice_no'); END $$;
CREATE FUNCTION public.next_atomic() RETURNS bigint LANGUAGE sql
  BEGIN ATOMIC SELECT nextval('numbers.atomic_no'); END;
ALTER TABLE public.orders ADD invoice bigint DEFAULT public.next_invoice(),
  ADD atomic bigint DEFAULT public.next_atomic();
CREATE TABLE public.others (n bigint DEFAULT nextval('numbers.invoice_no'));
"""


@pytest.mark.parametrize("there", [False, True], ids=["made", "there"])
def test_a_sequence_that_only_functions_draw_from_comes_along_and_is_raised_at_each_switch(
    moving: Fleet,
    *,
    there: bool,
) -> None:
    """Situation 3, relative: no number is given out twice, there and back; a cancel takes it away.

    What was at the target before, with its tables, is raised as well, and stays.

    A table that stays and draws from it as well is named.
    """
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(INVOICES)
    if there:
        beforehand = SchemaRequest(
            source_keyspace="commerce",
            source_shard="0",
            target_keyspace="shop",
            target_shard="0",
            tables=TABLES,
        )
        moving.service.copy_schema(beforehand)
    moving.start_workers()
    made = moving.service.create(move_tables(skip_schema_copy=there))
    shared = [f for f in made.findings if f.id == "TG-PF-222"]
    assert [f.message for f in shared] == ["sequence numbers.invoice_no also numbers others"]
    moving.wait_running("shop", "move")

    def drawn(keyspace: str, name: str) -> int:
        return int(moving.query(keyspace, "0", f"SELECT public.{name}()")[0][0])

    def last(keyspace: str, name: str) -> int:
        return int(moving.query(keyspace, "0", f"SELECT last_value FROM numbers.{name}")[0][0])

    both = (("next_invoice", "invoice_no"), ("next_atomic", "atomic_no"))
    assert all(drawn("shop", name) <= last("commerce", sequence) for name, sequence in both)
    moving.service.switch_traffic(switch_request())
    assert all(drawn("shop", name) > last("commerce", sequence) for name, sequence in both)
    moving.wait_running("shop", "move")
    moving.service.reverse_traffic(switch_request())
    assert all(drawn("commerce", name) > last("shop", sequence) for name, sequence in both)
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    left = [("numbers",)] if there else [(None,)]
    assert moving.query("shop", "0", "SELECT to_regnamespace('numbers')::text") == left
    assert moving.query("commerce", "0", "SELECT to_regclass('numbers.invoice_no')::text") == [
        ("numbers.invoice_no",)
    ]
