"""What the text of a function refers to, as the parsing program and its supervision report it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any

import pytest

from tidegate.engines.postgres.bodies import child
from tidegate.engines.postgres.bodies.names import Body, Kind, Reading
from tidegate.engines.postgres.bodies.resolve import Named, Names, Node, Setting
from tidegate.engines.postgres.bodies.trees import dotted, split_path

TRIGGER = "trigger"


def read(text: str, language: str = "plpgsql", **header: Any) -> Reading:
    body = Body(language, text, **header)
    return child.read_all([body])[body]


def names(reading: Reading, kind: Kind) -> set[str]:
    assert not reading.error
    return {str(each) for each in reading.references if each.kind is kind}


def test_a_trigger_function_tells_the_tables_and_functions_it_uses() -> None:
    reading = read(
        "BEGIN INSERT INTO public.audit_log (x) VALUES (twice(NEW.id));"
        " PERFORM 1 FROM seen WHERE id = NEW.id; CALL sales.note(NEW.id); RETURN NEW; END",
        returns=TRIGGER,
    )
    assert names(reading, Kind.RELATION) == {"public.audit_log", "seen"}
    assert names(reading, Kind.ROUTINE) == {"twice", "sales.note"}
    assert {str(r) for r in reading.references if r.writes} == {"public.audit_log"}


@pytest.mark.parametrize(
    ("text", "relations"),
    [
        ("DECLARE r orders; BEGIN r.total := f(1); RETURN NEW; END", set()),
        (
            (
                "DECLARE r sales.orders%ROWTYPE; k lines.id%TYPE;"
                " BEGIN SELECT a, b INTO r.a, r.b FROM x; RETURN NEW; END"
            ),
            {"sales.orders", "lines", "x"},
        ),
        (
            (
                "DECLARE r record; c CURSOR (k int) FOR SELECT * FROM seen WHERE id = k;"
                " BEGIN FOR r IN c (3) LOOP DELETE FROM gone; END LOOP; RETURN NULL; END"
            ),
            {"seen", "gone"},
        ),
    ],
)
def test_variables_of_row_types_are_no_obstacle(text: str, relations: set[str]) -> None:
    assert names(read(text, returns=TRIGGER), Kind.RELATION) == relations


def test_the_type_of_a_variable_that_had_to_be_declared_otherwise_is_not_lost() -> None:
    reading = read("DECLARE r sales.item; BEGIN r.a := 1; RETURN NEW; END", returns=TRIGGER)
    assert "sales.item" in names(reading, Kind.TYPE)


def test_arguments_are_known_by_name_and_by_number() -> None:
    reading = read(
        "DECLARE x ALIAS FOR $2; BEGIN p.a := g($2); $1.b := 3; OPEN c FOR SELECT 1 FROM t;"
        " RETURN NEXT; END",
        returns="set",
        inputs=("p", "", "c"),
        outputs=("out_a", "out_b"),
        positions=("p", "", "c"),
    )
    assert names(reading, Kind.RELATION) == {"t"}
    assert names(reading, Kind.ROUTINE) == {"g"}


def test_statements_put_together_at_run_time_are_reported_and_constant_ones_are_read() -> None:
    reading = read(
        "DECLARE r record; BEGIN FOR r IN EXECUTE 'SELECT ' || foo(1) LOOP END LOOP;"
        " EXECUTE format('DELETE FROM %I', q); RETURN QUERY EXECUTE q; END",
        returns="set",
        inputs=("q",),
        positions=("q",),
    )
    assert reading.dynamic == ("'SELECT ' || foo(1)", "format('DELETE FROM %I', q)", "q")
    assert names(reading, Kind.ROUTINE) >= {"foo"}
    fixed = read("BEGIN EXECUTE 'INSERT INTO fixed VALUES (1)'; RETURN NULL; END", returns=TRIGGER)
    assert fixed.dynamic == ()
    assert names(fixed, Kind.RELATION) == {"fixed"}


def test_names_that_a_text_makes_itself_are_not_reported() -> None:
    reading = read(
        "WITH a AS (SELECT * FROM a), b AS (SELECT * FROM a), RECURSIVE_ AS (SELECT 1)"
        " SELECT * FROM b; CREATE TEMP TABLE mine (x int); INSERT INTO mine SELECT 1;"
        " SELECT 1 AS x INTO TEMP also_mine; SELECT * FROM also_mine, pg_temp.third",
        "sql",
    )
    assert names(reading, Kind.RELATION) == {"a"}, "the first expression means the table"


def test_constants_that_name_objects_are_found() -> None:
    reading = read(
        "SELECT to_tsvector('public.words', b), nextval('\"Sales\".numbers'), 'orders'::regclass,"
        ' a OPERATOR(calc.+) b, c COLLATE "de", d::mood, CAST(e AS sales.kind[]),'
        " ts_lexize('stems', f), set_config('search_path', 'x,\"Y\"', true)",
        "sql",
    )
    assert names(reading, Kind.TEXT_SEARCH_CONFIGURATION) == {"public.words"}
    assert names(reading, Kind.TEXT_SEARCH_DICTIONARY) == {"stems"}
    assert names(reading, Kind.RELATION) == {"Sales.numbers", "orders"}
    assert "calc.+" in names(reading, Kind.OPERATOR)
    assert names(reading, Kind.COLLATION) == {"de"}
    assert names(reading, Kind.TYPE) >= {"mood", "sales.kind"}
    assert reading.search_paths == (("x", "Y"),)


def test_a_text_that_cannot_be_parsed_says_why_and_harms_no_other() -> None:
    good, bad = Body("sql", "SELECT 1 FROM t"), Body("sql", "SELECT FROM FROM")
    found = child.read_all([bad, good])
    assert "syntax error" in found[bad].error
    assert not found[good].error


CRASHES = """
import os, sys
for line in sys.stdin:
    if "crash" in line: os.abort()
    if "hang" in line:
        import signal
        signal.setitimer(signal.ITIMER_PROF, 0.1)
        while True: pass
    print('{"references": [], "dynamic": [], "search_paths": [], "error": ""}', flush=True)
"""


def test_a_parser_that_crashes_or_hangs_costs_one_body_its_reading() -> None:
    bodies = [Body("sql", text) for text in ("-- one", "-- crash", "-- two", "-- hang", "-- three")]
    found = child.read_all(bodies, (sys.executable, "-c", CRASHES))
    errors = [found[body].error for body in bodies]
    assert [bool(error) for error in errors] == [False, True, False, True, False]
    assert errors[1] == "the parser crashed (SIGABRT)"
    assert "took longer than" in errors[3]


def test_a_parser_that_cannot_start_is_asked_once() -> None:
    bodies = [Body("sql", f"-- missing {n}") for n in range(3)]
    found = child.read_all(bodies, (sys.executable, "-c", "import no_such_parser"))
    assert {reading.error for reading in found.values()} == {
        "the parser ended with status 1: ModuleNotFoundError: No module named 'no_such_parser'"
    }


def test_a_parser_that_always_crashes_is_given_up() -> None:
    bodies = [Body("sql", f"-- crash {n}") for n in range(child.CRASHES_MAX * 10)]
    found = child.read_all(bodies, (sys.executable, "-c", "import os; os.abort()"))
    assert all(found[body].error for body in bodies)
    assert "too often" in found[bodies[-1]].error


def test_only_the_child_imports_the_parser() -> None:
    users = [
        path
        for path in Path(child.__file__).parents[3].rglob("*.py")
        if "import pgparse" in path.read_text(encoding="utf-8")
    ]
    assert [path.name for path in users] == ["reader.py"]


def cpu_s() -> float:
    """Seconds of CPU of this process and of those it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    )


def test_three_hundred_functions_are_read_in_two_seconds_of_cpu() -> None:
    statement = "INSERT INTO public.audit_log (a, b) SELECT a, {} FROM x JOIN y USING (id);"
    bodies = [
        Body(
            "plpgsql",
            f"DECLARE r orders; n int; BEGIN r.total := twice(NEW.id) + {number}; "
            + "".join(statement.format(n) for n in range(20))
            + " RETURN NEW; END",
            TRIGGER,
        )
        for number in range(300)
    ]
    began = cpu_s()
    found = child.read_all(bodies)
    assert cpu_s() - began < 2
    assert not [reading.error for reading in found.values() if reading.error]


NAMES = Names(
    {
        (Kind.RELATION, "t"): (
            Named(Node("pg_class", 1), "public"),
            Named(Node("pg_class", 2), "sales"),
        ),
        (Kind.ROUTINE, "f"): (
            Named(Node("pg_proc", 3), "public", 1, 1),
            Named(Node("pg_proc", 4), "sales", 2, 3),
            Named(Node("pg_proc", 5), "hidden", 0, 0),
        ),
        (Kind.TYPE, "mood"): (Named(Node("pg_type", 6), "app"),),
        (Kind.ROUTINE, "length"): (Named(Node("pg_proc", 7), "public", 1, 1),),
        (Kind.RELATION, "pg_class"): (Named(Node("pg_class", 8), "public"),),
    },
    frozenset({(Kind.ROUTINE, "length"), (Kind.RELATION, "pg_class")}),
)


@pytest.mark.parametrize(
    ("text", "path", "oids"),
    [
        ("SELECT 1 FROM t", ("sales", "public"), {2}),
        ("SELECT 1 FROM t", ("$user", "public"), {1}),
        ("SELECT 1 FROM sales.t", ("public",), {2}),
        ("SELECT f(1)", ("sales", "public"), {3}),
        ("SELECT f(1, 2)", ("sales", "public"), {4}),
        ("SELECT f()", ("sales", "public"), {5}),
        ("SELECT NULL::mood", ("$user",), {6}),
        ("SELECT length('a')", ("public",), {7}),
        ("SELECT length('a')", ("sales",), set()),
        ("SELECT 1 FROM pg_class", ("public",), set()),
        ("SELECT 1 FROM pg_class", ("public", "pg_catalog"), {8}),
        ("SELECT 1 FROM pg_catalog.pg_class", ("public",), set()),
    ],
)
def test_names_are_resolved_as_a_session_would(
    text: str, path: tuple[str, ...], oids: set[int]
) -> None:
    schemas = Setting(path, "app").schemas()
    found = {
        node.oid
        for reference in read(text, "sql").references
        for node in NAMES.find(reference, schemas)
    }
    assert found == oids


def test_written_names_and_paths_are_split_as_the_server_does() -> None:
    assert dotted('Sales."Two ""Words"".x"') == ["sales", 'Two "Words".x']
    assert split_path('"$user", Public,"A, b"') == ("$user", "public", "A, b")
