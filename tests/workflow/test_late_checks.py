"""CHECKs and computed columns whose functions depend on the session, or were changed since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fix_databases import APPLICATION, wait_until
from fix_fleet import move_tables, switch_request
from tidegate.errors import PreflightError

if TYPE_CHECKING:
    from fix_fleet import Fleet

pytestmark = pytest.mark.servers

#: Bodies name ``inner_f`` without its schema; a setting of the owner finds it.
UNQUALIFIED = f"""
CREATE SCHEMA tools AUTHORIZATION {APPLICATION};
SET ROLE {APPLICATION};
SET check_function_bodies = off;
CREATE FUNCTION tools.inner_f(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
$$ BEGIN RETURN $1 + 1; END $$;
CREATE FUNCTION public.outer_f(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
$$ BEGIN RETURN inner_f($1); END $$;
SET search_path = public, tools;
CREATE DOMAIN public.counted AS bigint CHECK (public.outer_f(VALUE) > 0);
ALTER TABLE public.orders
  ADD CONSTRAINT called CHECK (public.outer_f(amount) > 0),
  ADD twice bigint GENERATED ALWAYS AS (public.outer_f(amount) * 2) STORED,
  ADD counted public.counted DEFAULT 5;
RESET ROLE;
RESET search_path;
"""
AT_TARGET = f"""
CREATE SCHEMA tools AUTHORIZATION {APPLICATION};
SET ROLE {APPLICATION};
CREATE FUNCTION tools.inner_f(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
$$ BEGIN RETURN $1 + 1; END $$;
RESET ROLE;
"""


def path_of_owner(fleet: Fleet, path: str) -> None:
    """Set where the owner of the tables looks, at the source only."""
    database = fleet.shards["commerce", "0"]
    with database.admin() as session:
        session.execute(f'ALTER ROLE {APPLICATION} IN DATABASE "{database.name}" SET {path}')


def rows(fleet: Fleet, keyspace: str) -> list[Any]:
    return sorted(
        fleet.query(keyspace, "0", "SELECT id, amount, twice, counted FROM public.orders")
    )


def test_functions_that_name_others_without_a_schema_work_for_copy_stream_and_way_back(
    moving: Fleet,
) -> None:
    """Situation 9: a CHECK, a domain and a stored generated column."""
    source, target = moving.shards["commerce", "0"], moving.shards["shop", "0"]
    with source.admin() as session, target.admin() as other:
        session.execute(UNQUALIFIED)
        other.execute(AT_TARGET)
    path_of_owner(moving, "search_path = public, tools")
    moving.service.create(move_tables())
    moving.start_workers()
    moving.wait_running("shop", "move")
    with source.admin() as session:
        session.execute("SET search_path = public, tools")
        session.execute(
            "INSERT INTO public.orders (customer_id, amount, mark) VALUES (1, 7, 'late');"
            " UPDATE public.orders SET amount = 9 WHERE mark = 'old-3'"
        )
    moving.wait_equal("commerce", "shop")
    assert rows(moving, "commerce") == rows(moving, "shop")
    assert constraints(moving) == [("called", True), ("counted_check", True)]


def constraints(fleet: Fleet) -> list[Any]:
    return fleet.query(
        "shop",
        "0",
        "SELECT conname::text, convalidated FROM pg_constraint WHERE contype = 'c'"
        " AND connamespace = 'public'::regnamespace ORDER BY 1",
    )


def test_a_check_that_old_rows_no_longer_meet_is_named_and_comes_along_not_valid(
    moving: Fleet,
) -> None:
    """Situation 10: the function was changed later; a domain's, and one that looks at the clock."""
    source = moving.shards["commerce", "0"]
    function = (
        "CREATE OR REPLACE FUNCTION public.fine(bigint) RETURNS bool IMMUTABLE LANGUAGE sql AS"
        " 'SELECT $1 >= {}'"
    )
    with source.admin() as session:
        session.execute(f"SET ROLE {APPLICATION}")
        session.execute(function.format(0))
        session.execute(
            "CREATE DOMAIN public.fine_number AS bigint CHECK (public.fine(VALUE));"
            " ALTER TABLE public.orders ADD CONSTRAINT fine CHECK (public.fine(amount)),"
            " ADD number public.fine_number DEFAULT 0,"
            " ADD due timestamptz DEFAULT now() + interval '1 second',"
            " ADD CONSTRAINT not_due CHECK (due > now()), ADD CONSTRAINT plain CHECK (amount >= 0)"
        )
        session.execute(function.format(1))
        session.execute("SELECT pg_sleep(1.1)")
    planned = moving.service.create(move_tables(), dry_run=True)
    named = [f.message for f in planned.findings if f.id == "TG-PF-435"]
    assert len(named) == 3
    assert all("400 of 400 rows" in message for message in named)
    moving.service.create(move_tables())
    moving.start_workers()
    moving.wait_running("shop", "move")
    with source.admin() as session:  # a row that does not meet the domain's CHECK, carried whole
        session.execute(
            "UPDATE public.orders SET amount = 3, due = now() + interval '1 hour'"
            " WHERE mark = 'old-3'"
        )
    moving.wait_equal("commerce", "shop")
    assert constraints(moving) == [("fine", False), ("not_due", False), ("plain", True)]


INSIDE = f"""
SET ROLE {APPLICATION}; SET search_path = public;
CREATE FUNCTION fine(bigint) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 >= 0';
CREATE DOMAIN few AS bigint CHECK (fine(VALUE));
CREATE DOMAIN many AS bigint CHECK (fine(VALUE));
CREATE TYPE crate AS (inside many);
ALTER TABLE orders ADD few few[] DEFAULT '{{1,2}}', ADD many crate[] DEFAULT ARRAY[ROW(1)::crate];
UPDATE orders SET many = ARRAY[ROW(0)::crate] WHERE mark = 'old-3';
COMMENT ON CONSTRAINT few_check ON DOMAIN few IS 'at {{least}} 0% $tidegate0$';
CREATE OR REPLACE FUNCTION fine(bigint) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 >= 1'
"""


def test_a_domain_inside_an_array_or_a_composite_type_gets_its_check_where_all_rows_meet_it(
    moving: Fleet,
) -> None:
    """Situation 10, relative: the server itself does not look into such columns.

    Situation 5, relative: what a domain gains at the source since, and a CHECK that the target did
    not get, are named by the switch.
    """
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(INSIDE.encode())
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    checks = (
        "SELECT conname::text, obj_description(c.oid) FROM pg_constraint c"
        " JOIN pg_type t ON t.oid = c.contypid WHERE t.typname IN ('few', 'many')"
    )
    wait_until(
        lambda: moving.query("shop", "0", checks) == [("few_check", "at {least} 0% $tidegate0$")]
    )
    moving.wait_equal("commerce", "shop")
    with moving.shards["commerce", "0"].admin() as session:
        session.execute("ALTER DOMAIN public.few ADD CONSTRAINT there CHECK (VALUE < 9) NOT VALID")
    switched = moving.service.switch_traffic(switch_request())
    assert switched.pause_ms is not None
    named = [f.message for f in switched.findings if f.id == "TG-PF-502"]
    why = "it was dropped there, or values there do not meet it"
    assert named == [
        f"check many_check of domain public.many is not at shop/0: {why}; commerce/0 has it",
        "check there of domain public.few was made at commerce/0 since create; shop/0 lacks it",
    ]


def test_an_expression_that_cannot_be_evaluated_is_refused_by_name(moving: Fleet) -> None:
    """Situation 9, relatives: no path finds it; an index is built with no path at all."""
    source = moving.shards["commerce", "0"]
    with source.admin() as session:
        session.execute(f"SET ROLE {APPLICATION}; SET search_path = public")
        session.execute(
            "CREATE FUNCTION public.inner_g(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN $1; END $$;"
            " CREATE FUNCTION public.outer_g(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN inner_g($1); END $$;"
            " CREATE FUNCTION public.lost(bigint) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN true; END $$;"
            " ALTER TABLE public.orders ADD CONSTRAINT lost CHECK (public.lost(amount))"
        )
        session.execute(
            "CREATE OR REPLACE FUNCTION public.lost(bigint) RETURNS bool IMMUTABLE LANGUAGE"
            " plpgsql AS $$ BEGIN RETURN nowhere($1); END $$;"
            " CREATE TABLE public.indexed (id bigint PRIMARY KEY, v bigint);"
            " CREATE INDEX called ON public.indexed (public.outer_g(v));"
            " INSERT INTO public.indexed VALUES (1, 1)"
        )
    with pytest.raises(PreflightError) as caught:
        moving.service.create(move_tables(tables=("orders", "indexed")), dry_run=True)
    found = [f for f in caught.value.details["findings"] if f["id"] == "TG-PF-436"]
    assert [f["object"] for f in found] == ["commerce/0 indexed", "commerce/0 orders"]
    assert "index called of indexed cannot be evaluated" in found[0]["message"]
    assert "CHECK lost of orders cannot be evaluated" in found[1]["message"]
    assert "nowhere" in found[1]["message"]
