"""Every engine: what is written is what is read, how it sorts, and how much of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
)
from sqlalchemy.exc import IntegrityError

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase

CREATE: Final = """
CREATE TABLE sample (
    name text NOT NULL PRIMARY KEY,
    at_ms bigint NOT NULL,
    count integer,
    ratio double precision,
    is_on boolean,
    body text
)
"""
SAMPLE: Final = Table(
    "sample",
    MetaData(),
    Column("name", Text),
    Column("at_ms", BigInteger),
    Column("count", Integer),
    Column("ratio", Float),
    Column("is_on", Boolean),
    Column("body", Text),
)
NAMES: Final = [
    "",
    " ",
    "A",
    "Z",
    "a",
    "a b",
    "a-b",
    "a/b",
    "ab",
    "z",
    "Ä",
    "ß",
    "ä",
    "é",
    "\u4e2d",
    "😀",
]
"""In the order of their code points, which is no language's order."""


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    with cluster_database.transaction() as connection:
        connection.exec_driver_sql(CREATE)
    return cluster_database


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=texts,
    at_ms=st.integers(-(2**63), 2**63 - 1),
    count=st.none() | st.integers(-(2**31), 2**31 - 1),
    ratio=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    is_on=st.none() | st.booleans(),
    body=st.none() | texts,
)
def test_a_value_comes_back_as_it_was(  # noqa: PLR0917 - one for each column
    database: ClusterDatabase,
    name: str,
    at_ms: int,
    count: int | None,
    ratio: float | None,
    is_on: bool | None,
    body: str | None,
) -> None:
    row = (name, at_ms, count, ratio, is_on, body)
    with database.transaction() as connection:
        connection.execute(SAMPLE.delete())
        connection.execute(SAMPLE.insert().values(row))
        found = tuple(connection.execute(select(SAMPLE)).one())
    assert found == row
    assert [type(each) for each in found] == [type(each) for each in row]


def test_text_sorts_and_compares_by_code_point(database: ClusterDatabase) -> None:
    assert sorted(NAMES) == NAMES
    with database.transaction() as connection:
        connection.execute(insert(SAMPLE), [{"name": n, "at_ms": 0} for n in reversed(NAMES)])
    with database.read() as connection:
        query = select(SAMPLE.c.name).order_by(SAMPLE.c.name)
        assert list(connection.execute(query).scalars()) == NAMES
        for bound in NAMES:
            above = connection.execute(query.where(SAMPLE.c.name > bound)).scalars()
            assert list(above) == [name for name in NAMES if name > bound]
        highest = connection.execute(select(func.max(SAMPLE.c.name))).scalar_one()
        assert highest == NAMES[-1]


def test_names_that_a_language_holds_equal_are_two(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        for name in ("\u00e9", "e\u0301", "E\u0301", "e"):
            connection.execute(SAMPLE.insert().values(name=name, at_ms=0))
    with pytest.raises(IntegrityError), database.transaction() as connection:
        connection.execute(SAMPLE.insert().values(name="\u00e9", at_ms=0))


def test_a_text_of_megabytes_comes_back_whole(database: ClusterDatabase) -> None:
    body = json.dumps({f"käse{n}": ["\u4e2d%s:x?", n] for n in range(50_000)}, ensure_ascii=False)
    assert len(body) > 1_000_000
    with database.transaction() as connection:
        connection.execute(SAMPLE.insert().values(name="large", at_ms=1, body=body))
    with database.read() as connection:
        assert connection.execute(select(SAMPLE.c.body)).scalar_one() == body


def test_ten_thousand_rows_go_in_and_out_in_one_transaction(database: ClusterDatabase) -> None:
    rows = [{"name": f"row {n:05}", "at_ms": n * 1000, "body": "x" * 100} for n in range(10_000)]
    with database.transaction() as connection:
        connection.execute(insert(SAMPLE), rows)
    with database.read() as connection:
        total = connection.execute(select(func.count(), func.sum(SAMPLE.c.at_ms))).one()
        assert tuple(total) == (10_000, sum(range(10_000)) * 1000)
    with database.transaction() as connection:
        changed = connection.execute(
            SAMPLE.update().where(SAMPLE.c.at_ms >= 5_000_000).values(count=1)
        )
        assert changed.rowcount == 5_000
        assert connection.execute(SAMPLE.delete().where(SAMPLE.c.count == 1)).rowcount == 5_000


def test_a_reader_keeps_its_state_over_many_rows(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        connection.execute(insert(SAMPLE), [{"name": str(n), "at_ms": 0} for n in range(500)])
    with database.read() as reader:
        rows = iter(reader.execute(select(SAMPLE.c.at_ms)).scalars())
        seen = [next(rows)]
        with database.transaction() as connection:
            connection.execute(SAMPLE.update().values(at_ms=1))
        seen += rows
        assert seen == [0] * 500
        assert set(reader.execute(select(SAMPLE.c.at_ms)).scalars()) == {0}
