"""Folders of SQL files, and where their statements begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.folder import check_folder, check_unedited, read_folder
from tidegate.engines.postgres.script import UnreadableError, statements

if TYPE_CHECKING:
    from pathlib import Path

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
            "007_n.sql": b"SELECT 1;\n-- tidegate: no-transaction",
            "008_u.sql": b"SELECT '\xff'",
        }
    )
    text = "\n".join(found)
    for expected in (
        "003_c.sql: line 1: BEGIN would end",
        "003_c.sql: line 1: COMMIT would end",
        "003_c.sql: 002 is missing between it and 001_a.sql",
        "003_d.sql: line 1: a quote is not closed",
        "003_e.sql: its number is also that of 003_d.sql",
        "notes.sql: its name is not NNN_name.sql, NNN_name.up.sql",
        "004_x.sql: line 1: the directive 'no-transactions' is not known",
        "005_y.sql: line 1: \\i is a command of psql",
        "006_z.sql: line 1: the rows of COPY … FROM stdin are not ended",
        "007_n.sql: line 2: the directive no-transaction must come before the first statement",
        "008_u.sql: line 1: it is not UTF-8",
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
    assert [(piece.text, piece.line) for piece in script.pieces] == [
        ("CREATE INDEX CONCURRENTLY a ON t (x)", 2),
        ("VACUUM t", 4),
    ]
    assert not script.version.is_transactional


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["001_A.SQL", "002_b.Sql"], ["001", "002"]),
        (["001_a.up.sql", "001_a.down.sql", "002_b.UP.SQL"], ["001", "002"]),
        (["V1__a.sql", "V10__c.sql", "V2__b.sql"], ["1", "2", "10"]),
        (["V1_1__a.sql", "V1.2__b.sql", "v3__c.SQL", "U3__c.sql"], ["1.1", "1.2", "3"]),
        (["001_with space.sql", "002_ünï.sql"], ["001", "002"]),
    ],
)
def test_names_of_other_tools_are_understood(names: list[str], ids: list[str]) -> None:
    """Situation tenants 08, and tenants 12: ``V1__x.sql``, ``x.up.sql``, ``.SQL``."""
    folder = check_folder("/sql", dict.fromkeys(names, FIRST))
    assert list(folder.chain.ids) == ids
    assert [script.file for script in folder.scripts] == sorted(
        (name for name in names if "down" not in name and not name.startswith("U")),
        key=[script.file for script in folder.scripts].index,
    )


def test_what_undoes_a_version_belongs_to_it() -> None:
    files = {"001_a.up.sql": FIRST, "001_a.down.sql": b"DROP TABLE a", "V2__b.sql": FIRST}
    first, second = check_folder("/sql", files).scripts
    assert first.down is not None
    assert first.down.text == "DROP TABLE a"
    assert second.down is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"001_a.sql": FIRST, "001_a.SQL": FIRST}, "its number is also that of"),
        ({"001_a.sql": FIRST, "V1__a.sql": FIRST}, "its number is also that of"),
        ({"V1__a.sql": FIRST, "V1_0__b.sql": FIRST}, "its number is also that of"),
        ({"001_a.up.sql": FIRST, "002_b.down.sql": FIRST}, "002_b.down.sql: it undoes version 002"),
        ({"001_a.sql": FIRST, "001_a.down.sql": FIRST, "U1__a.sql": FIRST}, "undoes the same"),
        ({"R__views.sql": FIRST}, "repeatable files and no version; add a first version"),
        ({"001_a.sql": FIRST, "R__v.sql": FIRST, "r__v.SQL": FIRST}, "its name is also that of"),
        ({"001_a.sql": FIRST, "R__v.sql": b"VACUUM"}, "R__v.sql: a repeatable file runs in a tr"),
        ({"001_a.sql": FIRST, "R__.sql": FIRST}, "R__.sql: its name is not"),
        ({"orders.sql": FIRST}, "its name is not"),
        ({"001-a.sql": FIRST}, "its name is not"),
        ({"001_a.sql": b"\xff\xfeS\0"}, "it is UTF-16"),
        ({"001_a.sql": b"-- migrate:up\nSELECT 1;\n-- migrate:down\n"}, "line 3: 'migrate:down'"),
        ({"001_a.sql": b"SELECT 1;\n-- +goose Down\nSELECT 2"}, "line 2: '+goose Down'"),
        ({"001_a.sql": b"SELECT 1;\n\n\\connect other"}, "line 3: \\connect is a command of psql"),
        ({"001_a.sql": b"\\restrict abc\n"}, "delete the line"),
        ({"001_a.sql": b"\\set x 1"}, "line 1: \\set is a command of psql"),
        ({"001_a.sql": b"COPY t TO stdout;"}, "line 1: COPY … TO stdout has nobody"),
        ({"001_a.sql": b"SET standard_conforming_strings = off;"}, "is always on"),
        ({"001_a.sql": b"SELECT 1;\nSELECT 'x"}, "line 2: a quote is not closed"),
        ({"001_a.sql": b"SELECT 1;\n\nSELECT $f$ x"}, "line 3: the quote $f$ is not closed"),
        ({"001_a.sql": b"SELECT 1;\n/* /* */"}, "line 2: a comment is not closed"),
        ({"001_a.sql": b"\nCOPY t FROM stdin; SELECT 1;\n\\.\n"}, "line 2: the rows of COPY"),
        ({"001_a.sql": b"\nCOPY t FROM stdin;\n1\n"}, "line 2: the rows of COPY"),
        ({"001_a.sql": b"SELECT 1;\n\\."}, "line 2: \\. is a command of psql"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name_and_line(
    files: dict[str, bytes], reason: str
) -> None:
    """Situation tenants 08: what is not supported is named, with its line."""
    assert reason in "\n".join(reasons(files))


def test_empty_files_and_files_of_comments_are_versions_without_statements() -> None:
    """Situation tenants 08: one empty file refused the whole folder."""
    files = {"001_a.sql": b"", "002_b.sql": b"-- nothing yet\n", "003_c.sql": b"/* */;;\n"}
    assert check_folder("/sql", files).chain.ids == ("001", "002", "003")


LICENCES = [
    b"/* Copyright\n * (c) us\n */\n",
    b"\n\n  -- Copyright\r\n",
    b"\xef\xbb\xbf/* one */ /* two\n*/ -- three\n;\n",
]


@pytest.mark.parametrize("licence", LICENCES)
@pytest.mark.parametrize(
    "words", [b"-- tidegate: no-transaction", b"/* tidegate:no-transaction */"]
)
def test_a_directive_after_a_licence_acts(licence: bytes, words: bytes) -> None:
    """Situation tenants 08: a directive behind a licence comment was ignored."""
    text = licence + b"   " + words + b"\nVACUUM t;"
    (script,) = check_folder("/sql", {"001_a.sql": text}).scripts
    assert not script.version.is_transactional
    assert [piece.text for piece in script.pieces] == ["VACUUM t"]


def test_rows_of_a_copy_are_cut_from_the_statements() -> None:
    """Situation tenants 08: ``COPY … FROM stdin`` with rows, as pg_dump writes it."""
    text = (
        b"CREATE TABLE t (a int, b text);\r\n"
        b"COPY t (a, b) FROM stdin;  -- rows\r\n1\tit's; $$\r\n2\t\\\\.\r\n\\.\r\n\r\n"
        b"copy public.t from STDIN with (format csv);\n\\.\n"
        b"SELECT 'COPY t FROM stdin;', $$COPY t FROM stdin;$$;\nCOPY t FROM '/stdin';\n"
    )
    (script,) = check_folder("/sql", {"001_a.sql": text}).scripts
    assert [(piece.text.strip(), piece.line, piece.rows) for piece in script.pieces] == [
        ("CREATE TABLE t (a int, b text);", 1, None),
        ("COPY t (a, b) FROM stdin", 2, "1\tit's; $$\n2\t\\\\.\n"),
        ("copy public.t from STDIN with (format csv)", 7, ""),
        (
            "SELECT 'COPY t FROM stdin;', $$COPY t FROM stdin;$$;\nCOPY t FROM '/stdin';",
            9,
            None,
        ),
    ]


def test_folders_below_are_named_or_read(tmp_path: Path) -> None:
    """Situation tenants 08: subfolders were ignored without a word."""
    (tmp_path / "v2").mkdir()
    (tmp_path / "001_a.sql").write_bytes(FIRST)
    (tmp_path / "v2" / "002_b.SQL").write_bytes(FIRST)
    (tmp_path / "v2" / "loop").symlink_to(tmp_path)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.sql").write_text("x")
    plain = read_folder(str(tmp_path))
    assert plain.chain.ids == ("001",)
    assert [each.partition(":")[0] for each in plain.ignored] == ["README.md", "v2/"]
    deep = read_folder(str(tmp_path), recursive=True)
    assert deep.chain.ids == ("001", "002")
    assert deep.of("002").file == "v2/002_b.SQL"
    assert [each.partition(":")[0] for each in deep.ignored] == ["README.md", "v2/loop/"]


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
    "SELECT E'a' -- it's;\n 'b\\';c', é€$$x, 1",
    "SELECT $€$ ; $$ ; $€$, \xa0 FROM t",
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
