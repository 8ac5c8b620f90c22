"""A trial of a run: what is pending runs in a copy of one tenant, which is dropped again.

Decides what cannot be tried: statements that reach beyond the copy, and versions whose record
cannot be copied. The copy is a scratch database on the tenant's server, with the tenant's schema
under its own name, so that every kind of source runs in it as it would in the tenant, which is only
read. It has structure and no rows: a migration that fails because of rows, or takes long because of
them, does neither in the copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from tidegate.bootstrap.tenants.drift import Difference, Kind, compare
from tidegate.bootstrap.tenants.ground import endpoint_of, job_of
from tidegate.bootstrap.tenants.hands import PURPOSE, SqlHand
from tidegate.bootstrap.tenants.outcomes import Outcome, Result
from tidegate.engines.postgres import script as sql
from tidegate.engines.postgres import tenant_catalog, tenant_scratch, tenants
from tidegate.engines.postgres.beyond_statements import reaches_beyond
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.tenant_copy import copy_structure
from tidegate.errors import FailedPreconditionError, InvalidArgumentError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.bootstrap.tenants.folder import Folder
    from tidegate.bootstrap.tenants.hands import Hand, Job, Stand
    from tidegate.bootstrap.tenants.model import RunOptions, Tenant
    from tidegate.bootstrap.tenants.names import Discovered
    from tidegate.bootstrap.tenants.planned import Planned
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.bootstrap.tenants.versions import Version
    from tidegate.topology.model import Snapshot

type Objects = Mapping[tuple[str, str], str]

_WORDS: Final = {
    Kind.MISSING: "dropped",
    Kind.UNEXPECTED: "created",
    Kind.DIFFERENT: "changed",
}


@dataclass(frozen=True, slots=True)
class TriedStep:
    """What ran together: its versions, how long it took, and what it changed."""

    versions: tuple[str, ...]
    took_ms: float
    changes: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "versions": list(self.versions),
            "took_ms": round(self.took_ms, 1),
            "changes": [f"{_WORDS[each.kind]} {each.object}" for each in self.changes],
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a trial."""

    source: str
    target: str
    tenant: str
    steps: tuple[TriedStep, ...] = ()
    failure: str = ""
    """Why it did not reach the target; empty when it did."""
    missed: tuple[str, ...] = ()
    """What of the tenant's structure could not be made in the copy."""
    copy_ms: float = 0.0
    left_out: tuple[Discovered, ...] = ()
    """What was looked for first, and could not be registered."""

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "trial": True,
            "source": self.source,
            "target": self.target,
            "tenant": self.tenant or None,
            "steps": [each.to_json() for each in self.steps],
            "failure": self.failure or None,
            "missed": list(self.missed),
            "copy_ms": round(self.copy_ms, 1),
            "left_out": [each.to_json() for each in self.left_out],
        }


class _Observed(SqlHand):
    """Runs files as ever, and tells of each group that was committed."""

    def __init__(
        self,
        opened: Opened,
        folder: Folder,
        options: RunOptions,
        observe: Callable[[Iterable[str], float], None],
    ) -> None:
        super().__init__(folder, opened.source, options, opened.others)
        self._observe = observe

    def _run(
        self,
        connection: Connection[TupleRow],
        job: Job,
        group: tuple[Version, ...],
        stand: Stand,
    ) -> bool:
        started = time.monotonic()
        has_run = super()._run(connection, job, group, stand)
        self._observe([version.id for version in group], (time.monotonic() - started) * 1000)
        return has_run


def try_out(planned: Planned, opened: Opened, snapshot: Snapshot) -> Trial:
    """Try a planned run in a copy of its first tenant.

    Args:
        planned: the run.
        opened: its source.
        snapshot: of the topology.

    Raises:
        InvalidArgumentError: the run goes back.
        FailedPreconditionError: something cannot be tried, or the copy cannot be made.
        TidegateError: the server cannot be reached, or the structure cannot be read.
    """
    run = planned.run
    if run.options.downgrade:
        raise InvalidArgumentError(
            "a trial goes forward only", next_step="leave --downgrade away, or --trial"
        )
    if not planned.items:
        return Trial(run.source.name, run.target, "", left_out=planned.left_out)
    item = planned.items[0]
    if opened.folder is not None:
        ids = opened.chain.upto(run.target)
        have = ids.index(item.from_version) + 1 if item.from_version in ids else 0
        pending = [each for n, each in enumerate(ids) if n >= have or each in planned.late]
        refuse_what_reaches_beyond(
            opened.folder, [*pending, *planned.repeats.get(item.tenant_id, ())]
        )
    tenant = next(each for each in planned.tenants if each.id == item.tenant_id)
    job = job_of(snapshot, tenant, run.target)
    if isinstance(job, Outcome):
        raise FailedPreconditionError(job.message, next_step=f"tidegate tenant show {item.name}")
    try:
        trial = Trial(run.source.name, run.target, item.name, left_out=planned.left_out)
        return _in_copy(trial, opened, run.options, job, has_versions=bool(item.from_version))
    except psycopg.Error as error:
        raise FailedPreconditionError(
            f"the copy of tenant {item.name} cannot be made: {error.diag.message_primary or error}",
            next_step="give the tablet's role CREATEDB, and the right to read the tenant",
        ) from None


def refuse_what_reaches_beyond(folder: Folder, versions: Iterable[str]) -> None:
    """Refuse files whose statements would change more than the copy.

    Raises:
        FailedPreconditionError: naming each.
    """
    found = []
    for version in versions:
        file = folder.of(version)
        for statement in sql.cut(file.text).statements:
            words = reaches_beyond(statement)
            if words is not None:
                found.append(f"{file.file} line {statement.line}: {words}")
    if found:
        raise FailedPreconditionError(
            f"{'; '.join(found[:10])}: this reaches beyond a copy of the tenant, so it cannot be"
            " tried; nothing was run",
            next_step="try the versions before it with --to, or move it out of the migrations",
            statements=found[:10],
        )


def _in_copy(
    trial: Trial, opened: Opened, options: RunOptions, job: Job, *, has_versions: bool
) -> Trial:
    place, source = job.place, opened.source
    started = time.monotonic()
    with tenant_scratch.scratch_database(
        job.endpoint,
        place.database,
        is_schema=bool(place.schema),
        shared=source.also_search if place.schema else (),
    ) as (database, session):
        version_table = (place.schema or tenants.DEFAULT_SCHEMA, source.records_in)
        copied = copy_structure(
            job.endpoint,
            place.database,
            session,
            schema=place.schema,
            version_table=version_table,
            role=source.role,
        )
        if has_versions and not copied.has_versions:
            raise FailedPreconditionError(
                f"tenant {job.name} cannot be tried: its versions are not in the table"
                f" {'.'.join(version_table)}, so what is pending in a copy is unknown",
                next_step="try it in a tenant without versions, or by hand",
            )
        copy_ms = (time.monotonic() - started) * 1000
        trial = replace(trial, missed=copied.missed, copy_ms=copy_ms)
        observer = _Observer(session, place.schema, source.records_in)
        there = replace(job, place=replace(place, database=database))
        hand: Hand
        if opened.folder is not None:
            hand = _Observed(opened, opened.folder, options, observer.note)
        else:
            hand = opened.hand(options)
        try:
            outcome = hand.upgrade(there)
        finally:
            hand.close()
        if opened.folder is None and outcome.applied:
            observer.note(outcome.applied, outcome.took_ms)
        is_done = outcome.result is Result.DONE
        failure = "" if is_done else outcome.message or f"{place} is not there"
        return replace(trial, steps=tuple(observer.steps), failure=failure)


class _Observer:
    """Tells what changed in the copy from one step to the next."""

    def __init__(self, session: Connection[TupleRow], schema: str, version_table: str) -> None:
        self._session = session
        self._schema = schema
        self._version_table = version_table
        self._before = self._look()
        self.steps: list[TriedStep] = []

    def _look(self) -> Objects:
        return tenant_catalog.objects(self._session, self._schema, {self._version_table})

    def note(self, versions: Iterable[str], took_ms: float) -> None:
        """What these versions changed since the last look."""
        now = self._look()
        self.steps.append(TriedStep(tuple(versions), took_ms, compare(self._before, now)))
        self._before = now


def drop_left_behind(tenants_: Iterable[Tenant], snapshot: Snapshot) -> list[str]:
    """Drop the scratch databases on the servers of tenants whose makers are gone.

    Returns:
        The shards and tablets that could not be asked.
    """
    places = {(each.place.keyspace, each.place.shard, each.place.tablet): each for each in tenants_}
    unseen = []
    for where, tenant in sorted(places.items()):
        try:
            with connect(endpoint_of(snapshot, tenant.place), purpose=PURPOSE) as connection:
                tenant_scratch.drop_left_behind(connection)
        except (TidegateError, psycopg.Error):
            unseen.append("/".join(where))
    return unseen
