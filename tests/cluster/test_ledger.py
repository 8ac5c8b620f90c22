"""The update ledger, without a database; with one: ``conformance/test_ledger.py``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.cluster.ledger import Applied, Update
from tidegate.cluster.schema import Schema
from tidegate.errors import SchemaVersionError


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 6))
def test_what_is_missing_is_what_comes_after(known: int, found: int) -> None:
    schema = Schema(Update(f"u{n}", (f"SELECT {n}",)) for n in range(known))
    applied = [
        Applied(n + 1, f"u{n}", Update("", (f"SELECT {n}",)).sha256, 0) for n in range(found)
    ]
    if found > known:
        with pytest.raises(SchemaVersionError):
            schema.missing(applied)
    else:
        assert schema.missing(applied) == schema.updates[found:]


def test_the_hash_is_of_the_text_and_not_of_its_indentation() -> None:
    one = Update("u", ("\n  CREATE TABLE t (\n    id integer\n  )\n",))
    assert one.sha256 == Update("u", ("CREATE TABLE t (\n    id integer  \n  )",)).sha256
    assert one.sha256 != Update("u", ("CREATE TABLE u (\n    id integer\n  )",)).sha256
    assert Update("u", ("a", "b")).sha256 != Update("u", ("ab",)).sha256
