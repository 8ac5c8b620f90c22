"""A stopped stream goes on once its rows are repaired, and a harmless ALTER stops none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.dataplane import source_tables, streams
from tidegate.dataplane.model import StreamState, TableRule

if TYPE_CHECKING:
    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, v int DEFAULT 1);
CREATE TABLE child (id int PRIMARY KEY, parent int, place int, n int DEFAULT 1);
"""
LOAD = """
INSERT INTO parent SELECT i FROM generate_series(1, 50) i;
INSERT INTO child SELECT i, i % 50 + 1, i FROM generate_series(1, 200) i;
"""


@pytest.fixture
def case(make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer) -> SpanCase:
    rules = [TableRule("child"), TableRule("parent")]
    return make_span(source_server, [("0", target_server)], TABLES, rules, load=LOAD)


@pytest.mark.parametrize(
    ("phase", "action", "harm", "repair"),
    [
        (
            "after_catchup",
            "ALTER TABLE public.child ADD FOREIGN KEY (parent) REFERENCES public.parent",
            "INSERT INTO child VALUES (1000, 777, 1000)",
            "DELETE FROM child WHERE id = 1000",
        ),
        (
            "after_catchup",
            "ALTER TABLE public.child ADD UNIQUE (place)",
            "UPDATE child SET place = 1 WHERE id = 2",
            "UPDATE child SET place = 2 WHERE id = 2",
        ),
        (
            "after_copy",
            "CREATE INDEX share ON public.child ((100 / n))",
            "UPDATE child SET n = 0 WHERE id = 3",
            "UPDATE child SET n = 3 WHERE id = 3",
        ),
    ],
    ids=["orphans", "duplicates", "an index"],
)
def test_rows_repaired_at_the_source_let_the_constraint_be_built(
    case: SpanCase, phase: str, action: str, harm: str, repair: str
) -> None:
    """Situation 12: the stream stops; repaired and started, it applies the repair first."""
    (target,) = case.at_targets
    target.execute(
        "INSERT INTO _tidegate.post_copy_action VALUES (%s, 'child', 1, %s, %s)",
        [case.spec.workflow_uuid, phase, action],
    )
    case.at_source.execute(harm)
    assert case.start().wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.ERROR
    assert "start the workflow" in row.message
    case.at_source.execute(repair)
    streams.start(target, row.id)
    case.start()
    left = "SELECT count(*) FROM _tidegate.post_copy_action WHERE done_at IS NULL"
    case.wait(lambda: target.execute(left).fetchone() == (0,))
    case.catch_up()
    case.assert_equal()


def test_what_rewrites_a_table_without_changing_rows_is_told_from_what_does(
    case: SpanCase,
) -> None:
    """Situation 13: VACUUM FULL or CLUSTER, then a harmless ALTER; and rewrites that hide."""

    def found(*statements: str) -> list[str]:
        before = source_tables.observe(case.at_source, case.spec)
        for statement in statements:
            case.at_source.execute(statement)
        now = source_tables.observe(case.at_source, case.spec)
        kept = source_tables.unrewritten(case.at_source, before, now)
        return source_tables.altered(before, now, kept)

    rewritten = ["table child was rewritten by ALTER TABLE"]
    default = "ALTER TABLE child ALTER n SET DEFAULT 2"
    multiplied = "ALTER TABLE child ALTER n TYPE int USING n * 100"
    assert found("VACUUM FULL child", default) == []
    assert (
        found("CLUSTER child USING child_pkey", "ALTER TABLE child ALTER n SET STATISTICS 50") == []
    )
    assert found("ALTER TABLE child ALTER n DROP DEFAULT", "VACUUM FULL child") == []
    assert found("VACUUM FULL child", default, "UPDATE child SET n = 5 WHERE id < 190") == []
    assert found("TRUNCATE parent", "ALTER TABLE parent ALTER v SET DEFAULT 3") == [
        "table parent was rewritten by ALTER TABLE"
    ], "without a row there is no proof"
    assert found(multiplied) == rewritten
    assert found(multiplied, default) == rewritten, "a later ALTER hides nothing"
    assert found(multiplied, "VACUUM FULL child") == rewritten
    assert found("VACUUM FULL child", multiplied, default) == rewritten
    assert found("VACUUM FULL child", default, "UPDATE child SET n = 6") == rewritten


def test_a_rewrite_by_a_transaction_older_than_the_observation_is_found(case: SpanCase) -> None:
    """Situation 13: its rows carry an id from before the observation, and prove nothing."""
    with case.source.admin() as other:
        other.execute("SET search_path = public")
        other.autocommit = False
        other.execute("INSERT INTO parent VALUES (1000)")
        before = source_tables.observe(case.at_source, case.spec)
        other.execute("ALTER TABLE child ALTER n TYPE int USING n * 100")
        other.commit()
    now = source_tables.observe(case.at_source, case.spec)
    kept = source_tables.unrewritten(case.at_source, before, now)
    assert source_tables.altered(before, now, kept) == ["table child was rewritten by ALTER TABLE"]


def test_a_stream_goes_on_through_a_vacuum_full_and_a_default(case: SpanCase) -> None:
    """Situation 13: together before one look, and then apart; the later look compares anew."""
    case.start()
    case.wait_running()
    (target,) = case.at_targets
    observed = "SELECT observed -> 'child' ->> 'attributes' FROM _tidegate.stream"
    (before,) = target.execute(observed).fetchone() or ("",)
    case.at_source.execute("VACUUM FULL child")
    case.at_source.execute("ALTER TABLE child ALTER n SET DEFAULT 2")
    case.at_source.execute("INSERT INTO child VALUES (1000, 1, 1000)")
    case.wait(lambda: target.execute(observed).fetchone() != (before,))
    case.catch_up()
    case.assert_equal()


def test_a_label_that_the_target_lacks_stops_the_stream_by_column_and_is_repaired_there(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Situation 12, relative: the advice works; a type is altered at one side only."""
    ddl = "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE item (id int PRIMARY KEY, mood mood);"
    load = "INSERT INTO item VALUES (1, 'sad')"
    case = make_span(source_server, [("0", target_server)], ddl, [TableRule("item")], load=load)
    process = case.start()
    case.wait_running()
    happy = "ALTER TYPE mood ADD VALUE 'happy'"
    case.at_source.execute(happy)
    case.at_source.execute("INSERT INTO item VALUES (2, 'happy')")
    assert process.wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.STOPPED
    for told in ("column mood", "table item", '"happy"', "alter the type there"):
        assert told in row.message
    (target,) = case.at_targets
    target.execute(happy)
    streams.start(target, row.id)
    case.start()
    case.catch_up()
    case.assert_equal()
