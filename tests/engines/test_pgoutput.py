"""Decoding what a real server sends; packed rows become the rows COPY would write."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.engines.changes import NULL, field_of, unpacked
from tidegate.engines.postgres import pgoutput, rows
from tidegate.engines.postgres.pgoutput import Decoder
from tidegate.errors import SchemaChangedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.engines.changes import Change, Row
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers


class Key(NamedTuple):
    """As much of a route as decoding looks at."""

    key_places: tuple[int, ...] = (0,)


@pytest.fixture(params=["source_server", "old_server"])
def conn(
    request: pytest.FixtureRequest, make_database: Callable[[LocalServer], Database]
) -> Connection[TupleRow]:
    conn = make_database(request.getfixturevalue(request.param)).admin()
    conn.execute("SET search_path = public")
    conn.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text, n numeric, flag bool, body text);"
        "ALTER TABLE item ALTER body SET STORAGE EXTERNAL;"
        "CREATE PUBLICATION p FOR TABLE item"
    )
    conn.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    return conn


def messages(conn: Connection[TupleRow], *, binary: bool = True) -> list[bytes]:
    found = conn.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '2',"
        " 'publication_names', 'p', 'messages', 'true', 'binary', %s)",
        [str(binary).lower()],
    )
    return [row[0] for row in found]


def changes(data: list[bytes], decoder: Decoder | None = None) -> list[Change]:
    decoder = decoder or Decoder(binary=True)
    found = []
    for message in data:
        if message[0] == pgoutput.RELATION:
            decoder.relation(message).extra = Key()
        elif message[0] in b"IUD":
            found.append(decoder.change(message))
    return found


def number(value: int) -> bytes:
    return b"\0\0\0\x04" + value.to_bytes(4, "big", signed=True)


def text(value: str) -> bytes:
    return len(value).to_bytes(4, "big") + value.encode()


def test_transactions_messages_and_truncates_are_told_apart(conn: Connection[TupleRow]) -> None:
    with conn.transaction():
        conn.execute("SELECT pg_logical_emit_message(true, 'tidegate', 'marker:one')")
        conn.execute("INSERT INTO item VALUES (1, 'a')")
        conn.execute("TRUNCATE item RESTART IDENTITY")
    decoder = Decoder(binary=True)
    begin, note, relation, _insert, *more = messages(conn)
    emptied, end = more[-2:]
    found = decoder.message(note)
    assert (found.transactional, found.prefix, found.content) == (True, "tidegate", b"marker:one")
    table = decoder.relation(relation)
    assert (table.schema, table.name, table.replica_identity) == ("public", "item", "d")
    assert (table.columns, table.identity) == (("id", "name", "n", "flag", "body"), (0,))
    assert decoder.truncate(emptied) == pgoutput.Truncate((table,), False, True)  # noqa: FBT003
    commit = decoder.commit(end)
    assert decoder.begin(begin).final_lsn == commit.commit_lsn < commit.end_lsn
    assert decoder.begin(begin).commit_time_us == commit.commit_time_us


def test_every_kind_of_value_arrives_as_copy_writes_it(conn: Connection[TupleRow]) -> None:
    for i in range(6):
        conn.execute("INSERT INTO item VALUES (%s, 'n', 1.5, true, NULL)", [i])
        conn.execute("INSERT INTO item VALUES (%s, 'longer', 10.25, false, 'body')", [100 + i])
    found = changes(messages(conn))
    assert sum(isinstance(new, tuple) for _, _, _, new in found) == 10, "two rows make two shapes"
    with conn.cursor().copy("COPY (SELECT * FROM item ORDER BY id) TO STDOUT (FORMAT binary)") as c:
        expected = b"".join(c)
    ordered = sorted(
        (new for *_, new in found if new is not None), key=lambda r: field_of(r, 0) or b""
    )
    plain = [unpacked(row) for row in ordered]
    assert rows.encode_full(plain, 5, binary=True) == expected
    conn.execute("CREATE TABLE again (LIKE item)")
    with conn.cursor().copy("COPY again FROM STDIN (FORMAT binary)") as copy:
        copy.write(rows.encode_full([new for *_, new in found if new is not None], 5, binary=True))
    assert conn.execute("TABLE item EXCEPT ALL TABLE again").fetchall() == []


def test_values_left_out_and_old_keys_are_known(conn: Connection[TupleRow]) -> None:
    conn.execute("INSERT INTO item VALUES (1, 'a', 1, true, repeat('x', 5000))")
    messages(conn)
    conn.execute("UPDATE item SET name = 'b'")
    conn.execute("UPDATE item SET id = 2")
    conn.execute("DELETE FROM item")
    update, move, delete = changes(messages(conn))
    assert update[2] is None
    assert isinstance(update[3], list)
    assert update[3][:2] == [number(1), text("b")]
    assert update[3][3:] == [b"\0\0\0\x01\x01", None]
    assert move[2] == [number(1), NULL, NULL, NULL, NULL]
    assert move[3] is not None
    assert field_of(move[3], 0) == number(2)
    assert delete[2] == [number(2), NULL, NULL, NULL, NULL]


def test_a_full_identity_supplies_what_was_left_out(conn: Connection[TupleRow]) -> None:
    conn.execute("ALTER TABLE item REPLICA IDENTITY FULL")
    conn.execute("INSERT INTO item VALUES (1, 'a', 1, true, repeat('x', 5000))")
    messages(conn)
    conn.execute("UPDATE item SET id = 2")
    ((_, _, old, new),) = changes(messages(conn))
    assert old is not None
    assert new is not None
    assert field_of(new, 4) == field_of(old, 4) == text("x" * 5000)


def test_a_shape_of_a_table_that_was_altered_is_forgotten(conn: Connection[TupleRow]) -> None:
    decoder = Decoder(binary=True)
    for i in range(3):
        conn.execute("INSERT INTO item VALUES (%s, 'a', 1, true, 'b')", [i])
    assert len(changes(messages(conn), decoder)) == 3
    conn.execute("ALTER TABLE item RENAME name TO title")
    conn.execute("INSERT INTO item VALUES (7, 'a', 1, true, 'b')")
    ((_, relation, _, _),) = changes(messages(conn), decoder)
    assert relation.columns[1] == "title"


def test_text_is_not_taken_for_binary(conn: Connection[TupleRow]) -> None:
    conn.execute("INSERT INTO item VALUES (1, 'a', 1, true, 'b')")
    with pytest.raises(SchemaChangedError):
        changes(messages(conn, binary=False))


fields = st.one_of(st.none(), st.binary(max_size=6))


@given(st.lists(st.lists(fields, min_size=3, max_size=3), max_size=40))
def test_packed_rows_become_the_same_copy_rows_as_cut_ones(table: list[list[bytes | None]]) -> None:
    header = b"w" + bytes(24)
    decoder = Decoder(binary=True, offset=25)
    columns = b"".join(b"\0" + name + b"\0" + bytes(8) for name in (b"a", b"b", b"c"))
    named = header + b"R\0\0\0\x07" + b"public\0t\0d\0\x03" + columns
    decoder.relation(named).extra = Key((0, 2))
    cut: list[Row] = []
    found = []
    for row in table:
        body = b"".join(b"n" if v is None else b"b" + rows.field(v) for v in row)
        *_, new = decoder.change(header + b"I\0\0\0\x07N\0\x03" + body)
        assert new is not None
        cut.append([rows.field(v) for v in row])
        assert unpacked(new) == cut[-1]
        if isinstance(new, tuple) and new[0].key is not None:
            assert new[0].key(new[1]) == (cut[-1][0], cut[-1][2])
        found.append(new)

    def parts(data: bytes) -> list[bytes]:
        at, end, result = 19, len(data) - 2, []
        while at < end:
            begin, at = at, at + 2
            for _ in range(3):
                length = int.from_bytes(data[at : at + 4], "big", signed=True)
                at += 4 + max(length, 0)
            result.append(data[begin:at])
        return sorted(result)

    one = rows.encode_full(found, 3, binary=True)
    other = rows.encode(cut, 3, binary=True)  # type: ignore[arg-type]
    assert parts(one) == parts(other)
