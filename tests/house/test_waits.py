"""Every bounded wait is met by a test that reads, while it lasts, who or what is waited for."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Each declared wait, and the test on real servers that meets it.
MET_BY = {
    "constraint.settle": "dataplane/test_rules.py::"
    "test_a_constraint_that_waits_for_another_source_says_so_and_is_built",
    "lease": "workflow/test_waits.py::test_status_show_and_reports_say_who_is_waited_for",
    "lock": "workflow/test_waits.py::test_status_show_and_reports_say_who_is_waited_for",
    "session.predecessor": "workflow/test_waits.py::"
    "test_a_successor_names_the_sessions_of_its_predecessor_that_do_not_end",
    "slot.create": "workflow/test_waits.py::"
    "test_a_slot_and_a_first_snapshot_name_the_open_transactions",
    "slot.drop": "workflow/test_waits.py::"
    "test_a_slot_that_is_to_go_names_the_reader_that_does_not_end",
    "snapshot.settle": "workflow/test_waits.py::"
    "test_a_snapshot_names_the_transaction_that_it_shows_as_ended",
    "stream.position": "workflow/test_waits.py::test_status_show_and_reports_say_who_is_waited_for",
    "table.lock": "workflow/test_waits.py::test_a_table_that_is_to_go_names_who_reads_it",
    "transactions.older": "workflow/test_waits.py::"
    "test_a_slot_and_a_first_snapshot_name_the_open_transactions",
    "vdiff.exact": "workflow/test_waits.py::"
    "test_a_vdiff_names_the_one_before_it_and_the_stream_that_is_behind",
    "vdiff.turn": "workflow/test_waits.py::"
    "test_a_vdiff_names_the_one_before_it_and_the_stream_that_is_behind",
    "writers.drain": "workflow/test_waits.py::test_a_drain_names_the_writers_behind_the_fence",
    "writers.open": "workflow/test_waits.py::test_status_show_and_reports_say_who_is_waited_for",
}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts_in(node: ast.AST) -> set[str]:
    found = (child.value for child in ast.walk(node) if isinstance(child, ast.Constant))
    return {value for value in found if isinstance(value, str)}


def declared() -> set[str]:
    """The names in all calls of ``waits.declare``, whichever module they are in."""
    return {
        call.args[0].value
        for path in (ROOT / "src").rglob("*.py")
        for call in ast.walk(tree_of(path))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "waits.declare"
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


def test_every_declared_wait_is_met_by_a_test() -> None:
    """Situation 14: who adds a wait names the test that meets it."""
    assert declared() == set(MET_BY)
    for wait, where in MET_BY.items():
        file, _, name = where.partition("::")
        functions = {
            node.name: node
            for node in tree_of(ROOT / "tests" / file).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, where
        assert wait in texts_in(functions[name]), f"{where} does not look for {wait}"
