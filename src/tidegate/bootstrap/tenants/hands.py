"""What upgrades one tenant after another: plain SQL in a thread of the node.

A *hand* belongs to one thread. It gets a job, brings the tenant to the target or finds out why not,
and answers with an outcome; it never raises for the sake of a tenant. This one sends SQL files over
connections that it keeps from tenant to tenant: schemas of one database share a connection, which
is made like a new one after each file.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import psycopg

from tidegate import steps
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result, cause_of, refusal
from tidegate.bootstrap.tenants.repeatables import last_version, repeats, split
from tidegate.bootstrap.tenants.versions import Standing, groups, look_at
from tidegate.bootstrap.tenants.worker.tidegate_records import Asker, Row, own
from tidegate.engines.postgres import holders, tenant_alone, tenant_places, tenants
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.placeholders import PlaceholderError
from tidegate.engines.postgres.sqlstates import kind_of
from tidegate.engines.postgres.tenant_records import Recorded
from tidegate.errors import AuthenticationError, ConnectError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.bootstrap.tenants.folder import Folder, Script
    from tidegate.bootstrap.tenants.model import Place, RunOptions, Source
    from tidegate.bootstrap.tenants.versions import Look, Version
    from tidegate.topology.connections import Endpoint

CONNECTIONS_MAX: Final = 4
"""Of one hand; the one unused for longest is closed for another."""
PURPOSE: Final = "tenants"
_UNSAFE_LABEL: Final = "55P04"
"""A label of an enum was used in the transaction that adds it."""

COMMITTED = steps.declare(
    "tenant.committed",
    runs_in="node",
    plan="tenant",
    description="a tenant's transaction is committed; the cluster database does not know yet",
)


@dataclass(frozen=True, slots=True)
class Job:
    """One tenant to be brought to a version."""

    tenant_id: str
    name: str
    place: Place
    endpoint: Endpoint
    target: str
    stored: tuple[str, ...] = ()
    """The sources of which the cluster database has a version for it."""
    way: str = "upgrade"
    """What a worker is asked to do: ``upgrade``, ``baseline`` or ``stamp``."""
    dry_run: bool = False
    """For a worker: say what would be recorded, change nothing."""


def values_of(source: Source, job: Job) -> dict[str, str]:
    """What the variables of SQL files stand for in one tenant."""
    values = dict(source.variables)
    values |= {"schema": job.place.schema or tenants.DEFAULT_SCHEMA, "tenant": job.name}
    return values | ({"role": source.role} if source.role else {})


class Hand(Protocol):
    """Upgrades one tenant after another."""

    def upgrade(self, job: Job) -> Outcome:
        """Bring a tenant to the target; safe to repeat after anything."""

    def close(self) -> None:
        """Give up what is held open."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How a tenant stands, and what its version table has to be rid of before something runs."""

    look: Look
    refused: str
    """Why it must not be upgraded; empty when it may."""
    marked: frozenset[str]
    """Versions that were begun outside a transaction and are not complete."""
    repeated: frozenset[str]
    """Repeatable files that the tenant has, in whichever wording."""


class SqlHand:
    """Runs the files of a folder.

    Args:
        folder: as it was read.
        source: it belongs to.
        options: of the run.
        others: sources that keep their versions in the same table.
    """

    def __init__(
        self, folder: Folder, source: Source, options: RunOptions, others: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self._chain = folder.chain
        self._hashes = {version.id: version.sha256 for version in self._chain.versions}
        self._names = {version.id: version.name for version in self._chain.versions}
        self._others = tuple(others)
        self._source = source
        self._options = options
        self._is_single = options.single_transaction or source.single_transaction
        self._is_traced = False
        """Whether the session has what only its end takes away."""
        self._open: OrderedDict[tuple[Endpoint, str], Connection[TupleRow]] = OrderedDict()

    def close(self) -> None:
        """Close all connections."""
        while self._open:
            self._open.popitem()[1].close()

    def upgrade(self, job: Job) -> Outcome:
        """Bring a tenant to the target."""
        started = time.monotonic()
        try:
            outcome = self._upgrade(job)
        except AuthenticationError as error:
            outcome = Outcome.failed(Cause.ACCESS, error.message)
        except ConnectError as error:
            outcome = self._unconnected(job, error)
        except TidegateError as error:
            outcome = Outcome.failed(Cause.ACCESS, error.message)
        return replace(outcome, took_ms=(time.monotonic() - started) * 1000)

    def _upgrade(self, job: Job) -> Outcome:
        connection = self._connection(job)
        applied: list[str] = []
        first: str | None = None
        try:
            while True:
                stand = self._look(connection, job)
                look = stand.look
                first = look.current if first is None else first
                if stand.refused:
                    tenants.rollback(connection)
                    return Outcome.failed(Cause.VERSION, stand.refused)
                if look.standing is Standing.AT_TARGET:
                    tenants.commit(connection)
                    break
                group = groups(look.pending, single=self._is_single)[0]
                if self._run(connection, job, group, stand):
                    steps.reached(COMMITTED)
                    applied += [version.id for version in group]
                if len(group) == len(look.pending):
                    break
                self._clean(job, connection)
                connection = self._connection(job)
            return Outcome(Result.DONE, first, job.target, tuple(applied))
        except tenants.TenantMissingError:
            return Outcome(Result.MISSING, message=f"{job.place} is not there")
        except (psycopg.Error, tenants.ScriptError) as error:
            failed = self._failed(connection, job, error)
            if failed.result is Result.MISSING:
                return failed
            now = last_version(applied) or first or ""
            return replace(failed, from_version=first or "", to_version=now, applied=tuple(applied))
        finally:
            self._clean(job, connection)

    def _look(self, connection: Connection[TupleRow], job: Job) -> Stand:
        """How the tenant stands, in its transaction."""
        settings = self._settings(job)
        rows = tenants.begin(connection, settings)
        asker = Asker(self._source.name, self._hashes, self._names, self._others, job.stored)
        found = own([Row(*row) for row in rows], asker)
        complete, repeated = split(row for row in found.rows if row.begun is None)
        look = look_at(
            self._chain,
            [(row.version, row.sha256) for row in complete],
            job.target,
            out_of_order=self._options.out_of_order,
        )
        refused = found.refusal or refusal(look, job.target) or ""
        again = repeats(self._chain, repeated, job.target)
        if found.adopted and not refused:
            tenants.adopt(connection, settings, found.adopted)
        if again.gone and not refused:
            tenants.forget(connection, settings, again.gone)
        marked = frozenset(row.version for row in found.rows if row.begun is not None)
        return Stand(again.after(look), refused, marked, frozenset(repeated))

    def _run(
        self,
        connection: Connection[TupleRow],
        job: Job,
        group: tuple[Version, ...],
        stand: Stand,
    ) -> bool:
        """Run versions and record them; false when another session was quicker."""
        settings = self._settings(job)
        recorded = [Recorded(v.id, v.name, v.sha256) for v in group]
        values = values_of(self._source, job)
        try:
            scripts = [self._folder.of(version.id).bound(values) for version in group]
        except PlaceholderError as error:
            tenants.rollback(connection)
            raise tenants.ScriptError("22023", str(error), None) from None
        self._is_traced |= any(tenants.leaves_traces(script.text) for script in scripts)
        if not group[0].is_transactional:
            return self._run_alone(connection, job, scripts[0], recorded[0])
        # Repeated ones, and those that ran without a transaction before they were edited.
        former = [v.id for v in group if v.id in stand.repeated or v.id in stand.marked]
        if former:
            tenants.forget(connection, settings, former)
        if any(script.has_rows for script in scripts):
            self._run_with_rows(connection, settings, scripts, recorded)
            return True
        try:
            tenants.commit_script(connection, settings, [s.text for s in scripts], recorded)
        except tenants.ScriptError as error:
            where = scripts[0].file
            if error.line is not None:
                where = _where([(s.file, s.text.count("\n") + 2) for s in scripts], error.line)
            elif len(scripts) > 1:
                where = f"{scripts[0].file} to {scripts[-1].file}"
            raise _in_file(error, where) from None
        return True

    def _run_alone(
        self, connection: Connection[TupleRow], job: Job, script: Script, recorded: Recorded
    ) -> bool:
        """Run a file outside a transaction, under the tenant's lock in a session of its own."""
        tenants.commit(connection)
        tenants.clean(connection)
        with contextlib.closing(
            connect(job.endpoint, purpose=PURPOSE, dbname=job.place.database or None)
        ) as keeper:
            work = tenant_alone.Alone(self._settings(job), script.pieces, recorded)
            try:
                return tenant_alone.run(connection, keeper, work)
            except tenants.ScriptError as error:
                line = "" if error.line is None else f" line {error.line}"
                raise _in_file(error, f"{script.file}{line}") from None

    def _run_with_rows(
        self,
        connection: Connection[TupleRow],
        settings: tenants.TenantSettings,
        scripts: Sequence[Script],
        recorded: Sequence[Recorded],
    ) -> None:
        for script in scripts:
            if script is not scripts[0]:
                tenants.make_as_new(connection, settings)
            try:
                tenants.run_pieces(connection, script.pieces)
            except tenants.ScriptError as error:
                line = "" if error.line is None else f" line {error.line}"
                raise _in_file(error, f"{script.file}{line}") from None
        tenants.commit_script(connection, settings, [""], recorded)

    def _settings(self, job: Job) -> tenants.TenantSettings:
        return tenants.TenantSettings(
            schema=job.place.schema,
            also_search=self._source.also_search,
            role=self._source.role,
            source=self._source.name,
            version_table=self._source.version_table,
            lock_timeout_s=self._options.lock_timeout_s,
            statement_timeout_s=self._options.statement_timeout_s,
        )

    def _connection(self, job: Job) -> Connection[TupleRow]:
        key = (job.endpoint, job.place.database)
        found = self._open.pop(key, None)
        if found is None:
            while len(self._open) >= CONNECTIONS_MAX:
                self._open.popitem(last=False)[1].close()
            found = connect(job.endpoint, purpose=PURPOSE, dbname=job.place.database or None)
            tenants.clean(found)  # the role's own settings, as its applications have them
        self._open[key] = found
        return found

    def _clean(self, job: Job, connection: Connection[TupleRow]) -> None:
        """Make the session like a new one, or give it up."""
        try:
            if not (connection.closed or connection.broken or self._is_traced):
                tenants.clean(connection)
                return
        except psycopg.Error:
            pass
        self._is_traced = False
        connection.close()
        self._open.pop((job.endpoint, job.place.database), None)

    def _failed(
        self,
        connection: Connection[TupleRow],
        job: Job,
        error: psycopg.Error | tenants.ScriptError,
    ) -> Outcome:
        message = error.message if isinstance(error, tenants.ScriptError) else _text(error)
        if connection.closed or connection.broken:
            # Whether a COMMIT arrived is unknown; the next look finds out.
            return Outcome.failed(Cause.CONNECTION, message)
        cause = cause_of(kind_of(error.sqlstate))
        with contextlib.suppress(psycopg.Error):
            tenants.rollback(connection)
            if not tenant_places.has_schema(connection, self._settings(job).version_schema):
                return Outcome(Result.MISSING, message=f"{job.place} is not there")
            if cause is Cause.LOCK:
                found = tenants.lock_holders(connection, self._settings(job))
                message += f"; locks are held by {holders.describe(found)}"
        return Outcome.failed(cause, message)

    def _unconnected(self, job: Job, error: ConnectError) -> Outcome:
        """No connection: because the database is not there, or for now."""
        if job.place.database:
            with (
                contextlib.suppress(TidegateError, psycopg.Error),
                connect(job.endpoint, purpose=PURPOSE) as connection,
            ):
                if not tenant_places.has_database(connection, job.place.database):
                    return Outcome(Result.MISSING, message=f"{job.place} is not there")
        return Outcome.failed(Cause.CONNECTION, error.message)


def _in_file(error: tenants.ScriptError, where: str) -> tenants.ScriptError:
    """The same error, its place said in words."""
    message = f"{where}: {error.message}"
    if error.sqlstate == _UNSAFE_LABEL:
        message += "; use a new label of an enum in a later file than the one that adds it"
    return tenants.ScriptError(error.sqlstate, message, None)


def _text(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


def _where(files: list[tuple[str, int]], line: int) -> str:
    """The file and line of a line of the joined script."""
    for file, lines in files:
        if line <= lines:
            return f"{file} line {line}"
        line -= lines
    return files[-1][0]
