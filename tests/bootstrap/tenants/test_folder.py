"""Folders of SQL files, and where their statements begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.folder import check_folder, check_unedited, read_folder
from tidegate.engines.postgres.script import UnreadableError, statements

FIRST = b"CREATE TABLE a (id int);"


def reasons(files: dict[str, bytes]) -> list[str]:
    with pytest.raises(MigrationSourceError) as refused:
        check_folder("/sql", files)
    return [f"{each['object']}: {each['message']}" for each in refused.value.details["findings"]]


def test_files_run_in_the_order_of_their_numbers() -> None:
    folder = check_folder(
        "/sql", {"10_c.sql": FIRST, "9_b.sql": FIRST, "8_a.sql": b"\xef\xbb\xbfSELECT 1;\r\n"}
    )
    assert folder.chain.ids == ("8", "9", "10")
    assert folder.of("8").text == "SELECT 1;\n"


def test_everything_wrong_is_told_at_once() -> None:
    found = reasons(
        {
            "001_a.sql": FIRST,
            "003_c.sql": b"BEGIN; SELECT 1; COMMIT;",
            "003_d.sql": b"SELECT 'open",
            "003_e.sql": FIRST,
            "notes.sql": FIRST,
            "004_x.sql": b"-- tidegate: no-transactions\nSELECT 1",
            "005_y.sql": b"\\i other.sql",
            "006_z.sql": b"COPY a FROM STDIN;",
            "007_n.sql": b"-- nothing",
            "008_u.sql": b"SELECT '\xff'",
        }
    )
    text = "\n".join(found)
    for expected in (
        "003_c.sql: line 1: BEGIN would end",
        "003_c.sql: line 1: COMMIT would end",
        "003_c.sql: 002 is missing between it and 001_a.sql",
        "003_d.sql: line 1: a quote is not closed",
        "003_e.sql: its number is also that of 003_c.sql",
        "notes.sql: its name is not NNN_name.sql",
        "004_x.sql: the directive 'no-transactions' is not known",
        "005_y.sql: line 1: commands of psql cannot be run",
        "006_z.sql: line 1: COPY from or to the client cannot be run",
        "007_n.sql: it holds no statement",
        "008_u.sql: it is not UTF-8",
    ):
        assert expected in text, text


def test_an_empty_or_absent_folder_is_refused() -> None:
    assert "holds no file" in reasons({})[0]
    with pytest.raises(MigrationSourceError, match="cannot be read"):
        read_folder("/no/such/folder")


def test_times_as_numbers_have_gaps() -> None:
    files = {"20260101120000_a.sql": FIRST, "20260203_b.sql": FIRST, "20260401090000_c.sql": FIRST}
    assert len(check_folder("/sql", files).scripts) == 3


def test_a_file_without_a_transaction_is_cut() -> None:
    text = b"-- tidegate: no-transaction\nCREATE INDEX CONCURRENTLY a ON t (x);\n\nVACUUM t;"
    (script,) = check_folder("/sql", {"001_a.sql": text}).scripts
    assert script.statements == ("CREATE INDEX CONCURRENTLY a ON t (x)", "VACUUM t")
    assert not script.version.is_transactional


def test_edited_and_removed_files_are_refused_once_a_tenant_has_them() -> None:
    chain = check_folder("/sql", {"001_a.sql": FIRST, "002_b.sql": FIRST}).chain
    recorded = {each.id: each.sha256 for each in chain.versions}
    check_unedited("/sql", chain, recorded)
    check_unedited("/sql", chain, {"001": recorded["001"]})
    for wrong in ({"001": "other"}, {"000": "gone"}):
        with pytest.raises(MigrationSourceError, match="not the one"):
            check_unedited("/sql", chain, wrong)


PIECES = [
    "SELECT 1",
    "SELECT 'a;b', E'it\\';s', U&'d;e'",
    'SELECT "x;y"',
    "SELECT $$;$$, $a$ ; $$ ; $a$",
    "DO $do$ BEGIN PERFORM 1; END; $do$",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
    "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); END",
    "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
    "INSERT INTO t VALUES ('x') -- not; here",
    "SELECT /* ; /* ; */ ; */ 2",
    "SELECT 1::numeric(10, 2), a$b$c FROM t",
    'UPDATE t SET begin = 1 WHERE "end" = 2',
]


BETWEEN = [";", " ;\n", ";;", "\n;--x;\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from(BETWEEN))
def test_a_script_is_cut_where_psql_cuts_it(pieces: list[str], between: str) -> None:
    # A comment at the end of a statement would hide the semicolon behind it.
    closed = [piece + "\n" if "--" in piece else piece for piece in pieces]
    found = [each.text for each in statements(between.join(closed))]
    assert found == pieces


@given(st.text())
def test_any_text_is_cut_or_refused(text: str) -> None:
    try:
        found = statements(text)
    except UnreadableError:
        return
    assert all(each.text in text for each in found)


def test_lines_and_words_are_those_of_the_statement() -> None:
    found = statements("-- first\nSELECT 1;\n\n/* two\nlines */ rollback to savepoint a;")
    assert [(each.line, each.words) for each in found] == [
        (2, ("SELECT",)),
        (5, ("ROLLBACK", "TO", "SAVEPOINT", "A")),
    ]
