"""On real servers: a database full of problems gives all findings at once and stays untouched."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from tidegate.engines.checks import Severity
from tidegate.engines.postgres.local import THROW_AWAY_SETTINGS, LocalServer
from tidegate.errors import ConnectError, NotFoundError
from tidegate.topology.model import Snapshot
from tidegate.topology.names import TableName
from tidegate.topology.records import Keyspace, Shard, Tablet, TabletType
from tidegate.topology.vschema import ColumnVindex, TableSpec, VindexSpec, VSchema
from tidegate.workflow.preflight.facts import PreflightRequest
from tidegate.workflow.preflight.gather import gather
from tidegate.workflow.preflight.registry import run_preflight
from tidegate.workflow.sessions import Sessions
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.workflow.preflight.check import Finding

pytestmark = pytest.mark.servers

TROUBLE = {
    **THROW_AWAY_SETTINGS,
    "wal_level": "replica",
    "max_replication_slots": "1",
    "max_prepared_transactions": "5",
    "max_slot_wal_keep_size": "1",
}

PROBLEMS = """
CREATE ROLE clerk;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE FUNCTION next_number() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE COLLATION loose (provider = builtin, locale = 'C');
CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
CREATE SEQUENCE counted CYCLE;
CREATE TABLE sharded (id bigint PRIMARY KEY, tenant text, price double precision,
                      UNIQUE (price));
CREATE TABLE stays (id bigint PRIMARY KEY DEFAULT nextval('counted'));
CREATE TABLE many (id bigint PRIMARY KEY DEFAULT nextval('counted'), stay bigint REFERENCES stays,
                   feeling mood, word text COLLATE loose, number int DEFAULT next_number(),
                   twice int GENERATED ALWAYS AS (number * 2) STORED, kind regclass,
                   vector tsvector GENERATED ALWAYS AS (to_tsvector('public.words', 'a')) STORED,
                   picture oid);
CREATE TABLE keyless (v text);
CREATE TABLE late (id bigint PRIMARY KEY DEFERRABLE);
CREATE TABLE unnamed (id bigint PRIMARY KEY);
ALTER TABLE unnamed REPLICA IDENTITY NOTHING;
CREATE TABLE parts (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parent (id bigint PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE hidden (id bigint PRIMARY KEY);
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
CREATE UNLOGGED TABLE forgetful (id bigint PRIMARY KEY);
CREATE TABLE ruled (id bigint PRIMARY KEY);
CREATE RULE quietly AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE VIEW looked_at AS SELECT * FROM stays;
CREATE VIEW feelings AS SELECT feeling FROM many;
CREATE PUBLICATION cdc FOR TABLE many;
GRANT SELECT ON many TO clerk;
CREATE OPERATOR CLASS plain FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
                     OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
CREATE INDEX many_plain ON many (number plain);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO stays VALUES (NEW.id); EXECUTE TG_ARGV[0]; RETURN NEW; END $$;
CREATE TRIGGER tell AFTER INSERT ON many FOR EACH ROW EXECUTE FUNCTION tell('SELECT 1');
ALTER TABLE many DISABLE TRIGGER tell;
CREATE TABLE heard (id bigint PRIMARY KEY);
CREATE TRIGGER tell AFTER INSERT ON heard FOR EACH ROW EXECUTE FUNCTION tell('SELECT 2');
INSERT INTO many (id, picture) VALUES (1, lo_create(0));
INSERT INTO many SELECT n FROM generate_series(2, 30000) AS n;
"""

AT_TARGET = """
CREATE TYPE mood AS ENUM ('sad');
CREATE FUNCTION next_number() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE COLLATION loose (provider = builtin, locale = 'C.UTF-8');
CREATE TABLE many (id bigint PRIMARY KEY, feeling text);
INSERT INTO many VALUES (1);
CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TABLE unnamed (id bigint PRIMARY KEY);
CREATE TRIGGER log_it AFTER INSERT ON unnamed FOR EACH ROW EXECUTE FUNCTION log_it();
ALTER TABLE unnamed ENABLE ALWAYS TRIGGER log_it;
"""

CATALOGS = (
    ("pg_class", "oid, relname, relowner, relfilenode, relacl, relreplident, relhastriggers"),
    ("pg_attribute", "attrelid, attname, atttypid, attnotnull"),
    ("pg_constraint", "oid, conname, conrelid"),
    ("pg_trigger", "oid, tgname, tgrelid, tgenabled"),
    ("pg_proc", "oid, proname, proacl, prosrc"),
    ("pg_namespace", "oid, nspname, nspacl"),
    ("pg_publication", "oid, pubname"),
    ("pg_replication_slots", "slot_name"),
    ("pg_extension", "oid, extname"),
    ("pg_roles", "oid, rolname"),
    ("pg_database", "oid, datname, datacl"),
    ("pg_db_role_setting", "setdatabase, setrole, setconfig"),
    ("pg_settings", "name, setting"),
)


def fingerprint(server: LocalServer, database: str) -> dict[str, str]:
    """One hash for each catalogue that anything lasting would show in."""
    with psycopg.connect(server.conninfo(database), password=server.password) as connection:
        found = {}
        for catalog, columns in CATALOGS:
            row = connection.execute(
                f"SELECT md5(string_agg(x::text, '' ORDER BY x::text))"
                f" FROM (SELECT {columns} FROM {catalog}) AS x"
            ).fetchone()
            assert row is not None
            found[catalog] = row[0]
        return found


def run(server: LocalServer, database: str, script: str) -> None:
    with psycopg.connect(
        server.conninfo(database), password=server.password, autocommit=True
    ) as connection:
        connection.execute(script.encode())


def topology(
    *shards: tuple[str, str, LocalServer, str],
    vschema: VSchema | None = None,
    user: str | None = None,
) -> Snapshot:
    made = Snapshot()
    for number, (keyspace, shard, server, database) in enumerate(shards, 1):
        made = made.with_keyspace(Keyspace(keyspace)).with_shard(Shard(keyspace, shard))
        made = made.with_tablet(
            Tablet(
                f"z1-{number}",
                keyspace,
                shard,
                frozenset({TabletType.PRIMARY}),
                server.conninfo(database, user),
                server.secret,
            )
        )
    return made if vschema is None else made.with_vschema("customer", vschema)


def preflight(request: PreflightRequest, snapshot: Snapshot) -> list[Finding]:
    with Sessions(snapshot, purpose="preflight") as sessions:
        return run_preflight(request, gather(request, snapshot, sessions))


def request(*tables: str, targets: tuple[str, ...] = ("0",)) -> PreflightRequest:
    return PreflightRequest(
        workflow="cust",
        workflow_type=WorkflowType.MOVE_TABLES,
        source_keyspace="commerce",
        target_keyspace="customer",
        source_shards=("0",),
        target_shards=targets,
        tables=tuple(map(TableName.parse, tables)),
    )


@pytest.fixture(scope="module")
def troubled_server() -> Iterator[LocalServer]:
    server = LocalServer.create("troubled", settings=TROUBLE).start()
    yield server
    server.destroy()


def test_a_database_full_of_problems_gives_all_findings_and_stays_as_it_was(
    troubled_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(troubled_server), new_database(target_server)
    run(troubled_server, source, PROBLEMS)
    run(target_server, target, AT_TARGET)
    vschema = VSchema(
        sharded=True,
        vindexes={"hash": VindexSpec("hash")},
        tables={"sharded": TableSpec(column_vindexes=(ColumnVindex(("price",), "hash"),))},
    )
    snapshot = topology(
        ("commerce", "0", troubled_server, source),
        ("customer", "-80", target_server, target),
        ("customer", "80-", target_server, target),
        vschema=vschema,
    )
    names = [
        *("sharded", "many", "keyless", "late", "unnamed", "parts", "parent", "child", "hidden"),
        *("heard", "forgetful", "ruled", "looked_at", "missing"),
    ]
    with psycopg.connect(
        troubled_server.conninfo(source), password=troubled_server.password
    ) as holder:
        holder.execute("INSERT INTO stays VALUES (-1)")
        holder.execute("PREPARE TRANSACTION 'forgotten'")
        holder.execute("SELECT 1")
        before = (fingerprint(troubled_server, source), fingerprint(target_server, target))
        found = preflight(request(*names, targets=("-80", "80-")), snapshot)
        after = (fingerprint(troubled_server, source), fingerprint(target_server, target))
        holder.rollback()
    run(troubled_server, source, "ROLLBACK PREPARED 'forgotten'")
    assert before == after
    wanted = {
        "TG-PF-103": "missing, to be moved",
        "TG-PF-110": "does not declare table many",
        "TG-PF-201": "keyless has no primary key",
        "TG-PF-202": "late is DEFERRABLE",
        "TG-PF-203": "unnamed cannot be published",
        "TG-PF-204": "replica identity of sharded lacks price",
        "TG-PF-206": "price of sharded may be NULL",
        "TG-PF-207": "price of sharded is double precision",
        "TG-PF-208": "parts is partitioned",
        "TG-PF-209": "child inherits from or to parent",
        "TG-PF-210": "many_stay_fkey",
        "TG-PF-212": "sharded_pkey (id)",
        "TG-PF-213": "hidden",
        "TG-PF-214": "picture of many",
        "TG-PF-215": "forgetful is unlogged",
        "TG-PF-216": "quietly",
        "TG-PF-217": "looked_at is a view",
        "TG-PF-218": "kind (regclass)",
        "TG-PF-219": "twice, vector of many",
        "TG-PF-221": "counted cycles",
        "TG-PF-222": "counted also numbers stays",
        "TG-PF-225": "read by public.feelings",
        "TG-PF-226": "cdc",
        "TG-PF-241": "trigger tell of heard: function public.tell() writes to table stays",
        "TG-PF-242": "trigger tell of heard: function public.tell() runs statements",
        "TG-PF-244": "trigger tell needs table stays, which stays",
        "TG-PF-304": "wal_level is replica",
        "TG-PF-305": "replication slots",
        "TG-PF-307": "'forgotten'",
        "TG-PF-309": "other sessions",
        "TG-PF-310": "owns",
        "TG-PF-312": "max_slot_wal_keep_size is 1 MiB",
        "TG-PF-402": "same database",
        "TG-PF-403": "hold rows: many",
        "TG-PF-404": "feeling is public.mood against text",
        "TG-PF-408": "log_it",
        "TG-PF-409": "role clerk",
        "TG-PF-412": "type public.mood is (sad) there, (sad, happy) at commerce/0",
        "TG-PF-413": "public.next_number()",
        "TG-PF-415": "public.loose",
        "TG-PF-418": "operator class public.plain USING btree",
    }
    missed = {
        check_id: text
        for check_id, text in wanted.items()
        if not any(f.id == check_id and text in f.message for f in found)
    }
    assert missed == {}, "\n".join(map(str, found))


def test_a_plain_move_between_two_servers_has_no_errors(
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(source_server), new_database(target_server)
    run(source_server, source, "CREATE TABLE t (id bigint PRIMARY KEY, v text, d text[])")
    snapshot = topology(
        ("commerce", "0", source_server, source), ("customer", "0", target_server, target)
    )
    found = preflight(request(), snapshot)
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert [f.id for f in preflight(request("t"), snapshot)] == [f.id for f in found]


def test_a_small_budget_for_the_log_is_a_warning(
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(source_server), new_database(target_server)
    run(
        source_server,
        source,
        "CREATE TABLE t (id bigint PRIMARY KEY, v text);"
        " INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 3000) AS n",
    )
    snapshot = topology(
        ("commerce", "0", source_server, source), ("customer", "0", target_server, target)
    )
    tight = replace(request("t"), log_budget_bytes=1 << 20)
    (found,) = [f for f in preflight(tight, snapshot) if f.id == "TG-PF-312"]
    assert found.severity is Severity.WARNING
    assert found.object == "commerce/0"
    assert "the budget for the log is 1 MiB" in found.message
    assert found.details["source_of_limit"] == "budget"
    roomy = replace(request("t"), log_budget_bytes=1 << 30)
    assert "TG-PF-312" not in {f.id for f in preflight(roomy, snapshot)}


def test_tables_larger_than_the_disks_are_found_at_both_ends(
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(source_server), new_database(target_server)
    run(source_server, source, "CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    snapshot = topology(
        ("commerce", "0", source_server, source), ("customer", "0", target_server, target)
    )
    assert not {"TG-PF-312", "TG-PF-417"} & {f.id for f in preflight(request("t"), snapshot)}
    grow_beyond_the_disk(source_server, source, "t")
    found = {f.id: f for f in preflight(request("t"), snapshot)}
    assert found["TG-PF-312"].object == "commerce/0"
    assert "MiB are free for the log" in found["TG-PF-312"].message
    assert found["TG-PF-312"].details["source_of_limit"] == "disk"
    assert found["TG-PF-417"].object == "customer/0"
    assert found["TG-PF-417"].severity is Severity.ERROR


def grow_beyond_the_disk(server: LocalServer, database: str, table: str) -> None:
    """Give a table more bytes than any disk here has free, in files without blocks.

    The server adds up the sizes of a table's files; those after the first are read by nobody while
    the first one is short.
    """
    with psycopg.connect(server.conninfo(database), password=server.password) as connection:
        row = connection.execute("SELECT pg_relation_filepath(%s)", [table]).fetchone()
    assert row is not None
    first = server.data / row[0]
    space = os.statvfs(first)
    wanted, piece, owner = 2 * space.f_bavail * space.f_frsize, 1 << 40, first.stat()
    for number in range(1, 2 + wanted // piece):
        path = first.with_name(f"{first.name}.{number}")
        path.touch(mode=0o600)
        os.truncate(path, piece)
        os.chown(path, owner.st_uid, owner.st_gid)


def test_a_target_that_is_the_source_is_refused_however_it_is_reached(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    name = new_database(source_server)
    run(source_server, name, "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)")
    snapshot = topology(
        ("commerce", "0", source_server, name), ("customer", "0", source_server, name)
    )
    found = {f.id for f in preflight(request(), snapshot)}
    assert {"TG-PF-401", "TG-PF-403"} <= found
    other = new_database(source_server)
    snapshot = topology(
        ("commerce", "0", source_server, name), ("customer", "0", source_server, other)
    )
    assert "TG-PF-401" not in {f.id for f in preflight(request(), snapshot)}


def test_an_old_server_is_read_as_well(
    old_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(old_server), new_database(target_server)
    run(old_server, source, "CREATE TABLE t (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY)")
    snapshot = topology(
        ("commerce", "0", old_server, source), ("customer", "0", target_server, target)
    )
    errors = [str(f) for f in preflight(request(), snapshot) if f.severity is Severity.ERROR]
    assert errors == []


def test_what_cannot_be_looked_at_is_one_clear_error(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    name = new_database(source_server)
    snapshot = topology(("commerce", "0", source_server, name))
    with pytest.raises(NotFoundError, match="customer"):
        preflight(request(), snapshot)
    down = topology(
        ("commerce", "0", source_server, name), ("customer", "0", source_server, "no_such_database")
    )
    with pytest.raises(ConnectError, match="no_such_database"):
        preflight(request(), down)


def test_a_plain_role_is_told_every_grant_and_they_suffice(
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    places = [(server, new_database(server)) for server in (source_server, target_server)]
    for server, name in places:
        run(
            server,
            name,
            f"""CREATE ROLE "pf Mover" LOGIN PASSWORD '{server.password}';
            CREATE ROLE pf_owner;
            CREATE SCHEMA sales""",
        )
    run(
        *places[0],
        "CREATE TABLE sales.t (id bigint PRIMARY KEY); ALTER TABLE sales.t OWNER TO pf_owner",
    )
    snapshot = topology(
        ("commerce", "0", source_server, places[0][1]),
        ("customer", "0", target_server, places[1][1]),
        user="'pf Mover'",
    )
    try:
        found = preflight(request(), snapshot)
        grants = [f for f in found if f.id in {"TG-PF-311", "TG-PF-313", "TG-PF-407"}]
        assert {f.id for f in found if f.severity is Severity.ERROR} == {"TG-PF-311", "TG-PF-407"}
        assert len([f for f in grants if "pf_owner" in f.message]) == 3
        for finding in grants:
            run(*places[0 if finding.object.startswith("commerce") else 1], finding.next_step)
        assert [str(f) for f in preflight(request(), snapshot)] == []
    finally:
        for server, name in places:
            run(
                server,
                name,
                """DROP OWNED BY "pf Mover", pf_owner CASCADE; DROP ROLE "pf Mover", pf_owner""",
            )
