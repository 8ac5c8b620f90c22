"""What PostgreSQL's errors mean: one table, total over kinds of failure and phases of the work."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tidegate.bootstrap.tenants.outcomes import cause_of
from tidegate.engines import failures
from tidegate.engines.failures import EXCEPTIONS, FailureKind, FailurePhase, Treatment
from tidegate.engines.postgres import sqlstates
from tidegate.errors import (
    ConnectError,
    CopyError,
    DatabaseFaultError,
    DatabaseUnableError,
    DivergenceError,
    FailedPreconditionError,
    StreamFailedError,
    WaitTimeoutError,
)

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tidegate"

#: Every code that the driver has a class for.
KNOWN: Final = sorted(
    {
        each.sqlstate
        for each in vars(psycopg.errors).values()
        if isinstance(each, type) and issubclass(each, psycopg.Error) and each.sqlstate
    }
)


def error_of(sqlstate: str, said: str = "said") -> psycopg.Error:
    try:
        made = psycopg.errors.lookup(sqlstate)
    except KeyError:
        made = psycopg.errors.get_base_exception(sqlstate)
    return made(said, info={psycopg.pq.DiagnosticField.SQLSTATE: sqlstate.encode()})


def test_each_code_that_postgresql_has_is_listed() -> None:
    assert len(KNOWN) > 200
    assert [code for code in KNOWN if sqlstates.kind_of(code) is FailureKind.UNLISTED] == []


def test_no_entry_repeats_its_class() -> None:
    for code, kind in sqlstates.CODES.items():
        assert sqlstates.CLASSES.get(code[:2]) is not kind, code


@pytest.mark.parametrize("phase", FailurePhase)
def test_each_kind_has_a_rule_in_each_phase(phase: FailurePhase) -> None:
    for kind in FailureKind:
        rule = failures.rule(kind, phase)
        assert rule.treatment is failures.treatment_of(kind, phase)
        assert rule.error.retryable == rule.treatment.ends_by_itself, kind
        told = rule.message.format(at=" at shop/0", said="disk (100%) {full}")
        assert kind in told
        assert told.endswith("disk (100%) {full}")
        assert len(rule.next_step) > 20


def test_phases_agree_but_where_an_exception_says_why() -> None:
    for kind in FailureKind:
        found = {
            failures.treatment_of(kind, phase)
            for phase in FailurePhase
            if (kind, phase) not in EXCEPTIONS
        }
        assert len(found) == 1, kind
        for phase in FailurePhase:
            if (kind, phase) in EXCEPTIONS:
                treatment, why = EXCEPTIONS[kind, phase]
                assert treatment not in found, (kind, phase)
                assert why


@pytest.mark.parametrize("phase", FailurePhase)
def test_a_code_that_is_not_listed_is_fatal_and_reported_with_its_code(phase: FailurePhase) -> None:
    told = sqlstates.failure(error_of("9Z123", "strange"), phase)
    assert not told.retryable
    assert "strange (SQLSTATE 9Z123)" in told.message
    assert told.details["sqlstate"] == "9Z123"
    assert failures.treatment_of(sqlstates.kind_of("9Z123"), phase) is Treatment.FATAL


def test_a_stream_tries_again_after_what_passes_and_after_nothing_else() -> None:
    """Connections, rollbacks, resources, locks, operators, system errors; a read-only server."""
    passing = {code for code in KNOWN if code.startswith(("08", "40", "53", "57", "58", "72"))}
    passing |= {"25006", "25P03", "25P04", "55006", "55P03"}
    for phase in (FailurePhase.STREAM, FailurePhase.COPY):
        again = {code for code in KNOWN if sqlstates.ends_by_itself(error_of(code), phase)}
        assert again == passing & set(KNOWN)


@pytest.mark.parametrize(
    ("code", "phase", "expected", "says"),
    [
        ("25006", FailurePhase.COPY, DatabaseUnableError, "takes no writes"),
        ("25006", FailurePhase.STREAM, DatabaseUnableError, "takes no writes"),
        ("25006", FailurePhase.VDIFF, DatabaseUnableError, "takes no writes"),
        ("25006", FailurePhase.WORKFLOW, DatabaseUnableError, "takes no writes"),
        ("55000", FailurePhase.COPY, CopyError, "a state that does not allow it"),
        ("55000", FailurePhase.STREAM, StreamFailedError, "a state that does not allow it"),
        ("53100", FailurePhase.VDIFF, DatabaseUnableError, "disk is full"),
        ("53100", FailurePhase.WORKFLOW, DatabaseUnableError, "disk is full"),
        ("55P03", FailurePhase.VDIFF, WaitTimeoutError, "a lock was not to be had in time"),
        ("55P03", FailurePhase.WORKFLOW, WaitTimeoutError, "a lock was not to be had in time"),
        ("57P01", FailurePhase.WORKFLOW, ConnectError, "the connection was lost"),
        ("23505", FailurePhase.STREAM, DivergenceError, "breaks a constraint"),
        ("23505", FailurePhase.COPY, CopyError, "breaks a constraint"),
        ("42P01", FailurePhase.VDIFF, FailedPreconditionError, "not as expected"),
        ("XX000", FailurePhase.WORKFLOW, DatabaseFaultError, "should not occur"),
    ],
)
def test_an_error_has_one_meaning(
    code: str, phase: FailurePhase, expected: type[Exception], says: str
) -> None:
    told = sqlstates.failure(error_of(code), phase, "shop/0")
    assert type(told) is expected
    assert says in told.message
    assert ("at shop/0" in told.message) == (phase is FailurePhase.WORKFLOW)


def test_a_broken_connection_passes_and_a_wrong_call_does_not() -> None:
    assert sqlstates.failure_of(psycopg.OperationalError("cut")) is FailureKind.CONNECTION
    assert sqlstates.failure_of(psycopg.InterfaceError("closed")) is FailureKind.INTERNAL
    assert sqlstates.failure_of(psycopg.ProgrammingError("bad")) is FailureKind.INTERNAL


def test_a_password_is_not_told() -> None:
    error = psycopg.OperationalError("connection to postgresql://u:secret@h/d failed")
    assert "secret" not in sqlstates.failure(error, FailurePhase.COPY).message


def test_a_tenant_is_tried_again_after_what_passes() -> None:
    for kind in FailureKind:
        treatment = failures.treatment_of(kind, FailurePhase.TENANT_UPGRADE)
        assert cause_of(kind).passes == treatment.ends_by_itself, kind


#: Modules that name a code because it answers a question of theirs, or raise it. It only shrinks.
ANSWERS = {
    "bootstrap/stored.py",
    "bootstrap/tenants/hands.py",
    "bootstrap/tenants/undoing.py",
    "bootstrap/tenants/worker/tidegate_session.py",
    "engines/postgres/fence_triggers.py",
    "engines/postgres/rehearsal.py",
    "engines/postgres/slots.py",
    "engines/postgres/split.py",
    "engines/postgres/tenant_alone.py",
    "engines/postgres/tenants.py",
    "engines/postgres/checks/cannot_be_made.py",
}

#: Those have databases of their own, the cluster's and the application's.
APART = ("cluster/stores/", "router/", "engines/postgres/sqlstates.py")


def test_no_other_module_judges_codes() -> None:
    codes = {*KNOWN, *sqlstates.CODES}
    found = set()
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(APART):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            values = {n.value for n in nodes if isinstance(n, ast.Constant)}
            found |= {name} if values & codes else set()
    assert found == ANSWERS
