"""Carries baseline, stamp and repair out, one tenant after another; nothing is migrated.

Decides which tenants, and what the answer says of each. A tenant's record is changed in one
transaction under the tenant's lock, and the stored version after it. Sources with version tables of
their own (Alembic, Django) change them themselves, in a worker. Each verb may be repeated: what is
as it should be is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import psycopg

from tidegate.bootstrap.tenants.amendments import Amendment, Verb, amend
from tidegate.bootstrap.tenants.ground import job_of
from tidegate.bootstrap.tenants.hands import PURPOSE
from tidegate.bootstrap.tenants.model import RunOptions
from tidegate.bootstrap.tenants.outcomes import Outcome, Result
from tidegate.bootstrap.tenants.programs import ProgramHand
from tidegate.bootstrap.tenants.repeatables import split
from tidegate.bootstrap.tenants.selection import Selection, select
from tidegate.engines.postgres import tenant_records, tenants
from tidegate.engines.postgres.connection import connect
from tidegate.errors import InvalidArgumentError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.bootstrap.tenants.hands import Job
    from tidegate.bootstrap.tenants.model import Tenant
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.bootstrap.tenants.versions import Version
    from tidegate.topology.store import TopologyStore


@dataclass(frozen=True)
class AmendRequest:
    """What ``tidegate tenant baseline``, ``stamp`` and ``repair`` ask for."""

    verb: Verb
    source: str | None = None
    version: str = ""
    """For baseline and stamp: head, or a version of the source."""
    selection: Selection = field(default_factory=Selection)
    lock_timeout_s: float = 5.0
    dry_run: bool = False


@dataclass(frozen=True)
class Amended:
    """What became of one tenant."""

    tenant: str
    amendment: Amendment
    failure: str = ""

    @property
    def reason(self) -> str:
        """Why it was left as it was; empty when it was not."""
        return self.failure or self.amendment.refusal

    @property
    def is_changed(self) -> bool:
        """Whether its record was changed, or would be."""
        return not self.reason and self.amendment.changes

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "tenant": self.tenant,
            "version": self.amendment.current,
            "added": [each.id for each in self.amendment.add],
            "rewritten": [each.id for each in self.amendment.rewrite],
            "removed": list(self.amendment.remove),
            "unknown": list(self.amendment.unknown),
            "failure": self.reason or None,
        }


class Amender:
    """Changes the records of tenants of one cluster."""

    def __init__(self, store: TenantStore, topology: TopologyStore) -> None:
        self._store = store
        self._topology = topology

    def run(self, request: AmendRequest, opened: Opened) -> list[Amended]:
        """Change the records of the chosen tenants; the answer has each of them.

        Raises:
            InvalidArgumentError: the version is none, or the source has no hashes to repair.
            NotFoundError: a name names no tenant.
        """
        kind = opened.source.kind
        if request.verb is Verb.REPAIR:
            if not kind.has_version_table:
                raise InvalidArgumentError(
                    f"a source of kind {kind} records no hashes, so there is nothing to repair",
                    next_step="set the version instead: tidegate tenant stamp",
                )
            if request.version:
                raise InvalidArgumentError(
                    "a repair keeps the versions that tenants have",
                    next_step="to set a version: tidegate tenant stamp VERSION",
                )
        target = opened.target(request.version or "head")
        tenants_ = self._store.all()
        chosen = select(tenants_, request.selection, opened.source.name, opened.chain, target)
        done = self._each(chosen, request, opened, target)
        if request.verb is Verb.REPAIR and not request.dry_run:
            self._rewrite_hashes(done, opened, is_all=len(chosen) == len(tenants_))
        return done

    def _each(
        self, chosen: list[Tenant], request: AmendRequest, opened: Opened, target: str
    ) -> list[Amended]:
        snapshot = self._topology.read()
        found = []
        with _Session(request, opened) as session:
            for tenant in chosen:
                job = job_of(snapshot, tenant, target)
                if isinstance(job, Outcome):
                    found.append(Amended(tenant.name, Amendment(), job.message))
                    continue
                amended = session.amend(job)
                current, name = amended.amendment.current, opened.source.name
                is_known = bool(current) or name in tenant.versions
                if is_known and not (request.dry_run or amended.reason):
                    whole = request.verb is not Verb.REPAIR and not amended.amendment.unknown
                    # Its repeatable files are not known by this, so the next run looks at them.
                    versions = replace(opened.chain, repeatable=())
                    chain = versions if whole and current == target else None
                    self._store.store_version(tenant.id, name, current, chain)
                found.append(amended)
        return found

    def _rewrite_hashes(self, done: list[Amended], opened: Opened, *, is_all: bool) -> None:
        """From now on the files as they are count as unedited."""
        kept = {each for amended in done for each in amended.amendment.unknown}
        chain = opened.chain
        hashes = {version.id: version.sha256 for version in chain.versions}
        failed = any(each.reason for each in done)
        self._store.rewrite_recorded(
            opened.source.name, hashes, forget_others=is_all and not failed, but=kept
        )


class _Session:
    """The connections, or the worker, of one verb."""

    def __init__(self, request: AmendRequest, opened: Opened) -> None:
        self._request = request
        self._opened = opened
        self._options = RunOptions(lock_timeout_s=request.lock_timeout_s)
        self._connection: Connection[TupleRow] | None = None
        self._reached: tuple[Any, ...] = ()
        self._hand: ProgramHand | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._hand is not None:
            self._hand.close()

    def amend(self, job: Job) -> Amended:
        """Change one tenant's record."""
        if not self._opened.source.kind.has_version_table:
            return self._ask(job)
        try:
            return Amended(job.name, self._within(job))
        except tenants.TenantMissingError:
            return Amended(job.name, Amendment(), f"{job.place} is not there")
        except (tenants.ScriptError, TidegateError) as error:
            return Amended(job.name, Amendment(), error.message)
        except psycopg.Error as error:
            return Amended(job.name, Amendment(), " ".join(str(error).split()))

    def _within(self, job: Job) -> Amendment:
        source, chain = self._opened.source, self._opened.chain
        settings = tenants.TenantSettings(
            schema=job.place.schema,
            also_search=source.also_search,
            role=source.role,
            source=source.name,
            version_table=source.version_table,
            lock_timeout_s=self._options.lock_timeout_s,
            statement_timeout_s=self._options.statement_timeout_s,
        )
        connection = self._connect(job)
        rows = tenants.begin(connection, settings)
        found = self._opened.own(rows, job.stored)
        if found.refusal:
            tenants.rollback(connection)
            return Amendment(refusal=found.refusal)
        has_files = self._opened.folder is not None
        own_rows = split(found.rows)[0] if has_files else found.rows
        amendment = amend(self._request.verb, chain, own_rows, job.target)
        if self._request.dry_run or amendment.refusal or not amendment.changes:
            tenants.rollback(connection)
            return amendment
        if found.adopted:
            tenants.adopt(connection, settings, found.adopted)
        connection.execute(
            tenant_records.amending(
                settings.version_schema,
                settings.version_table,
                source.name,
                add=_recorded(amendment.add),
                rewrite=_recorded(amendment.rewrite),
                remove=amendment.remove,
            ).encode()
        )
        tenants.commit(connection)
        return amendment

    def _connect(self, job: Job) -> Connection[TupleRow]:
        reached = (job.endpoint, job.place.database)
        known = self._connection
        if known is not None and reached == self._reached and not (known.closed or known.broken):
            tenants.rollback(known)
            tenants.clean(known)
            return known
        if known is not None:
            known.close()
        made = connect(job.endpoint, purpose=PURPOSE, dbname=job.place.database or None)
        self._connection, self._reached = made, reached
        return made

    def _ask(self, job: Job) -> Amended:
        """The same by the tool that owns the version table."""
        if self._hand is None:
            self._hand = ProgramHand(self._opened.source, self._options)
        verb = self._request.verb.value
        outcome = self._hand.upgrade(replace(job, way=verb, dry_run=self._request.dry_run))
        if outcome.result is not Result.DONE:
            return Amended(job.name, Amendment(), outcome.message)
        is_change = outcome.from_version != outcome.to_version
        found = self._opened.chain.versions
        added = tuple(v for v in found if v.id == outcome.to_version) if is_change else ()
        return Amended(job.name, Amendment(add=added, current=outcome.to_version))


def _recorded(versions: Sequence[Version]) -> list[tenant_records.Recorded]:
    return [tenant_records.Recorded(each.id, each.name, each.sha256) for each in versions]
