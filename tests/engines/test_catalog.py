"""What the catalogue reader says about tables of every make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.engines.postgres.catalog import key_columns, read_tables, require_tables
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.taken_types import NO_VALUE, read_taken
from tidegate.errors import NotFoundError
from tidegate.topology.connections import Endpoint
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

SCHEMA = """
CREATE SCHEMA sales;
CREATE TYPE sales.mood AS ENUM ('sad', 'ok');
CREATE SEQUENCE public.shared_seq;
CREATE TABLE public.customer (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  mood sales.mood DEFAULT 'ok',
  doubled bigint GENERATED ALWAYS AS (id * 2) STORED,
  gone int,
  UNIQUE (name) DEFERRABLE,
  CHECK (name <> '')
);
ALTER TABLE public.customer DROP COLUMN gone;
COMMENT ON TABLE public.customer IS 'who pays';
GRANT SELECT ON public.customer TO PUBLIC;
CREATE TABLE sales."Order" (
  a int, b numeric(10, 2), c serial, d bigint DEFAULT nextval('public.shared_seq'),
  customer bigint REFERENCES public.customer ON DELETE CASCADE,
  acl aclitem[],
  PRIMARY KEY (b, a) DEFERRABLE
);
CREATE INDEX late ON sales."Order" (abs(a), c) WHERE c > 1;
CREATE TABLE public.by_index (k int NOT NULL, v text);
CREATE UNIQUE INDEX by_index_k ON public.by_index (k) INCLUDE (v);
ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX by_index_k;
CREATE TABLE public.parent (id int);
CREATE TABLE public.child () INHERITS (public.parent);
CREATE UNLOGGED TABLE public.quick (id int);
CREATE VIEW public.seen AS SELECT 1 AS one;
CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE INSERT ON public.customer FOR EACH ROW EXECUTE FUNCTION public.f();
ALTER TABLE public.customer ENABLE REPLICA TRIGGER t;
"""

CUSTOMER, ORDER = TableName("public", "customer"), TableName("sales", "Order")


@pytest.fixture(params=["source_server", "old_server"])
def database(
    request: pytest.FixtureRequest, new_database: Callable[[LocalServer], str]
) -> Iterator[Connection[TupleRow]]:
    server: LocalServer = request.getfixturevalue(request.param)
    endpoint = Endpoint(server.conninfo(new_database(server)), server.secret)
    with connect(endpoint, purpose="test") as connection:
        connection.execute(SCHEMA)
        yield connection


def test_columns_keys_and_sequences_are_read(database: Connection[TupleRow]) -> None:
    tables = read_tables(database, [CUSTOMER, ORDER])
    customer, order = tables[CUSTOMER], tables[ORDER]
    assert [(c.name, c.type_name, c.identity, c.generated) for c in customer.columns] == [
        ("id", "bigint", "a", ""),
        ("name", "text", "", ""),
        ("mood", "sales.mood", "", ""),
        ("doubled", "bigint", "", "s"),
    ]
    assert [c.name for c in customer.copied_columns] == ["id", "name", "mood"]
    assert customer.column("name").collation == 'pg_catalog."C"'
    assert customer.column("mood").type_kind == "e"
    assert customer.column("mood").default == "'ok'::sales.mood"
    assert customer.comment == "who pays"
    assert any(item.startswith("=r/") for item in customer.acl)
    assert (customer.primary_key, customer.primary_key_deferrable) == (("id",), False)
    assert [(c.kind, c.columns, c.deferrable) for c in customer.constraints] == [
        ("p", ("id",), False),
        ("u", ("name",), True),
    ]
    assert len(customer.checks) == 1
    assert [(str(s.name), s.column, s.kind) for s in customer.sequences] == [
        ("customer_id_seq", "id", "identity")
    ]
    assert {(str(s.name), s.column, s.kind) for s in order.sequences} == {
        ("sales.Order_c_seq", "c", "owned"),
        ("shared_seq", "d", "used"),
    }
    assert order.column("b").type_name == "numeric(10,2)"
    assert not order.column("acl").has_send
    assert order.column("a").has_send


def test_foreign_keys_are_seen_from_both_ends(database: Connection[TupleRow]) -> None:
    tables = read_tables(database, [CUSTOMER, ORDER])
    (key,) = tables[ORDER].foreign_keys
    assert tables[CUSTOMER].referenced_by == (key,)
    assert tables[CUSTOMER].foreign_keys == tables[ORDER].referenced_by == ()
    assert (key.columns, key.referenced, key.referenced_columns) == (
        ("customer",),
        CUSTOMER,
        ("id",),
    )
    assert (key.on_delete, key.on_update) == ("c", "a")


def test_a_foreign_key_of_partitions_is_that_of_their_parent_which_can_be_dropped(
    database: Connection[TupleRow],
) -> None:
    """A partition's copy of a key, or the copy for a partition it leads to, cannot be dropped."""
    database.execute(
        "CREATE TABLE public.note (id bigint PRIMARY KEY, about bigint NOT NULL"
        " REFERENCES public.customer (id)) PARTITION BY RANGE (id);"
        "CREATE TABLE public.note_1 PARTITION OF public.note FOR VALUES FROM (1) TO (100);"
        "CREATE TABLE public.note_2 PARTITION OF public.note FOR VALUES FROM (100) TO (200);"
        "CREATE TABLE public.reply (id bigint PRIMARY KEY, note bigint REFERENCES public.note);"
    )
    customer, reply = TableName("public", "customer"), TableName("public", "reply")
    found = require_tables(database, [customer, reply])
    keys = [key for key in found[customer].referenced_by if key.table.name.startswith("note")]
    keys += found[reply].foreign_keys
    assert [(key.table.name, key.referenced.name) for key in keys] == [
        ("note", "customer"),
        ("reply", "note"),
    ]
    for key in keys:
        name = f"{key.table.schema}.{key.table.name}"
        database.execute(f"ALTER TABLE {name} DROP CONSTRAINT {key.name}".encode())
    left = require_tables(database, [customer, reply])
    assert not left[reply].foreign_keys
    assert not any(key.table.name.startswith("note") for key in left[customer].referenced_by)


def test_a_deferrable_key_does_not_identify_a_row(database: Connection[TupleRow]) -> None:
    tables = read_tables(database)
    assert tables[ORDER].primary_key == ("b", "a")
    assert key_columns(tables[ORDER]) == ()
    assert key_columns(tables[CUSTOMER]) == ("id",)
    assert key_columns(tables[TableName("public", "by_index")]) == ("k",)
    assert key_columns(tables[TableName("public", "parent")]) == ()


def test_indexes_say_what_they_cover(database: Connection[TupleRow]) -> None:
    order = read_tables(database, [ORDER])[ORDER]
    late = next(i for i in order.indexes if i.name == "late")
    assert (late.columns, late.unique, late.is_constraint) == (("", "c"), False, False)
    assert late.predicate == "(c > 1)"
    primary = next(i for i in order.indexes if i.name != "late")
    assert (primary.constraint, primary.immediate) == ("Order_pkey", False)


def test_triggers_inheritance_and_persistence_are_read(database: Connection[TupleRow]) -> None:
    tables = read_tables(database)
    (trigger,) = tables[CUSTOMER].triggers
    assert (trigger.name, trigger.enabled, trigger.own) == ("t", "R", False)
    child, parent = TableName("public", "child"), TableName("public", "parent")
    assert tables[child].parents == (parent,)
    assert tables[parent].children == (child,)
    assert tables[TableName("public", "quick")].persistence == "u"


def test_all_tables_leave_out_what_is_not_the_people_s(database: Connection[TupleRow]) -> None:
    database.execute("CREATE SCHEMA _tidegate; CREATE TABLE _tidegate.stream (id int)")
    assert {str(n) for n in read_tables(database)} == {
        "customer",
        "sales.Order",
        "by_index",
        "parent",
        "child",
        "quick",
    }


def test_a_named_view_is_found_as_what_it_is(database: Connection[TupleRow]) -> None:
    seen = TableName("public", "seen")
    assert read_tables(database, [seen])[seen].kind == "v"


def test_missing_tables_are_named(database: Connection[TupleRow]) -> None:
    with pytest.raises(NotFoundError, match=r"nope, sales\.nope"):
        require_tables(
            database, [CUSTOMER, TableName("sales", "nope"), TableName("public", "nope")]
        )
    assert read_tables(database, []) == {}


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE public.customer ADD COLUMN extra int",
        "ALTER TABLE public.customer DROP COLUMN mood",
        "ALTER TABLE public.customer ALTER COLUMN mood TYPE text",
        "ALTER TABLE public.customer RENAME COLUMN name TO title",
        "ALTER TABLE public.customer ALTER COLUMN name DROP NOT NULL",
        "ALTER TABLE public.customer REPLICA IDENTITY FULL",
    ],
)
def test_the_fingerprint_follows_a_change_of_shape(
    database: Connection[TupleRow], change: str
) -> None:
    before = read_tables(database, [CUSTOMER])[CUSTOMER]
    assert read_tables(database, [CUSTOMER])[CUSTOMER].fingerprint == before.fingerprint
    database.execute(change)
    assert read_tables(database, [CUSTOMER])[CUSTOMER].fingerprint != before.fingerprint


def test_a_rewrite_changes_the_file_and_not_the_fingerprint(database: Connection[TupleRow]) -> None:
    name = TableName("public", "by_index")
    before = read_tables(database, [name])[name]
    database.execute("ALTER TABLE public.by_index ALTER COLUMN k TYPE int USING k * 100")
    after = read_tables(database, [name])[name]
    assert after.fingerprint == before.fingerprint
    assert after.relfilenode != before.relfilenode


def test_row_estimates_follow_analyze(database: Connection[TupleRow]) -> None:
    name = TableName("public", "by_index")
    database.execute("INSERT INTO public.by_index SELECT g, 'x' FROM generate_series(1, 5000) g")
    database.execute("ANALYZE public.by_index")
    table = read_tables(database, [name])[name]
    assert 4500 <= table.est_rows <= 5500
    assert table.bytes > 5000 * 20


def test_what_a_server_makes_of_values_is_read_and_leaves_the_session_usable(
    database: Connection[TupleRow],
) -> None:
    built = "SELECT setting LIKE '%--with-libxml%' FROM pg_config() WHERE name = 'CONFIGURE'"
    found = read_taken(database, ["int4", "money", "xml"])
    assert found.keys() == {"money", "xml"}
    assert found["money"] == "0000000000000064"
    assert (found["xml"] != NO_VALUE,) == database.execute(built).fetchone()
    assert read_taken(database, ["int4"]) == {}
