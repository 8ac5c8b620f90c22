"""A clean dry run means that `create` works: everything is tried, with a plain role."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from fix_databases import APPLICATION
from fix_fleet import move_tables
from tidegate.dataplane.model import Direction
from tidegate.engines.checks import Severity
from tidegate.engines.postgres import rehearsal
from tidegate.errors import FailedPreconditionError, PreflightError
from tidegate.workflow import trial
from tidegate.workflow.preflight.check import Verb
from tidegate.workflow.recheck import look
from tidegate.workflow.sessions import Sessions

if TYPE_CHECKING:
    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.topology.model import Snapshot

pytestmark = pytest.mark.servers

MOVER = "plain mover"

RIGHTS = f"""
DO $$ BEGIN CREATE ROLE "{MOVER}" LOGIN REPLICATION PASSWORD {{password}};
EXCEPTION WHEN duplicate_object THEN NULL; END $$;
GRANT SET ON PARAMETER session_replication_role TO "{MOVER}";
GRANT pg_read_all_stats, {APPLICATION} TO "{MOVER}";
GRANT CREATE, USAGE ON SCHEMA public TO "{MOVER}", {APPLICATION};
"""


def as_superuser(database: Database, script: str) -> list[Any]:
    with psycopg.connect(
        database.server.conninfo(database.name), password=database.server.password, autocommit=True
    ) as connection:
        done = connection.execute(sql.SQL(script))
        return done.fetchall() if done.description else []


@pytest.fixture
def plain(moving: Fleet) -> Fleet:
    """A move by the role that the documentation describes, and by nobody else."""
    for database in moving.shards.values():
        password = sql.Literal(database.server.password).as_string()
        as_superuser(database, RIGHTS.format(password=password))
        as_superuser(database, f'GRANT CREATE ON DATABASE "{database.name}" TO "{MOVER}"')

    def change(snapshot: Snapshot) -> Snapshot:
        for alias, tablet in snapshot.tablets.items():
            database = moving.shards[tablet.keyspace, tablet.shard]
            role = f"'{MOVER}'"
            conninfo = database.server.conninfo(database.name, user=role)
            snapshot = snapshot.with_tablet(replace(snapshot.tablets[alias], conninfo=conninfo))
        return snapshot

    moving.topology.update(change)
    return moving


def refused(fleet: Fleet, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """The findings of a dry run that is refused, by id."""
    with pytest.raises(PreflightError) as caught:
        fleet.service.create(move_tables(**options), dry_run=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in caught.value.details["findings"]:
        if finding["severity"] == Severity.ERROR:
            found.setdefault(finding["id"], []).append(finding)
    return found


OF_POSTGRES = f"""
CREATE SCHEMA lib;
GRANT USAGE ON SCHEMA lib TO {APPLICATION};
CREATE TYPE public.mood AS ENUM ('sad', 'happy');
CREATE DOMAIN lib.amount AS bigint CHECK (VALUE >= 0);
CREATE COLLATION public.plain (provider = libc, locale = 'C');
CREATE FUNCTION public.log_it() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN -- ALTER FUNCTION public.log_it() OWNER TO postgres;
RETURN NEW; END $$;
ALTER TABLE public.customers ADD feels public.mood DEFAULT 'happy', ADD paid lib.amount,
  ADD word text COLLATE public.plain;
CREATE TRIGGER log_it AFTER INSERT OR UPDATE ON public.customers
  FOR EACH ROW EXECUTE FUNCTION public.log_it();
"""
LEANED_ON = {
    "schema lib",
    "type public.mood",
    "domain lib.amount",
    "collation public.plain",
    "function public.log_it()",
}


def test_what_belongs_to_another_role_is_named_and_can_be_given_to_the_tables_owner(
    plain: Fleet,
) -> None:
    """Situation 7: trigger function, enum, domain, schema and collation belong to postgres."""
    as_superuser(plain.shards["commerce", "0"], OF_POSTGRES)
    for schema_owner in (APPLICATION, f'"{MOVER}"'):  # a schema's owner may create one
        database = plain.shards["shop", "0"]
        as_superuser(database, f'GRANT CREATE ON DATABASE "{database.name}" TO {schema_owner}')
    found = refused(plain)
    assert set(found) == {"TG-PF-432"}
    assert {f["object"].removeprefix("shop/0 ") for f in found["TG-PF-432"]} == LEANED_ON
    assert all("postgres" in f["message"] for f in found["TG-PF-432"])
    assert plain.own_objects() == {}
    assert as_superuser(plain.shards["shop", "0"], "SELECT to_regtype('mood')") == [(None,)]
    allowed = move_tables(allow=("TG-PF-432",), auto_start=False)
    warned = plain.service.create(allowed, dry_run=True).findings
    assert {f.object.removeprefix("shop/0 ") for f in warned if f.id == "TG-PF-432"} == LEANED_ON
    plain.service.create(allowed)
    owner = as_superuser(
        plain.shards["shop", "0"],
        "SELECT DISTINCT owner::regrole::text FROM (SELECT typowner FROM pg_type"
        " WHERE typname IN ('mood', 'amount') UNION SELECT proowner FROM pg_proc"
        " WHERE proname = 'log_it' UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'lib'"
        " UNION SELECT collowner FROM pg_collation WHERE collname = 'plain') AS o(owner)",
    )
    assert owner == [(APPLICATION,)]
    assert as_superuser(
        plain.shards["shop", "0"],
        "SELECT prosrc LIKE '%OWNER TO postgres%' FROM pg_proc WHERE proname = 'log_it'",
    ) == [(True,)]


def test_what_the_target_has_already_needs_no_owner(plain: Fleet) -> None:
    """Situation 7, the other way: whoever owns it makes it at the target first."""
    source = plain.shards["commerce", "0"]
    as_superuser(
        source,
        "CREATE TYPE public.mood AS ENUM ('sad'); ALTER TABLE public.orders ADD m public.mood",
    )
    assert set(refused(plain)) == {"TG-PF-432"}
    as_superuser(plain.shards["shop", "0"], "CREATE TYPE public.mood AS ENUM ('sad')")
    plain.service.create(move_tables(auto_start=False))


def test_an_extension_that_a_superuser_must_create_is_found_by_trying(plain: Fleet) -> None:
    """Situation 8: it is available, so only the server knows."""
    source, target = plain.shards["commerce", "0"], plain.shards["shop", "0"]
    as_superuser(
        source,
        "CREATE EXTENSION bloom; CREATE EXTENSION citext;"
        " ALTER TABLE public.orders ADD word public.citext, ADD n int;"
        " CREATE INDEX found ON public.orders USING bloom (n)",
    )
    found = refused(plain)
    assert set(found) == {"TG-PF-431"}
    (finding,) = found["TG-PF-431"]
    assert finding["object"] == "shop/0 extension bloom"
    assert 'CREATE EXTENSION "bloom"' in finding["next_step"]
    assert "superuser" in finding["next_step"]
    assert as_superuser(target, "SELECT extname::text FROM pg_extension") == [("plpgsql",)]
    as_superuser(target, "CREATE EXTENSION bloom")
    plain.service.create(move_tables(auto_start=False))


def test_an_event_trigger_that_forbids_is_found_by_trying(plain: Fleet) -> None:
    """Situation 8, a relative: no right is missing, and still nothing can be made."""
    target = plain.shards["shop", "0"]
    as_superuser(
        target,
        "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'ask the owner'; END $$;"
        " CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('CREATE INDEX')"
        " EXECUTE FUNCTION public.no()",
    )
    found = refused(plain)
    assert {f["object"] for f in found["TG-PF-431"]} == {
        "shop/0 schema _tidegate",
        "shop/0 index orders_mark of public.orders",
    }
    assert all(
        "event trigger no refuses it: ask the owner" in f["message"] for f in found["TG-PF-431"]
    )
    assert all('ALTER EVENT TRIGGER "no" DISABLE' in f["next_step"] for f in found["TG-PF-431"])


@pytest.mark.parametrize(
    ("tag", "what"),
    [
        ("CREATE PUBLICATION", "commerce/0 a publication"),
        ("CREATE TRIGGER", "commerce/0 a trigger"),
        ("CREATE SCHEMA", "commerce/0 schema _tidegate"),
    ],
)
def test_an_event_trigger_at_the_source_that_forbids_is_found_by_trying(
    plain: Fleet, tag: str, what: str
) -> None:
    """Situation 8, a relative: it is shown objects of our own, and nothing of them stays."""
    source = plain.shards["commerce", "0"]
    as_superuser(
        source,
        "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'ask the owner'; END $$;"
        f" CREATE EVENT TRIGGER no ON ddl_command_end WHEN TAG IN ('{tag}')"
        " EXECUTE FUNCTION public.no()",
    )
    (found,) = refused(plain)["TG-PF-431"]
    assert found["object"] == what
    assert "event trigger no refuses it: ask the owner" in found["message"]
    assert 'ALTER EVENT TRIGGER "no" DISABLE' in found["next_step"]
    left = "SELECT 1 FROM pg_namespace WHERE nspname = '_tidegate'"
    assert as_superuser(source, f"{left} UNION ALL SELECT 1 FROM pg_publication") == []


STAMP = """
CREATE FUNCTION public.stamp() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE made record; BEGIN
  FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE' LOOP
    EXECUTE format('ALTER TABLE %s ADD COLUMN stamp text', made.object_identity);
  END LOOP; END $$;
CREATE EVENT TRIGGER stamps ON ddl_command_end WHEN tag IN ('CREATE TABLE')
  EXECUTE FUNCTION public.stamp()
"""


def test_an_event_trigger_that_alters_new_tables_is_found_by_trying(plain: Fleet) -> None:
    """Situation 8, relative: everything can be made, and does not come out as it is at the source.

    Situation 7, relative: at the source no table of the application is tried, so one that lets ours
    pass is named.
    """
    for database in plain.shards.values():
        as_superuser(database, STAMP)
    found = refused(plain)["TG-PF-404"]
    assert {each["object"] for each in found} == {"shop/0 customers", "shop/0 orders"}
    assert all("(stamps): additional column stamp" in each["message"] for each in found)
    as_superuser(plain.shards["shop", "0"], "ALTER EVENT TRIGGER stamps DISABLE")
    outcome = plain.service.create(move_tables(), dry_run=True)
    (said,) = [finding for finding in outcome.findings if finding.id == "TG-PF-433"]
    assert "commerce/0" in said.object
    assert said.message.endswith("not tried: stamps")


def test_a_membership_that_does_not_let_us_act_is_found_by_trying(plain: Fleet) -> None:
    """Situation 7, a relative: a member of the owner that may not SET ROLE to it."""
    target = plain.shards["shop", "0"]
    as_superuser(target, f'GRANT {APPLICATION} TO "{MOVER}" WITH INHERIT TRUE, SET FALSE')
    try:
        found = refused(plain)
        assert {f["object"] for f in found["TG-PF-431"]} >= {"shop/0 table public.customers"}
        assert "SET TRUE" in found["TG-PF-431"][0]["next_step"]
    finally:
        as_superuser(target, f'GRANT {APPLICATION} TO "{MOVER}" WITH INHERIT TRUE, SET TRUE')
    plain.service.create(move_tables(auto_start=False))


def test_a_create_that_is_refused_all_the_same_names_the_object(
    plain: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 7: the world may change between the trial and the creation."""
    as_superuser(plain.shards["commerce", "0"], OF_POSTGRES)
    monkeypatch.setattr(trial, "tried", lambda _s, _w, _r, facts, plan: (facts, plan))
    with pytest.raises(FailedPreconditionError, match="schema lib cannot be made") as caught:
        plain.service.create(move_tables())
    assert caught.value.details["object"] == "schema lib"
    assert plain.own_objects() == {}


def test_settings_of_our_role_do_not_matter(plain: Fleet) -> None:
    """Situation 15: the role, the path, time-outs and modes that an administrator set for it."""
    settings = (
        *(f"role = {APPLICATION}", "search_path = nowhere", "default_transaction_read_only = on"),
        *("statement_timeout = '500ms'", "lock_timeout = '1ms'", "row_security = on"),
        *("session_replication_role = replica", "default_transaction_isolation = serializable"),
        *("quote_all_identifiers = on", "idle_session_timeout = '1s'", "array_nulls = off"),
    )
    for database in plain.shards.values():
        for setting in settings:
            as_superuser(
                database, f'ALTER ROLE "{MOVER}" IN DATABASE "{database.name}" SET {setting}'
            )
    assert plain.service.create(move_tables(), dry_run=True).dry_run
    plain.service.create(move_tables())
    plain.start_workers()
    plain.wait_running("shop", "move")
    plain.wait_equal("commerce", "shop")


def test_a_plain_role_looks_again_and_a_right_that_was_revoked_is_named(plain: Fleet) -> None:
    """Situation 5, relative: what `create` would refuse of the role, before a switch begins."""
    plain.service.create(move_tables(auto_start=False))
    (flow,), snapshot = plain.service.list(), plain.topology.read()

    def looked(verb: Verb) -> list[str]:
        with Sessions(snapshot, purpose="test") as sessions:
            found = look(snapshot, flow, sessions, verb, Direction.FORWARD)
        return [f"{each.id} {each.object}" for each in found]

    for verb in Verb:
        assert looked(verb) == []
    as_superuser(plain.shards["commerce", "0"], f'REVOKE {APPLICATION} FROM "{MOVER}"')
    try:
        assert looked(Verb.SWITCH) == [f"TG-PF-311 commerce/0 role {APPLICATION}"]
    finally:
        as_superuser(plain.shards["commerce", "0"], f'GRANT {APPLICATION} TO "{MOVER}"')


REFERRED_TO = """
ALTER TABLE public.orders ADD code bigint, ADD serial bigint UNIQUE;
CREATE UNIQUE INDEX orders_code ON public.orders (code);
ALTER TABLE public.customers ADD code bigint REFERENCES public.orders (code),
  ADD serial bigint REFERENCES public.orders (serial), ADD badge bigint UNIQUE;
ALTER TABLE public.orders ADD badge bigint REFERENCES public.customers (badge);
"""


@pytest.mark.parametrize("tables_a_batch", [20, 1])
def test_a_foreign_key_to_a_unique_index_of_another_table_is_admitted(
    plain: Fleet, monkeypatch: pytest.MonkeyPatch, tables_a_batch: int
) -> None:
    """Whichever table comes first, and in whichever batch: an index, a constraint, a circle."""
    monkeypatch.setattr(rehearsal, "TABLES_A_BATCH", tables_a_batch)
    as_superuser(plain.shards["commerce", "0"], REFERRED_TO)
    findings = plain.service.create(move_tables(), dry_run=True).findings
    assert [f for f in findings if f.severity is Severity.ERROR] == []
    assert as_superuser(plain.shards["shop", "0"], "SELECT to_regclass('orders')") == [(None,)]
    plain.service.create(move_tables(auto_start=False))
