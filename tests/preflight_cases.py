"""The smallest case of every preflight check: request, facts, and a part of the message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from make_facts import (
    T,
    active,
    both,
    column,
    database,
    facts,
    foreign_key,
    index,
    known,
    primary_key,
    request,
    reshard_request,
    resharding,
    sequences,
    server,
    sharded,
    snapshot,
    source,
    split_facts,
    split_request,
    table,
    target,
    typed,
)
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres.abilities import Abilities, MissingAbility
from tidegate.engines.postgres.bodies.graph import Reach, Stay, Unread
from tidegate.engines.postgres.capacity import Capacity
from tidegate.engines.postgres.catalog import Trigger
from tidegate.engines.postgres.evaluated import Evaluated
from tidegate.engines.postgres.rehearsal import Refused, Rehearsal
from tidegate.engines.postgres.surroundings import Change
from tidegate.engines.postgres.survey import (
    Need,
    OpenTransaction,
    OtherSession,
    PreparedTransaction,
    TypeFacts,
)
from tidegate.topology.names import TableName
from tidegate.topology.records import Shard
from tidegate.topology.vschema import TableSpec, VindexSpec, VSchema
from tidegate.workflow.catalogue import Catalogue
from tidegate.workflow.preflight.check import Verb
from tidegate.workflow.preflight.facts import (
    ActiveWorkflow,
    Facts,
    PreflightRequest,
    Since,
)
from tidegate.workflow.preflight.overlaps import Astray, Meeting, Overlaps

MOOD = TypeFacts("public.mood", "e", None, ("sad", "happy"))
TRIGGER = Trigger("audit", "A", "public.log", own=False, ddl="")

STAY = Stay(
    T, "trigger log", "function public.log_it()", TableName("public", "audit"), "table", writes=True
)
CHANGE = Change(
    "search_path of the database is 'sales'", "ALTER …", "ALTER …", held_back="no right"
)

ASTRAY = Astray(T, "-80", 3, whole=True, rows=(("7",),))
MEETING = Meeting(T, ("id",), ("-80", "80-"), 2, whole=False, rows=(("7",), ("8",)))

RESHARD = ActiveWorkflow("split", "customer", "customer", (), reshards=True)

type Case = tuple[str, PreflightRequest, Facts, str]

REQUEST_CASES: list[Case] = [
    (
        "TG-PF-101",
        request(target_keyspace="commerce"),
        facts(table(), targets=(database("0", keyspace="commerce", number="2"),)),
        "both commerce",
    ),
    ("TG-PF-102", request(), facts(table(), workflows=active("cust")), "cust exists"),
    ("TG-PF-103", request(), facts(table(), unknown=(TableName("s", "x"),)), "s.x, to be left out"),
    ("TG-PF-103", request(), facts(table(), wanted=(T, TableName("public", "u"))), "but not at"),
    ("TG-PF-104", request(), facts(), "no tables to move"),
    (
        "TG-PF-105",
        request(),
        facts(table(), snapshot=snapshot().with_shard(Shard("commerce", "0", serving=False))),
        "source shard commerce/0 does not serve",
    ),
    (
        "TG-PF-105",
        request(),
        facts(table(), snapshot=snapshot().with_shard(Shard("customer", "0", serving=False))),
        "target shard customer/0 does not serve",
    ),
    ("TG-PF-106", reshard_request(), resharding("-80", "80-", serving=True), "already serving"),
    (
        "TG-PF-107",
        reshard_request(target_shards=("-80", "c0-")),
        resharding("-80", "c0-"),
        "gap between -80 and c0-",
    ),
    (
        "TG-PF-107",
        reshard_request(target_shards=("-80", "40-")),
        resharding("-80", "40-"),
        "-80 and 40- overlap",
    ),
    (
        "TG-PF-107",
        reshard_request(target_shards=("-80",)),
        resharding("-80"),
        "cover -, the target shards -80",
    ),
    (
        "TG-PF-107",
        request(target_shards=("-80",)),
        facts(table(), snapshot=snapshot(sharded(), "-80", "80-")),
        "gap after -80",
    ),
    ("TG-PF-108", reshard_request(target_shards=("-",)), resharding("-"), "same key range"),
    ("TG-PF-109", request(), facts(table(), workflows=active("other", T)), "carries t"),
    (
        "TG-PF-114",
        request(),
        facts(table(), workflows=(RESHARD,)),
        "customer.split reshards keyspace customer",
    ),
    (
        "TG-PF-114",
        reshard_request(),
        replace(resharding("-80", "80-"), workflows=active("move", TableName("public", "u"))),
        "customer.move moves tables from commerce to customer",
    ),
    ("TG-PF-110", split_request(), split_facts(sharded(tables="u"), table()), "does not declare"),
    ("TG-PF-110", split_request(), split_facts(VSchema(), table()), "not sharded"),
    (
        "TG-PF-110",
        split_request(),
        split_facts(VSchema(sharded=True, tables={"t": TableSpec(pinned="80")}), table()),
        "pinned",
    ),
    (
        "TG-PF-110",
        split_request(),
        split_facts(VSchema(sharded=True, tables={"t": TableSpec()}), table()),
        "has no vindex",
    ),
    (
        "TG-PF-111",
        split_request(),
        split_facts(sharded(vindex=VindexSpec("nope")), table()),
        '"nope" not found',
    ),
    (
        "TG-PF-111",
        split_request(),
        split_facts(sharded(vindex=VindexSpec("numeric_static_map")), table()),
        "vindex v",
    ),
    (
        "TG-PF-111",
        split_request(),
        split_facts(sharded("id", "v"), table()),
        "takes 1 to 1 columns",
    ),
    (
        "TG-PF-112",
        request(),
        facts(
            table(),
            snapshot=snapshot().with_routing_rules(
                snapshot().routing_rules.with_rule("t", "customer.t")
            ),
        ),
        "leads to customer.t",
    ),
    (
        "TG-PF-113",
        request(),
        facts(table(), snapshot=snapshot().with_denied_tables("commerce", ["0"], ["t"])),
        "writes to t are denied",
    ),
]

TABLE_CASES: list[Case] = [
    ("TG-PF-201", request(), facts(table(constraints=())), "no primary key"),
    (
        "TG-PF-202",
        request(),
        facts(table(constraints=(primary_key("id", deferrable=True),))),
        "DEFERRABLE",
    ),
    ("TG-PF-203", request(), facts(table(replica_identity="nothing")), "NOTHING"),
    (
        "TG-PF-203",
        request(),
        facts(table(replica_identity="index", constraints=())),
        "not valid",
    ),
    (
        "TG-PF-203",
        request(),
        facts(table(columns=(column("id", generated="s"), column("v")))),
        "its key has generated columns (id)",
    ),
    (
        "TG-PF-203",
        request(),
        facts(replace(typed("text", generated="v"), replica_identity="full")),
        "includes its generated columns (c), which PostgreSQL 18 refuses",
    ),
    ("TG-PF-204", split_request(), split_facts(sharded("v"), table()), "lacks v"),
    ("TG-PF-205", split_request(), split_facts(sharded("x"), table()), "no column x"),
    (
        "TG-PF-205",
        split_request(),
        split_facts(
            sharded("g"), table(columns=(column("id"), column("g", generated="s", not_null=True)))
        ),
        "no column g that travels",
    ),
    ("TG-PF-206", split_request(), split_facts(sharded("v"), table()), "v of t may be NULL"),
    (
        "TG-PF-207",
        split_request(),
        split_facts(sharded("c"), typed("text")),
        "is text, which a hash",
    ),
    (
        "TG-PF-207",
        split_request(),
        split_facts(
            sharded("c", vindex=VindexSpec("pg_hash")),
            typed("text", collation="public.ci", collation_deterministic=False),
        ),
        "different texts are equal",
    ),
    ("TG-PF-208", request(), facts(table(kind="p")), "is partitioned"),
    ("TG-PF-208", request(), facts(table(is_partition=True, parents=(T,))), "partition of t"),
    ("TG-PF-209", request(), facts(table(children=(TableName("s", "child"),))), "s.child"),
    (
        "TG-PF-210",
        request(),
        facts(table(foreign_keys=(foreign_key("t", "v", "other", "id"),))),
        "other stays behind",
    ),
    (
        "TG-PF-210",
        request(),
        facts(table(referenced_by=(foreign_key("child", "t_id", "t", "id"),))),
        "child stays behind",
    ),
    (
        "TG-PF-211",
        split_request(),
        split_facts(
            sharded("id", tables="t u"),
            table("t", foreign_keys=(foreign_key("t", "v", "u", "id"),)),
            table("u"),
        ),
        "can be on different shards",
    ),
    (
        "TG-PF-212",
        split_request(),
        split_facts(sharded("id"), table(indexes=(index("t_v_key", "v"),))),
        "t_v_key (v)",
    ),
    ("TG-PF-213", request(), facts(table(row_security=True)), "row security"),
    ("TG-PF-214", request(), source(typed("oid"), survey=known(large_objects=7)), "has 7"),
    (
        "TG-PF-214",
        request(),
        source(typed("s.blob"), survey=known(large_objects=7, inner_types={99999: ("oid",)})),
        "has 7",
    ),
    ("TG-PF-215", request(), facts(table(persistence="u")), "unlogged"),
    ("TG-PF-216", request(), facts(table(rules=("t_log",))), "t_log"),
    ("TG-PF-217", request(), facts(table(kind="v")), "is a view"),
    ("TG-PF-218", request(), facts(typed("regclass")), "c (regclass)"),
    (
        "TG-PF-218",
        request(),
        source(typed("s.d"), survey=known(inner_types={99999: ("s.d", "regclass")})),
        "c (s.d)",
    ),
    ("TG-PF-219", request(), facts(typed("text", generated="s")), "c of t"),
    ("TG-PF-220", request(), facts(table(subscribed=True)), "a subscription writes into t"),
    ("TG-PF-221", request(), source(table(), survey=sequences(cycle=True)), "cycles"),
    (
        "TG-PF-222",
        request(),
        source(table(), survey=sequences(used_by=(T, TableName("s", "stays")))),
        "s.stays",
    ),
    ("TG-PF-223", request(), facts(table(extension="postgis")), "extension postgis"),
    ("TG-PF-223", request(), facts(table("_tidegate.stream")), "Tidegate itself"),
    (
        "TG-PF-224",
        request(),
        facts(
            table(),
            sources=(
                database("-80", table(), keyspace="commerce"),
                database("80-", typed("text"), keyspace="commerce", number="9"),
            ),
        ),
        "no column v; additional column c",
    ),
    ("TG-PF-225", request(), source(table(), survey=known(views={T: ("public.w",)})), "public.w"),
    ("TG-PF-226", request(), source(table(), survey=known(publications={T: ("cdc",)})), "cdc"),
    (
        "TG-PF-228",
        request(),
        replace(facts(table()), overlaps=Overlaps(astray=(ASTRAY,))),
        "3 rows of t (of all rows) do not belong to shard -80: (7)",
    ),
    (
        "TG-PF-229",
        request(),
        replace(facts(table()), overlaps=Overlaps(meetings=(MEETING,))),
        "2 values of (id) of t (in a sample) are on both source shards -80 and 80-",
    ),
    (
        "TG-PF-230",
        request(source_shards=("-80", "80-")),
        replace(
            facts(table()),
            snapshot=snapshot().with_shard(Shard("commerce", "-80"), Shard("commerce", "80-")),
        ),
        "does not say which of them a row belongs to",
    ),
    (
        "TG-PF-231",
        request(),
        replace(facts(table()), overlaps=Overlaps(sampled=(T,))),
        "only a sample of the rows of t",
    ),
    (
        "TG-PF-232",
        request(),
        facts(table(columns=(column("id"), *(column(f"c{n}", "text") for n in range(1598))))),
        "has 1599 columns that travel; with its key (id) there is room for 1598",
    ),
    (
        "TG-PF-241",
        request(),
        facts(table(), reached=Reach(stays=(STAY,))),
        "trigger log of t: function public.log_it() writes to table audit, which does not move",
    ),
    (
        "TG-PF-242",
        request(),
        facts(table(), reached=Reach(unread=(Unread("function f()", T, "trigger log", "broken"),))),
        "function f() could not be read: broken",
    ),
    (
        "TG-PF-242",
        request(),
        facts(
            table(),
            reached=Reach(unread=(Unread("function f()", T, "trigger log", dynamic=("x",)),)),
        ),
        "function f() runs statements put together at run time: EXECUTE x",
    ),
    (
        "TG-PF-243",
        replace(request(), leave_out_triggers=("t.lgo",)),
        facts(table(), reached=Reach(unknown_triggers=("t.lgo",))),
        "has the trigger t.lgo",
    ),
    (
        "TG-PF-244",
        request(),
        facts(table(), reached=Reach(callers={T: ("function public.total()",)})),
        "function public.total() uses it and does not come along",
    ),
    (
        "TG-PF-245",
        request(),
        replace(
            source(
                table(),
                survey=known(
                    trigger_functions={
                        "function public.total()": (
                            (TableName("public", "stays"), "sum_up"),
                            (T, "own"),
                        )
                    }
                ),
            ),
            reached=Reach(triggered={"function public.total()": {T: ("view public.v",)}}),
        ),
        "of stays, which stays: function public.total() uses t, which moves through view public.v",
    ),
    ("TG-PF-227", request(), facts(replace(table(), name=TableName("public", "a.b"))), '"a.b"'),
    ("TG-PF-227", request(), facts(replace(table(), name=TableName("a@b", "t"))), '"a@b"'),
]

SERVER_CASES: list[Case] = [
    ("TG-PF-301", request(), source(table(), server=server(version_num=130004)), "13 is older"),
    (
        "TG-PF-302",
        request(),
        source(table(), server=server(version_num=140019)),
        "14 is not tested",
    ),
    ("TG-PF-303", request(), source(table(), server=server(in_recovery=True)), "in recovery"),
    ("TG-PF-304", request(), target(table(), server=server(wal_level="replica")), "replica"),
    ("TG-PF-305", request(), source(table(), server=server(free_slots=1)), "2 are needed"),
    ("TG-PF-306", request(), source(table(), server=server(free_wal_senders=0)), "2 are needed"),
    (
        "TG-PF-307",
        request(),
        source(
            table(),
            survey=known(prepared_transactions=(PreparedTransaction("g1", "app", "shop", 5),)),
        ),
        "'g1' of app in database shop",
    ),
    (
        "TG-PF-308",
        request(),
        source(
            table(),
            survey=known(
                open_transactions=(OpenTransaction(7, "app", "shop", "cron", "idle", 99),)
            ),
        ),
        "session 7 (cron) of app in database shop has had a transaction open for 99 s",
    ),
    (
        "TG-PF-309",
        request(),
        source(table(), survey=known(other_sessions=(OtherSession(8, "web", "local"),))),
        "8 (web)",
    ),
    ("TG-PF-310", request(), facts(table(owner="tidegate")), "owns t"),
    (
        "TG-PF-311",
        request(),
        source(
            table(),
            abilities=Abilities(
                (MissingAbility("x", "schema s", "USAGE", "GRANT USAGE ON SCHEMA s TO x"),)
            ),
        ),
        "role x lacks USAGE on schema s",
    ),
    ("TG-PF-311", request(), target(table(), survey=known(unreadable=frozenset({T}))), "read t"),
    (
        "TG-PF-312",
        request(),
        source(
            table(bytes=2**30),
            capacity=Capacity(limit_bytes=2**19, source_of_limit="max_slot_wal_keep_size"),
        ),
        "max_slot_wal_keep_size is 1 MiB",
    ),
    (
        "TG-PF-312",
        request(),
        source(
            table(bytes=2**30),
            capacity=Capacity(free_bytes=2**30, limit_bytes=2**29, source_of_limit="disk"),
        ),
        "1024 MiB are free",
    ),
    (
        "TG-PF-312",
        request(log_budget_bytes=2**25),
        source(table(bytes=2**30), capacity=Capacity(limit_bytes=2**25, source_of_limit="budget")),
        "the budget for the log is 32 MiB",
    ),
    (
        "TG-PF-313",
        request(),
        source(table(), abilities=Abilities(sees_sessions=False)),
        "is not shown the transactions",
    ),
]

TARGET_CASES: list[Case] = [
    (
        "TG-PF-401",
        request(),
        facts(table(), targets=(database("0", keyspace="customer"),)),
        "same database as commerce/0",
    ),
    (
        "TG-PF-402",
        split_request(),
        split_facts(
            sharded(),
            table(),
            targets=(
                database("-80", keyspace="customer", number="2"),
                database("80-", keyspace="customer", number="2"),
            ),
        ),
        "are the same database",
    ),
    (
        "TG-PF-403",
        request(),
        target(table(), there=(table(),), survey=known(non_empty=frozenset({T}))),
        "hold rows: t",
    ),
    ("TG-PF-404", request(), target(table(), there=(typed("text"),)), "no column v"),
    (
        "TG-PF-404",
        request(),
        target(table(), rehearsal=Rehearsal(made={T: typed("text")}, event_triggers=("stamp",))),
        "because of the event triggers there (stamp): no column v",
    ),
    ("TG-PF-405", request(skip_schema_copy=True), facts(table()), "do not exist there: t"),
    ("TG-PF-406", request(), target(table(), there=(table(),)), "empty tables exist there: t"),
    (
        "TG-PF-407",
        request(),
        target(table(), abilities=Abilities(sets_replication_role=False)),
        "may not set",
    ),
    ("TG-PF-408", request(), target(table(), there=(table(triggers=(TRIGGER,)),)), "ENABLE ALWAYS"),
    (
        "TG-PF-405",
        split_request(),
        split_facts(
            sharded(),
            table(),
            targets=(
                database("-80", table(), keyspace="customer", number="2"),
                database("80-", keyspace="customer", number="3"),
            ),
        ),
        "do not exist there: t",
    ),
    ("TG-PF-409", request(), source(table(), survey=known(roles_needed=("web",))), "role web"),
    (
        "TG-PF-410",
        request(),
        source(table(), survey=known(needs=(Need("type", "public.hstore", "hstore"),))),
        "extension hstore is not available",
    ),
    (
        "TG-PF-411",
        request(),
        both(
            {"needs": (Need("extension", "hstore"),), "extensions": {"hstore": "1.8"}},
            {"extensions": {"hstore": "1.7"}},
        ),
        "1.7 there",
    ),
    (
        "TG-PF-412",
        request(),
        both(
            {"needs": (Need("type", "public.mood"),), "types": {"public.mood": MOOD}},
            {"types": {"public.mood": replace(MOOD, definition=("sad",))}},
        ),
        "type public.mood is (sad) there, (sad, happy) at commerce/0",
    ),
    (
        "TG-PF-413",
        request(),
        both(
            {"needs": (Need("function", "public.f()"),), "functions": {"public.f()": "a"}},
            {"functions": {"public.f()": "b"}},
        ),
        "public.f() differs",
    ),
    ("TG-PF-414", request(), target(table(), server=server(encoding="LATIN1")), "LATIN1"),
    (
        "TG-PF-415",
        request(),
        facts(typed("text", collation='pg_catalog."de_DE"')),
        "used by t, does not exist",
    ),
    (
        "TG-PF-415",
        request(),
        replace(
            both({"collations": {"public.de": "i de t"}}, {"collations": {"public.de": "i sv t"}}),
            sources=source(
                typed("text", collation="public.de"),
                survey=known(collations={"public.de": "i de t"}),
            ).sources,
        ),
        "is defined differently",
    ),
    (
        "TG-PF-418",
        request(),
        source(table(), survey=known(needs=(Need("cast", "(text AS public.a)"),))),
        "cast (text AS public.a) does not exist",
    ),
    (
        "TG-PF-441",
        request(),
        facts(table(), changes={"0": (CHANGE,)}),
        "search_path of the database is 'sales', and will not be at the target: no right",
    ),
    (
        "TG-PF-416",
        request(),
        target(table(), survey=known(default_collation=("i:de", "153"))),
        "i:de version 153",
    ),
    (
        "TG-PF-417",
        request(),
        target(table(bytes=2**30), capacity=Capacity(data_free_bytes=2**20)),
        "1 MiB are free, about 2048 MiB",
    ),
]


def taking(name: str, here: str, there: str) -> Facts:
    """A table with a column of a type, and what the two servers make of a value."""
    targets = target(taken={name: there}).targets
    return replace(source(typed(name), taken={name: here}), targets=targets)


TAKEN_CASES: list[Case] = [
    ("TG-PF-419", request(), taking("xml", "<a/>", ""), "takes no values of type xml, which t has"),
    ("TG-PF-419", request(), taking("money", "0064", "0001"), "t has, would be other amounts"),
]

REFUSED_EXTENSION = Refused(
    "extension vector",
    'CREATE EXTENSION IF NOT EXISTS "vector"',
    'permission denied to create extension "vector"',
    "Must be superuser to create this extension.",
    "42501",
)
REFUSED_OWNER = Refused(
    "function public.log_it()",
    "ALTER FUNCTION public.log_it() OWNER TO postgres",
    'must be able to SET ROLE "postgres"',
    "",
    "42501",
    "postgres",
)

#: What a trial at the target, or a look at the source's rows, has shown.
TRIED_CASES: list[Case] = [
    (
        "TG-PF-431",
        request(),
        target(table(), rehearsal=Rehearsal((REFUSED_EXTENSION,))),
        "extension vector cannot be made: permission denied",
    ),
    (
        "TG-PF-432",
        request(),
        target(table(), rehearsal=Rehearsal((REFUSED_OWNER,))),
        "function public.log_it() belongs to postgres",
    ),
    (
        "TG-PF-433",
        request(),
        target(table(), rehearsal=Rehearsal(untried=("table public.t: canceled",))),
        "not tried at customer/0: table public.t",
    ),
    (
        "TG-PF-433",
        request(),
        source(table(), survey=known(event_triggers=("audit_ddl",))),
        "is not tried: audit_ddl",
    ),
    ("TG-PF-434", request(), target(table(), server=server(encoding="SQL_ASCII")), "SQL_ASCII"),
    (
        "TG-PF-435",
        request(),
        source(table(), evaluated=(Evaluated(T, "check", "t_due", 100, 7),)),
        "7 of 100 rows looked at do not meet CHECK t_due of t",
    ),
    (
        "TG-PF-436",
        request(),
        source(table(), evaluated=(Evaluated(T, "index", "t_i", error="no function f"),)),
        "index t_i of t cannot be evaluated: no function f",
    ),
]


def both_sides(**changes: Any) -> Facts:
    """Table t at the source and at the target."""
    return replace(target(table(), there=(table(),)), **changes)


def since(verb: Verb = Verb.SWITCH, **changes: Any) -> Since:
    """Table t had an index at both sides when the workflow was made; now it is at one."""
    had = {"t": {"index i": "1"}}
    made = Since(
        verb=verb,
        direction=Direction.FORWARD,
        then=Catalogue({"commerce/0": had, "customer/0": had}),
        now=Catalogue({"commerce/0": had, "customer/0": {"t": {}}}),
        sources=("commerce/0",),
        targets=("customer/0",),
    )
    return replace(made, **changes)


SINCE_CASES: list[Case] = [
    (
        "TG-PF-501",
        reshard_request(tables=(T,)),
        replace(
            resharding("-80", "80-"),
            sources=(database("0", table(), table("late"), keyspace="customer"),),
            since=since(),
        ),
        "table late was made after workflow cust",
    ),
    (
        "TG-PF-502",
        request(),
        both_sides(since=since()),
        "index i of t was dropped at customer/0 since create; commerce/0 has it",
    ),
    (
        "TG-PF-503",
        request(),
        both_sides(
            since=since(
                then=Catalogue({}), now=Catalogue({"customer/0": {"t": {"index mine": "1"}}})
            )
        ),
        "index mine of t was made at customer/0 since create; commerce/0 lacks it",
    ),
    ("TG-PF-504", request(), facts(table(), since=since(Verb.COMPLETE)), "any more: t"),
    (
        "TG-PF-505",
        request(),
        both_sides(since=since(apart={"t": "writes lead to customer"})),
        "routing rules of t disagree",
    ),
]

CASES = [
    *(REQUEST_CASES + TABLE_CASES + SERVER_CASES),
    *(TARGET_CASES + TAKEN_CASES + TRIED_CASES + SINCE_CASES),
]
