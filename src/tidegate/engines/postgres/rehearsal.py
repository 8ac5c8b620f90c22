"""Tries at a target every statement that a creation will run there, in a transaction rolled back.

Decides what cannot be made, and why, by making it: rights that are read from the catalogue are
never all of them (who may install an extension, which role an owner may become, what an event
trigger forbids). All statements are tried, not only those up to the first that fails; what fails
only because something else did is left out. Nothing stays: no table, no extension, no schema.

Statements are sent in batches, each behind a savepoint; a batch that fails is run again item by
item, and an item that fails statement by statement, so that the finding names the one. What comes
after the rows (indexes, constraints, triggers) is rolled back a few tables at a time, which gives
its locks back; unique indexes that foreign keys refer to stay until the end, because the foreign
keys of any table may need them. The whole is bounded in time; what was not reached is said.

At a source nothing is tried, with one exception: where event triggers run, they are shown what a
creation makes, on objects of our own, since nobody can read what their functions would say.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import batched, chain
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.failures import FailurePhase, Treatment, treatment_of
from tidegate.engines.postgres import event_triggers, fence, publication, schema_make, script
from tidegate.engines.postgres.attempts import Attempt, batches, first_line, named, runs
from tidegate.engines.postgres.catalog import read_tables
from tidegate.engines.postgres.schema_owners import new_owner
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.sqlstates import kind_of
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.event_triggers import EventTrigger
    from tidegate.engines.postgres.schema_copy import SchemaPlan
    from tidegate.topology.names import TableName

LOCK_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 20.0
REHEARSAL_MAX_S: Final = 120.0
TABLES_A_BATCH: Final = 20
#: A trigger, as the fence's are made.
_TRIGGER: Final = """
CREATE TABLE _tidegate.trial (id int);
CREATE FUNCTION _tidegate.trial() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER _tidegate_trial BEFORE INSERT ON _tidegate.trial
  FOR EACH ROW EXECUTE FUNCTION _tidegate.trial();
ALTER TABLE _tidegate.trial ENABLE ALWAYS TRIGGER _tidegate_trial
"""
REFUSED_MAX: Final = 100
"""More findings than anybody reads; the rest is counted."""

#: What a statement fails with when something before it failed.
_CONSEQUENCES: Final = frozenset(
    {"3F000", "42704", "42703", "42883", "42P01", "2F003", "42P17", "42830"}
)


@dataclass(frozen=True)
class Refused:
    """A statement that the target refused.

    Attributes:
        what: the object that was to be made.
        statement: the statement, on one line, cut where it is long.
        owner: the role that was to own the object, where giving it away is what failed.
    """

    what: str
    statement: str
    message: str
    hint: str = ""
    sqlstate: str = ""
    owner: str | None = None


@dataclass(frozen=True)
class Rehearsal:
    """How a rehearsal went.

    Attributes:
        refused: what cannot be made, in the order in which it would be.
        untried: what was not tried, and why.
        made: the tables as they came out where event triggers run, which may alter them.
        event_triggers: these triggers.
    """

    refused: tuple[Refused, ...] = ()
    untried: tuple[str, ...] = ()
    made: Mapping[TableName, Table] = field(default_factory=dict)
    event_triggers: tuple[str, ...] = ()


def rehearse(
    target: Connection[TupleRow],
    plan: SchemaPlan,
    *,
    workflow_uuid: str | None = None,
    workflow: str = "",
    timeout_s: float = REHEARSAL_MAX_S,
) -> Rehearsal:
    """Make everything of a plan and take it back.

    Args:
        target: a session in autocommit.
        plan: what a creation would make.
        workflow_uuid: of the workflow that would be made; None: only the schema is, all at once.
        workflow: its name.
        timeout_s: seconds; afterwards what is left is not tried.
    """
    trial = _Trial(target, time.monotonic() + timeout_s)
    made: Mapping[TableName, Table] = {}
    triggers: list[EventTrigger] = []
    try:
        with target.transaction(force_rollback=True):
            target.execute(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT_S * 1000)}")
            target.execute(f"SET LOCAL statement_timeout = {round(STATEMENT_TIMEOUT_S * 1000)}")
            target.execute("SET LOCAL check_function_bodies = off")
            target.execute("SET LOCAL client_min_messages = warning")
            if workflow_uuid is not None:
                trial.act("schema _tidegate", lambda: sidecar.install(target))
            for attempt in schema_make.support_attempts(target, plan):
                trial.all([attempt])
            trial.all([named(ddl) for ddl in (*plan.pre_data, *plan.keys)])
            for attempt in schema_make.late_attempts(target, plan):
                trial.all([attempt])
            if workflow_uuid is None:
                trial.all([named(ddl) for _, ddl in (*plan.after_copy, *plan.after_catchup)])
            else:
                if not (trial.refused or trial.untried):
                    triggers = event_triggers.enabled(target, ["CREATE TABLE", "ALTER TABLE"])
                    made = read_tables(target, plan.tables) if triggers else {}
                _around_rows(trial, target, plan, workflow_uuid, workflow)
                _after_rows(trial, plan)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if not target.broken and not target.closed:
            raise
        # An extension that must be preloaded may end the session that creates it.
        trial.refuse(trial.trying, "", error)
    names = tuple(trigger.name for trigger in triggers)
    return Rehearsal(tuple(trial.refused), tuple(trial.untried), made, names)


def rehearse_source(source: Connection[TupleRow]) -> Rehearsal:
    """Show the event triggers of a source what a creation makes there, and take it back.

    No table of others is touched: the publication has no table, the trigger is on one of ours.

    Args:
        source: a session in autocommit.
    """
    trial = _Trial(source, time.monotonic() + REHEARSAL_MAX_S)
    with source.transaction(force_rollback=True):
        source.execute(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT_S * 1000)}")
        source.execute(f"SET LOCAL statement_timeout = {round(STATEMENT_TIMEOUT_S * 1000)}")
        source.execute("SET LOCAL client_min_messages = warning")
        trial.act("schema _tidegate", lambda: sidecar.install(source))
        trial.act("a publication", lambda: source.execute("CREATE PUBLICATION _tidegate_trial"))
        trial.act("a trigger", lambda: source.execute(_TRIGGER))
    return Rehearsal(tuple(trial.refused), tuple(trial.untried))


def _around_rows(
    trial: _Trial,
    target: Connection[TupleRow],
    plan: SchemaPlan,
    workflow_uuid: str,
    workflow: str,
) -> None:
    """What a workflow makes at its new tables."""
    if trial.refused or trial.untried:
        return
    trial.act(
        "the fence of the new tables",
        lambda: fence.arm_new(target, workflow_uuid, "target", plan.tables, workflow=workflow),
    )
    name = f"tidegate_{workflow_uuid.replace('-', '')[:12]}_rev"
    trial.act(
        "the publication of the way back",
        lambda: publication.create(target, name, plan.tables),
    )


def _after_rows(trial: _Trial, plan: SchemaPlan) -> None:
    referenced, others = (
        plan.after_catchup[: plan.referenced],
        plan.after_catchup[plan.referenced :],
    )
    trial.all([named(ddl) for _, ddl in referenced])
    by_table: dict[str, list[Attempt]] = {}
    for table, ddl in (*plan.after_copy, *others):
        by_table.setdefault(str(table), []).append(named(ddl))
    for few in batched(by_table.values(), TABLES_A_BATCH, strict=False):
        trial.all(list(chain.from_iterable(few)), keep=False)


class _Trial:
    """Runs statements and remembers which were refused."""

    def __init__(self, target: Connection[TupleRow], deadline: float) -> None:
        self._target = target
        self._deadline = deadline
        self.trying = "a session"
        self.refused: list[Refused] = []
        self.untried: list[str] = []

    def act(self, what: str, action: Callable[[], object]) -> None:
        """Do one thing behind a savepoint."""
        self.trying = what
        try:
            with self._target.transaction():
                action()
        except psycopg.Error as error:
            if self._target.broken or self._target.closed:
                raise
            self.refuse(what, "", error)
        except TidegateError as error:
            self.refused.append(Refused(what, "", error.message, error.next_step))

    def all(self, attempts: Sequence[Attempt], *, keep: bool = True) -> None:
        """Run statements in batches; with ``keep`` false, take them back at the end."""
        if keep:
            for few in batches(attempts):
                self._batch(few)
            return
        with self._target.transaction(force_rollback=True):
            self._batch(attempts)

    def refuse(self, what: str, statement: str, error: psycopg.Error) -> None:
        """Note a refusal, unless it follows from an earlier one."""
        sqlstate = error.sqlstate or ""
        treatment = treatment_of(kind_of(sqlstate), FailurePhase.PREFLIGHT)
        if treatment is Treatment.PASSING:
            self.untried.append(f"{what}: {first_line(error)}")
            return
        if sqlstate in _CONSEQUENCES and (self.refused or self.untried):
            return
        trigger = event_triggers.behind(self._target, error)
        hint = error.diag.message_hint or error.diag.message_detail or ""
        self.refused.append(
            Refused(
                what=what,
                statement=" ".join(statement.split())[:300],
                message=f"event trigger {trigger.name} refuses it: {first_line(error)}"
                if trigger
                else first_line(error),
                hint=trigger.way_on(self._target) if trigger else hint,
                sqlstate=sqlstate,
                owner=new_owner(statement) if sqlstate == "42501" and statement else None,
            )
        )

    def _batch(self, attempts: Sequence[Attempt]) -> None:
        if time.monotonic() > self._deadline or len(self.refused) >= REFUSED_MAX:
            self.untried += [attempt.what for attempt in attempts]
            return
        self.trying = attempts[0].what
        if len(attempts) > 1 and runs(self._target, "\n".join(each.ddl for each in attempts)):
            return
        for attempt in attempts:
            self._one(attempt)

    def _one(self, attempt: Attempt) -> None:
        self.trying = attempt.what
        if runs(self._target, attempt.ddl):
            return
        for statement in _statements(attempt.ddl):
            try:
                with self._target.transaction():
                    self._target.execute(sql.SQL(statement))
            except psycopg.Error as error:
                if self._target.broken or self._target.closed:
                    raise
                self.refuse(attempt.what, statement, error)


def _statements(ddl: str) -> list[str]:
    try:
        return [statement.text for statement in script.statements(ddl)]
    except script.UnreadableError:
        return [ddl]
