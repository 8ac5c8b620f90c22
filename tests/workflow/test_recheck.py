"""Verbs of a running workflow look at the catalogue of both sides again; so do their dry runs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_fleet import PLAIN, move_tables, reshard, switch_request
from make_workflow import workflow
from tidegate.dataplane.model import Direction
from tidegate.engines.checks import Severity
from tidegate.errors import PreflightError
from tidegate.workflow.catalogue import Catalogue
from tidegate.workflow.preflight.check import Verb, errors
from tidegate.workflow.recheck import look
from tidegate.workflow.requests import CancelRequest, CompleteRequest
from tidegate.workflow.sessions import Sessions
from tidegate.workflow.switch_steps import SwitchActions

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.workflow.outcome import Outcome
    from tidegate.workflow.preflight.check import Finding

pytestmark = pytest.mark.servers

READS = ("REPLICA", "RDONLY")
COMPLETE = CompleteRequest(keyspace="shop", workflow="move")
CANCEL = CancelRequest(keyspace="shop", workflow="move")
INVOICES = """
CREATE TABLE public.invoices (
    id bigint PRIMARY KEY, customer_id bigint, order_id bigint,
    CONSTRAINT of_order FOREIGN KEY (customer_id, order_id) REFERENCES public.orders
)
"""


def execute(fleet: Fleet, keyspace: str, statement: str, shard: str = "0") -> None:
    with fleet.shards[keyspace, shard].admin() as session:
        session.execute("SET search_path = public")
        session.execute(sql.SQL(statement))


def refused(verb: Callable[..., Outcome], request: Any) -> set[str]:
    """What a verb and its dry run refuse, each finding by id and object."""
    found = []
    for dry_run in (True, False):
        with pytest.raises(PreflightError) as caught:
            verb(request, dry_run=dry_run)
        listed = caught.value.details["findings"]
        found.append({f"{f['id']} {f['object']}" for f in listed if f["severity"] == "error"})
    assert found[0] == found[1]
    return found[0]


def looked(fleet: Fleet, verb: Verb, direction: Direction = Direction.FORWARD) -> list[Finding]:
    """What a verb would find now."""
    flow = fleet.service.list()[0]
    snapshot = fleet.topology.read()
    with Sessions(snapshot, purpose="test") as sessions:
        return look(snapshot, flow, sessions, verb, direction)


def messages(found: list[Finding]) -> list[str]:
    return [f"{finding.id} {finding.message}" for finding in found]


def test_a_foreign_key_that_was_made_after_create_refuses_every_switch_and_complete(
    moving: Fleet,
) -> None:
    """Situation 5: it is named at each verb, by its dry run as well, and nothing is changed."""
    service = moving.service
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    service.switch_traffic(switch_request(tablet_types=READS))
    execute(moving, "commerce", INVOICES)
    crossing = {"TG-PF-210 commerce/0 orders"}
    assert refused(service.switch_traffic, switch_request(tablet_types=("PRIMARY",))) == crossing
    (back,) = service.reverse_traffic(switch_request(tablet_types=READS), dry_run=True).findings
    assert (back.id, back.severity) == ("TG-PF-210", Severity.WARNING)
    service.cancel(CANCEL, dry_run=True)
    assert service.start("shop", "move").findings[0].severity is Severity.WARNING
    execute(moving, "commerce", "ALTER TABLE invoices DROP CONSTRAINT of_order")
    service.switch_traffic(switch_request())
    execute(
        moving,
        "commerce",
        "ALTER TABLE invoices ADD CONSTRAINT again FOREIGN KEY (customer_id, order_id)"
        " REFERENCES public.orders",
    )
    assert refused(service.reverse_traffic, switch_request()) == crossing
    assert refused(service.complete, COMPLETE) == crossing
    with pytest.raises(PreflightError, match=r"streams of workflow shop\.move cannot start"):
        service.start("shop", "move")
    assert [
        s.state for s in service.status("shop", "move").streams if s.direction == "reverse"
    ] == ["Running"]


def test_a_foreign_key_at_the_target_refuses_while_rows_are_applied_there(moving: Fleet) -> None:
    """Situation 5, relative: the other side; after the switch the key is checked, and harmless."""
    service = moving.service
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    execute(moving, "shop", INVOICES)
    crossing = {"TG-PF-210 shop/0 orders"}
    assert refused(service.switch_traffic, switch_request()) == crossing
    execute(moving, "shop", "ALTER TABLE invoices DROP CONSTRAINT of_order")
    service.switch_traffic(switch_request())
    execute(
        moving,
        "shop",
        "ALTER TABLE invoices ADD CONSTRAINT later FOREIGN KEY (customer_id, order_id)"
        " REFERENCES public.orders",
    )
    assert refused(service.reverse_traffic, switch_request()) == crossing
    assert service.complete(COMPLETE).findings == ()


def test_a_foreign_key_that_is_made_while_a_switch_waits_is_found_before_the_fence(
    moving: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 5, relative: between the first look and the pause; everything is rolled back."""
    service = moving.service
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    real = SwitchActions._make_slots

    def make_slots(actions: SwitchActions) -> None:
        real(actions)
        execute(moving, "commerce", INVOICES)

    with monkeypatch.context() as patched:
        patched.setattr(SwitchActions, "_make_slots", make_slots)
        with pytest.raises(PreflightError, match="TG-PF-210 commerce/0 orders"):
            service.switch_traffic(switch_request(tablet_types=("PRIMARY",)))
    assert "Writes Not Switched" in service.status("shop", "move").traffic
    assert not [each for each in moving.own_objects()["shop/0"] if each.startswith("slot")]
    application = moving.shards["commerce", "0"].application()
    application.execute("UPDATE public.customers SET balance = 1 WHERE id = 1")


def test_reads_may_follow_writes_to_a_side_that_has_gone_on(moving: Fleet) -> None:
    """Situation 5, relative: no stream is needed for it: what would stop one is named only."""
    service = moving.service
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    service.switch_traffic(switch_request(tablet_types=("PRIMARY",)))
    service.stop("shop", "move")
    execute(moving, "shop", f"ALTER TABLE orders ADD COLUMN extra text; {INVOICES}")
    named = service.switch_traffic(switch_request(tablet_types=READS)).findings
    assert {(each.id, each.severity) for each in named} == {
        ("TG-PF-210", Severity.WARNING),
        ("TG-PF-404", Severity.WARNING),
    }
    assert "All Reads Switched. Writes Switched" in service.status("shop", "move").traffic
    assert refused(service.reverse_traffic, switch_request()) == {
        "TG-PF-210 shop/0 orders",
        "TG-PF-404 shop/0 orders",
    }


def test_what_tidegate_makes_itself_is_found_by_no_verb(moving: Fleet) -> None:
    """Fences, publications, indexes after the copy, the way back: no verb finds a difference."""
    service = moving.service
    execute(
        moving,
        "commerce",
        "ALTER TABLE orders ADD CONSTRAINT of_customer FOREIGN KEY (customer_id)"
        " REFERENCES customers;"
        " CREATE UNIQUE INDEX orders_once ON orders (id); GRANT SELECT ON orders TO application;"
        " CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER stamp BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION stamp()",
    )
    service.create(move_tables(auto_start=False))
    assert messages(looked(moving, Verb.START)) == []
    assert service.cancel(CANCEL, dry_run=True).findings == ()
    moving.start_workers()
    assert service.start("shop", "move").findings == ()
    moving.wait_running("shop", "move")
    assert messages(looked(moving, Verb.SWITCH)) == []
    assert service.switch_traffic(switch_request()).findings == ()
    assert service.complete(COMPLETE, dry_run=True).findings == ()
    assert messages(looked(moving, Verb.START, Direction.REVERSE)) == []
    moving.wait_running("shop", "move")
    assert service.reverse_traffic(switch_request()).findings == ()
    assert service.cancel(CANCEL).findings == ()


def test_what_one_side_has_gained_or_lost_is_named_and_does_not_refuse(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    execute(
        moving,
        "commerce",
        "CREATE INDEX by_amount ON orders (amount); CREATE INDEX by_name ON customers (name);"
        " CREATE PUBLICATION cdc FOR TABLE orders; GRANT SELECT ON orders TO PUBLIC;"
        " ALTER TABLE customers ALTER balance SET DEFAULT 5",
    )
    execute(
        moving,
        "shop",
        "CREATE INDEX by_name ON customers (name); CREATE INDEX tuned ON orders (note);"
        " DROP INDEX orders_mark",
    )
    since, not_there = "since create", "and not at shop/0"
    expected = [
        f"TG-PF-502 default of balance of customers was altered at commerce/0 {since}, {not_there}",
        f"TG-PF-502 grant to PUBLIC of orders was made at commerce/0 {since}; shop/0 lacks it",
        f"TG-PF-502 index by_amount of orders was made at commerce/0 {since}; shop/0 lacks it",
        f"TG-PF-502 index orders_mark of orders was dropped at shop/0 {since}; commerce/0 has it",
        f"TG-PF-502 publication cdc of orders was made at commerce/0 {since}; shop/0 lacks it",
        f"TG-PF-503 index tuned of orders was made at shop/0 {since}; commerce/0 lacks it",
    ]
    dry = moving.service.switch_traffic(switch_request(), dry_run=True)
    assert messages(list(dry.findings)) == expected
    assert messages(list(moving.service.switch_traffic(switch_request()).findings)) == expected
    lost = moving.service.complete(COMPLETE, dry_run=True).findings
    assert messages(list(lost)) == [
        message for message in expected if "altered" not in message and "503" not in message
    ]


MOODS = """
CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE customers ADD mood mood;
CREATE FUNCTION doubled(n bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 2 * n';
CREATE FUNCTION double() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.balance := doubled(NEW.balance); RETURN NEW; END';
CREATE TRIGGER double BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION double();
CREATE DOMAIN price AS bigint CHECK (VALUE >= 0); ALTER TABLE customers ADD price price
"""


def test_functions_and_types_that_came_along_are_looked_at_again(moving: Fleet) -> None:
    """Situation 5, relative: what tables lean on goes on at one side; a label that lacks refuses.

    Situation 2, relative: the body of a function that only another body names.
    """
    execute(moving, "commerce", MOODS)
    moving.service.create(move_tables(auto_start=False))
    assert looked(moving, Verb.SWITCH) == []
    thrice = MOODS.split(";")[2].replace("CREATE", "CREATE OR REPLACE").replace("2 *", "3 *")
    execute(moving, "commerce", thrice)
    happy = "ALTER TYPE mood ADD VALUE 'happy'"
    execute(moving, "commerce", happy)
    execute(moving, "commerce", "ALTER DOMAIN price SET DEFAULT 7")
    kind, default, function = looked(moving, Verb.SWITCH)
    assert default.message == (
        "default of domain public.price was made at commerce/0 since create; shop/0 lacks it"
    )
    assert (kind.id, kind.severity) == ("TG-PF-412", Severity.ERROR)
    assert "type public.mood is (sad) there, (sad, happy) at commerce/0" in kind.message
    assert (function.id, function.object) == ("TG-PF-502", "shop/0")
    assert "function public.doubled(bigint) was altered at commerce/0" in function.message
    execute(moving, "shop", thrice)
    execute(moving, "shop", happy)
    execute(moving, "shop", "ALTER DOMAIN price SET DEFAULT 7")
    assert looked(moving, Verb.SWITCH) == []
    moving.service.cancel(CANCEL)


def test_settings_and_extensions_around_the_tables_are_looked_at_too(moving: Fleet) -> None:
    """A setting that came along is taken away at the target, another is made there alone."""
    source, target = (moving.shards[keyspace, "0"].name for keyspace in ("commerce", "shop"))
    execute(moving, "commerce", "CREATE EXTENSION citext; ALTER TABLE customers ADD mail citext")
    execute(
        moving,
        "commerce",
        f'ALTER ROLE application IN DATABASE "{source}" SET search_path = public, other',
    )
    moving.service.create(move_tables(auto_start=False))
    (flow,) = moving.service.list()
    then = Catalogue.decode(flow.catalogue)
    assert then is not None
    assert then.extensions() == {"citext"}
    assert messages(looked(moving, Verb.START)) == []
    execute(moving, "shop", f'ALTER ROLE application IN DATABASE "{target}" RESET search_path')
    execute(moving, "shop", f"ALTER DATABASE \"{target}\" SET statement_timeout = '9s'")
    found = looked(moving, Verb.START)
    assert messages(found) == [
        (
            "TG-PF-502 setting search_path of role application was dropped at shop/0 since create;"
            " commerce/0 has it"
        ),
        (
            "TG-PF-503 setting statement_timeout of the database was made at shop/0 since create;"
            " commerce/0 lacks it"
        ),
    ]
    assert {finding.object for finding in found} == {"shop/0"}


def test_columns_that_differ_refuse_unless_the_stream_was_told_to_ignore_them(
    moving: Fleet,
) -> None:
    for on_ddl, severity in (("STOP", Severity.ERROR), ("IGNORE", Severity.WARNING)):
        moving.service.create(move_tables(auto_start=False, on_ddl=on_ddl))
        execute(moving, "commerce", "ALTER TABLE orders ADD COLUMN extra text")
        for verb in (Verb.START, Verb.SWITCH):
            (found,) = looked(moving, verb)
            assert (found.id, found.severity) == ("TG-PF-404", severity)
            assert "no column extra" in found.message
        execute(moving, "shop", "ALTER TABLE orders ADD COLUMN extra text")
        assert looked(moving, Verb.START) == []
        moving.service.cancel(CANCEL)
        execute(moving, "commerce", "ALTER TABLE orders DROP COLUMN extra")


def test_the_only_copy_of_a_table_is_never_dropped(moving: Fleet) -> None:
    moving.service.create(move_tables(auto_start=False))
    execute(moving, "commerce", "ALTER TABLE orders RENAME TO orders_before")
    assert refused(moving.service.cancel, CANCEL) == {"TG-PF-504 commerce/0"}
    found = errors(looked(moving, Verb.SWITCH))
    assert [f"{each.id} {each.object}" for each in found] == ["TG-PF-504 commerce/0"]
    assert errors(looked(moving, Verb.COMPLETE)) == []
    execute(moving, "shop", "DROP TABLE orders")
    assert [each.object for each in errors(looked(moving, Verb.COMPLETE))] == ["shop/0"]
    moving.service.cancel(replace(CANCEL, keep_data=True))


def test_rules_that_were_changed_by_hand_refuse_every_verb(moving: Fleet) -> None:
    moving.service.create(move_tables(auto_start=False))
    moving.topology.update(
        lambda found: found.with_routing_rules(
            found.routing_rules.with_rule("orders", "shop.orders")
        )
    )
    for verb in Verb:
        assert [each.id for each in errors(looked(moving, verb))] == ["TG-PF-505"]
    assert refused(moving.service.cancel, CANCEL) == {"TG-PF-505 shop.move"}
    assert "disagree for tables: orders" in moving.service.status("shop", "move").traffic


def test_a_table_that_is_made_during_a_reshard_stops_it_by_name(splitting: Fleet) -> None:
    """Situation 6: the switch refuses it, and so do complete and, for the new side, reverse."""
    service = splitting.service
    switch = switch_request("split", "commerce")
    splitting.start_workers()
    service.create(reshard())
    splitting.wait_running("commerce", "split")
    execute(splitting, "commerce", "CREATE TABLE late (id bigint PRIMARY KEY)")
    execute(splitting, "commerce", "CREATE SCHEMA more; CREATE TABLE more.late (id int)")
    behind = {"TG-PF-501 commerce/0 late", "TG-PF-501 commerce/0 more.late"}
    assert refused(service.switch_traffic, replace(switch, tablet_types=READS)) == behind
    assert refused(service.switch_traffic, switch) == behind
    execute(splitting, "commerce", "DROP TABLE late, more.late")
    service.switch_traffic(switch)
    complete = CompleteRequest(keyspace="commerce", workflow="split")
    execute(splitting, "commerce", "CREATE TABLE late (id bigint PRIMARY KEY)")
    assert refused(service.complete, complete) == {"TG-PF-501 commerce/0 late"}
    service.complete(replace(complete, keep_data=True), dry_run=True)
    execute(splitting, "commerce", "DROP TABLE late")
    execute(splitting, "commerce", "CREATE TABLE newer (id bigint PRIMARY KEY)", "-80")
    assert refused(service.reverse_traffic, switch) == {"TG-PF-501 commerce/-80 newer"}
    assert service.complete(complete).findings == ()


def test_a_workflow_that_was_made_before_catalogues_were_kept_is_looked_at_too(
    moving: Fleet,
) -> None:
    moving.service.create(move_tables(auto_start=False))
    (flow,) = moving.service.list()
    assert Catalogue.decode(flow.catalogue) is not None
    assert "catalogue" not in flow.shown()
    old = replace(flow, catalogue="")
    execute(moving, "commerce", INVOICES)
    execute(moving, "commerce", "CREATE INDEX by_amount ON orders (amount)")
    snapshot = moving.topology.read()
    with Sessions(snapshot, purpose="test") as sessions:
        found = look(snapshot, old, sessions, Verb.SWITCH, Direction.FORWARD)
    assert [finding.id for finding in found] == ["TG-PF-210"]


@pytest.mark.alone
def test_three_hundred_tables_are_looked_at_within_two_seconds(
    fleet: Fleet,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    fleet.add_keyspace("shop", {"0": make_database(target_server)}, vschema=PLAIN)
    made = " ".join(
        f"CREATE TABLE t{n} (id bigint PRIMARY KEY, a text, b int UNIQUE, c int REFERENCES t1);"
        f" CREATE INDEX ON t{n} (a);"
        for n in range(1, 301)
    )
    for keyspace in ("commerce", "shop"):
        execute(fleet, keyspace, made)
    flow = workflow(tables=tuple(f"t{n}" for n in range(1, 301)))
    snapshot = fleet.topology.read()
    with Sessions(snapshot, purpose="test") as sessions:
        for keyspace in ("commerce", "shop"):
            sessions.get(keyspace, "0")
        began = time.monotonic()
        found = look(snapshot, flow, sessions, Verb.SWITCH, Direction.FORWARD)
        took_s = time.monotonic() - began
    assert found == []
    assert took_s < 2.0
