"""Tables without a primary key, whose rows a unique index over NOT NULL columns can identify."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fix_databases import APPLICATION, wait_until
from fix_fleet import move_tables, switch_request
from make_facts import column, index, table
from make_workflow import workflow
from tidegate.engines.postgres.identities import choice
from tidegate.errors import PreflightError
from tidegate.workflow import create
from tidegate.workflow.model import Workflow
from tidegate.workflow.requests import CancelRequest, CompleteRequest
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from fix_fleet import Fleet

IDENTITY = (
    "SELECT c.relreplident::text || coalesce((SELECT ' ' || i.indexrelid::regclass::text"
    "  FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident), '')"
    " FROM pg_class c WHERE c.oid = 'public.stock'::regclass"
)
STATEMENT = 'ALTER TABLE ONLY "public"."stock" REPLICA IDENTITY USING INDEX "stock_place"'


def wait_equal(fleet: Fleet) -> None:
    rows = "SELECT * FROM public.stock ORDER BY place, code"
    wait_until(lambda: fleet.query("commerce", "0", rows) == fleet.query("shop", "0", rows), 20)


def test_the_index_with_the_fewest_not_null_columns_is_chosen() -> None:
    """Situation 18: unique, valid, immediate, whole, without expressions, or none at all."""
    columns = (column("a"), column("b"), column("n", not_null=False))
    good, wide = index("good", "a"), index("wide", "a", "b")
    bad = (
        replace(good, name="a_partial", predicate="a > 0"),
        replace(good, name="a_deferred", immediate=False),
        replace(good, name="a_broken", valid=False),
        replace(good, name="a_common", unique=False),
        replace(good, name="an_expression", columns=("",)),
        replace(good, name="a_null", columns=("n",)),
    )
    keyless = table(columns=columns, constraints=(), indexes=(wide, *bad, good))
    found = choice(keyless)
    assert found is not None
    assert (found.index, found.columns, found.before) == ("good", ("a",), "default")
    assert choice(replace(keyless, indexes=bad)) is None
    assert choice(replace(keyless, replica_identity="full")) == replace(found, before="full")
    assert choice(table(indexes=(good,))) is None, "it has a primary key"


def test_the_choice_is_part_of_the_record() -> None:
    found = choice(table(columns=(column("a"),), constraints=(), indexes=(index("good", "a"),)))
    assert found is not None
    made = workflow(identities=(found,))
    assert Workflow.from_json(made.to_json()) == made


@pytest.mark.servers
@pytest.mark.slow
def test_a_table_without_a_primary_key_moves_by_its_index_and_gets_its_identity_back(
    moving: Fleet,
) -> None:
    """Situation 18: named, run when asked, used both ways, put back at every end."""
    with moving.shards["commerce", "0"].admin() as source:
        source.execute(
            "CREATE TABLE public.stock (place int NOT NULL, code text NOT NULL, n int, big text);"
            "CREATE UNIQUE INDEX stock_place ON public.stock (place, code);"
            "ALTER TABLE public.stock REPLICA IDENTITY FULL;"
            f"ALTER TABLE public.stock OWNER TO {APPLICATION};"
            "INSERT INTO public.stock SELECT i, 'c' || i, i FROM generate_series(1, 300) i"
        )
        with pytest.raises(PreflightError, match="unique index stock_place") as refused:
            moving.service.create(move_tables(tables=("stock",)))
        assert STATEMENT in refused.value.next_step

        asked = move_tables(tables=("stock",), set_identity=True, auto_start=False)
        assert any(STATEMENT in line for line in moving.service.create(asked, dry_run=True).lines)
        assert moving.query("commerce", "0", IDENTITY) == [("f",)]
        dead = moving.kill_at(create.SLOTTED, "create", asked)
        assert moving.query("commerce", "0", IDENTITY) == [("i public.stock_place",)]
        assert moving.service.recover([dead]) == {"shop.move": "create taken back"}
        assert moving.query("commerce", "0", IDENTITY) == [("f",)]

        moving.service.create(asked)
        moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
        assert moving.query("commerce", "0", IDENTITY) == [("f",)]

        moving.start_workers()
        moving.service.create(move_tables(tables=("stock",), set_identity=True))
        moving.wait_running("shop", "move")
        source.execute("UPDATE public.stock SET place = -place WHERE place < 50")
        source.execute("DELETE FROM public.stock WHERE place > 290")
        source.execute("UPDATE public.stock SET n = n + 1 WHERE place BETWEEN 60 AND 80")
        wait_equal(moving)
        vdiffs = VDiffService()
        spans = moving.service.spans("shop", "move")
        assert not vdiffs.wait(spans, vdiffs.create(spans), 60.0)["HasMismatch"]
        vdiffs.close()
        moving.service.switch_traffic(switch_request())
    with moving.shards["shop", "0"].admin() as target:
        target.execute("UPDATE public.stock SET place = place + 1000 WHERE place > 100")
    wait_equal(moving)
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="move", keep_data=True))
    for keyspace in ("commerce", "shop"):
        assert moving.query(keyspace, "0", IDENTITY) == [("f",)]
