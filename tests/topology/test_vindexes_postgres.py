"""A real server must compute the ids that Python computes, and send bytes that mean the same."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.keyrange import KeyRange, sql_in_key_range
from tidegate.topology.shardspec import generate, shard_key_range
from tidegate.topology.vindexes.pg_binary import many_from_pg_binary
from tidegate.topology.vindexes.values import raw_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ROWS = 400

OIDS = {
    "int2": 21, "int4": 23, "int8": 20, "text": 25, "varchar": 1043, "bpchar": 1042,
    "bytea": 17, "uuid": 2950, "bool": 16, "date": 1082, "timestamp": 1114, "timestamptz": 1184,
    "numeric": 1700,
}  # fmt: skip


def samples(kind: str, seed: int = 7) -> list[Any]:  # noqa: PLR0911  # one return a type
    """Values of a type: the odd ones, then random ones."""
    rng = random.Random(seed)
    bits = {"int2": 16, "int4": 32, "int8": 64}.get(kind)
    if bits:
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
        return [0, 1, -1, low, high, *(rng.randint(low, high) for _ in range(ROWS))]
    if kind in {"text", "varchar", "bpchar"}:
        alphabet = "abcÄß漢😀 '\\\"%_\t"
        texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 40))) for _ in range(ROWS)]
        return ["", " ", *(text.rstrip(" ") if kind == "bpchar" else text for text in texts)]
    if kind == "bytea":
        return [b"", b"\0", *(rng.randbytes(rng.randint(0, 40)) for _ in range(ROWS))]
    if kind == "uuid":
        return [uuid.UUID(int=rng.getrandbits(128)) for _ in range(ROWS)]
    if kind == "bool":
        return [True, False]
    if kind == "date":
        return [date(2000, 1, 1) + timedelta(rng.randint(-700_000, 2_900_000)) for _ in range(ROWS)]
    if kind == "numeric":
        places = [
            Decimal(rng.randint(-(10**12), 10**12)).scaleb(-rng.randint(0, 9)) for _ in range(ROWS)
        ]
        return [Decimal(0), Decimal("0.10"), Decimal("0.0001"), Decimal(10**16), *places]
    moments = [
        datetime(2000, 1, 1) + timedelta(microseconds=rng.randint(-(10**16), 10**17))  # noqa: DTZ001
        for _ in range(ROWS)
    ]
    return [m.replace(tzinfo=UTC) for m in moments] if kind == "timestamptz" else moments


@pytest.fixture(scope="module")
def connection(source_server: LocalServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as opened:
        opened.execute("SET timezone TO 'Asia/Kolkata'")
        yield opened


def asked(
    connection: psycopg.Connection[Any],
    expression: str,
    kinds: list[str],
    rows: list[tuple[Any, ...]],
) -> list[Any]:
    """Evaluate an expression on columns c0, c1 … of a table holding the rows."""
    columns = ", ".join(f"c{place} {kind}" for place, kind in enumerate(kinds))
    listed = ", ".join(f"c{place}" for place in range(len(kinds)))
    connection.execute("DROP TABLE IF EXISTS pg_temp.given")
    connection.execute(f"CREATE TEMP TABLE given (n serial, {columns})".encode())
    with connection.cursor().copy(f"COPY given ({listed}) FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)
    return [
        value
        for (value,) in connection.execute(f"SELECT {expression} FROM given ORDER BY n".encode())
    ]


PUSHED = [
    *(("pg_hash", kind) for kind in OIDS if kind not in {"bytea", "numeric"}),
    *(
        (type_name, kind)
        for type_name in ("binary", "binary_md5", "null")
        for kind in ("int2", "int4", "int8", "text", "varchar", "bpchar", "bytea", "uuid", "bool")
    ),
    *((type_name, kind) for type_name in ("numeric", "reverse_bits") for kind in ("int4", "int8")),
]


@pytest.mark.parametrize(("type_name", "kind"), PUSHED)
def test_the_database_computes_the_same_id(
    connection: psycopg.Connection[Any], type_name: str, kind: str
) -> None:
    vindex = vindexes.create(type_name, "v")
    expression = vindex.sql_keyspace_id([("c0", kind)])
    assert expression is not None
    values = samples(kind)
    found = asked(connection, expression, [kind], [(value,) for value in values])
    for value, given in zip(values, found, strict=True):
        raw = raw_form(value)
        if kind == "bpchar":
            assert isinstance(raw, bytes)
            raw = raw.rstrip(b" ")
        try:
            want: bytes | None = vindex.map_many([raw])[0]
        except ShardKeyError:
            want = None  # the database must say NULL where Python refuses
        assert given == want, value


@pytest.mark.parametrize("kind", [kind for kind in OIDS if kind != "null"])
def test_binary_values_decode_to_raw_forms(connection: psycopg.Connection[Any], kind: str) -> None:
    values = samples(kind)
    send = {"bpchar": "bpcharsend", "bytea": "byteasend", "varchar": "varcharsend"}
    function = send.get(kind, f"{kind}{'_' if kind in {'uuid', 'date', 'numeric'} else ''}send")
    function = {"timestamp": "timestamp_send", "timestamptz": "timestamptz_send"}.get(
        kind, function
    )
    column = "bpchar(60)" if kind == "bpchar" else kind
    sent = asked(connection, f"{function}(c0)", [column], [(value,) for value in values])
    raws = [raw_form(value) for value in values]
    if kind == "bpchar":
        raws = [raw.rstrip(b" ") if isinstance(raw, bytes) else raw for raw in raws]
    assert many_from_pg_binary(OIDS[kind], sent) == raws


PARTITIONED = [
    "int2",
    "int4",
    "int8",
    "text",
    "uuid",
    "bytea",
    "bool",
    "date",
    "timestamp",
    "timestamptz",
]


@pytest.mark.parametrize("kind", [*PARTITIONED, "varchar", "bpchar"])
def test_pg_hash_is_the_partition_hash(connection: psycopg.Connection[Any], kind: str) -> None:
    modulus = 5
    values = samples(kind)
    connection.execute("DROP TABLE IF EXISTS parted CASCADE")
    connection.execute(f"CREATE TABLE parted (c0 {kind}) PARTITION BY HASH (c0)".encode())
    satisfied = ", ".join(
        f"satisfies_hash_partition('parted'::regclass, {modulus}, {rest}, c0)"
        for rest in range(modulus)
    )
    found = asked(connection, f"ARRAY[{satisfied}]", [kind], [(value,) for value in values])
    raws = [raw_form(value) for value in values]
    if kind == "bpchar":
        raws = [raw.rstrip(b" ") if isinstance(raw, bytes) else raw for raw in raws]
    ids = vindexes.create("pg_hash", "v").map_many(raws)
    for keyspace_id, accepted in zip(ids, found, strict=True):
        assert accepted.index(True) == int.from_bytes(keyspace_id, "big") % modulus
        assert accepted.count(True) == 1


@pytest.mark.parametrize(
    "kinds", [("int8", "text"), ("uuid", "int4", "date"), ("text", "text", "int2", "bool")]
)
def test_pg_hash_of_several_columns_is_the_partition_hash(
    connection: psycopg.Connection[Any], kinds: tuple[str, ...]
) -> None:
    modulus = 7
    columns = [samples(kind, seed) for seed, kind in enumerate(kinds)]
    rows = [tuple(random.Random(n).choice(column) for column in columns) for n in range(300)]
    declared = ", ".join(f"c{place} {kind}" for place, kind in enumerate(kinds))
    listed = ", ".join(f"c{place}" for place in range(len(kinds)))
    connection.execute("DROP TABLE IF EXISTS parted CASCADE")
    connection.execute(f"CREATE TABLE parted ({declared}) PARTITION BY HASH ({listed})".encode())
    vindex = vindexes.create("pg_hash", "v")
    pushed = vindex.sql_keyspace_id([(f"c{place}", kind) for place, kind in enumerate(kinds)])
    satisfied = ", ".join(
        f"satisfies_hash_partition('parted'::regclass, {modulus}, {rest}, {listed})"
        for rest in range(modulus)
    )
    ids = vindex.map_many([tuple(map(raw_form, row)) for row in rows])
    assert asked(connection, str(pushed), list(kinds), rows) == ids
    for keyspace_id, accepted in zip(
        ids, asked(connection, f"ARRAY[{satisfied}]", list(kinds), rows), strict=True
    ):
        assert accepted.index(True) == int.from_bytes(keyspace_id, "big") % modulus


@pytest.mark.parametrize(
    "type_name", ["pg_hash", "binary", "binary_md5", "numeric", "reverse_bits"]
)
def test_the_database_says_null_where_python_refuses(
    connection: psycopg.Connection[Any], type_name: str
) -> None:
    expression = vindexes.create(type_name, "v").sql_keyspace_id([("c0", "bigint")])
    assert asked(connection, str(expression), ["int8"], [(None,)]) == [None]


def test_infinite_dates_hash_like_the_numbers_they_are_stored_as(
    connection: psycopg.Connection[Any],
) -> None:
    vindex = vindexes.create("pg_hash", "v")
    rows: list[tuple[Any, ...]] = [("infinity",), ("-infinity",)]
    for kind, bits in (("date", 32), ("timestamp", 64), ("timestamptz", 64)):
        expression = str(vindex.sql_keyspace_id([("c0", kind)]))
        stored = [(1 << bits - 1) - 1, -(1 << bits - 1)]
        assert asked(connection, expression, [kind], rows) == vindex.map_many(stored)


def test_multicol_is_pushed_when_its_columns_are(connection: psycopg.Connection[Any]) -> None:
    params = {"column_count": "3", "column_vindex": "binary,pg_hash,binary_md5"}
    vindex = vindexes.create("multicol", "v", params)
    kinds = ["text", "int8", "text"]
    expression = vindex.sql_keyspace_id([(f"c{place}", kind) for place, kind in enumerate(kinds)])
    rows = list(zip(samples("text"), samples("int8"), samples("text", 9), strict=False))
    raws = [tuple(map(raw_form, row)) for row in rows]
    assert asked(connection, str(expression), kinds, rows) == vindex.map_many(raws)
    columns = [(f"c{place}", kind) for place, kind in enumerate(kinds)]
    assert vindexes.create("multicol", "v", {"column_count": "3"}).sql_keyspace_id(columns) is None


@pytest.mark.parametrize("limits", [*generate(5), "-8000", "8000-", "61-6100ff", "-"])
def test_the_database_agrees_on_what_a_range_holds(
    connection: psycopg.Connection[Any], limits: str
) -> None:
    key_range = shard_key_range(limits)
    rng = random.Random(3)
    edges = [key_range.start, key_range.end, b"\x80", b"\x80\0", b"a", b"a\0", b"a\0\0", b"", b"\0"]
    ids = [*edges, *(rng.randbytes(rng.randint(0, 3)) for _ in range(200))]
    found = asked(
        connection, sql_in_key_range("c0", key_range), ["bytea"], [(each,) for each in ids]
    )
    assert found == [key_range.contains(each) for each in ids]


def test_an_old_server_computes_the_same_ids(
    old_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    with psycopg.connect(
        old_server.conninfo(new_database(old_server)), password=old_server.password
    ) as old:
        for type_name, kind in PUSHED:
            vindex = vindexes.create(type_name, "v")
            values = [value for value in samples(kind) if not (kind == "bpchar" and value == " ")]
            if type_name in {"numeric", "reverse_bits"}:
                values = [abs(value) for value in values if value not in {-(1 << 31), -(1 << 63)}]
            found = asked(
                old,
                str(vindex.sql_keyspace_id([("c0", kind)])),
                [kind],
                [(value,) for value in values],
            )
            assert found == vindex.map_many([raw_form(value) for value in values])


def test_the_whole_space_holds_no_unmappable_row() -> None:
    assert sql_in_key_range("id", KeyRange()) == "(id IS NOT NULL)"
    assert sql.SQL(sql_in_key_range("id", KeyRange(b"\x80"))) is not None
