"""Verifies tenants against what their migration sources make, in a database beside them.

Decides which sources make up a tenant (those it has a version of, by name), and which tenants may
share one expectation: those with the same versions on one server. The migrations are run for real,
but in a scratch database on the tenant's server, so they reach no tenant; it is dropped at the end.
The tenants themselves are only read. Of repeatable files, a tenant is expected to have those that
it has recorded; in another wording than the source has now, they cannot be built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from tidegate.bootstrap.tenants.drift import Difference, compare
from tidegate.bootstrap.tenants.ground import job_of
from tidegate.bootstrap.tenants.hands import PURPOSE
from tidegate.bootstrap.tenants.model import RunOptions
from tidegate.bootstrap.tenants.outcomes import Outcome, Result
from tidegate.bootstrap.tenants.repeatables import outdated, split
from tidegate.bootstrap.tenants.selection import Selection, select
from tidegate.bootstrap.tenants.versions import Chain
from tidegate.engines.postgres import tenant_catalog, tenant_places, tenant_records, tenants
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.quoting import quoted
from tidegate.engines.postgres.tenant_scratch import scratch_database
from tidegate.errors import InvalidArgumentError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.bootstrap.tenants.hands import Job
    from tidegate.bootstrap.tenants.model import Tenant
    from tidegate.bootstrap.tenants.sources import Opened, Sources
    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.topology.store import TopologyStore

VERIFIED_MAX: Final = 1000
"""Tenants of one request."""

type Objects = Mapping[tuple[str, str], str]
#: By source, the repeatable files that a tenant has.
type Repeated = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Verified:
    """What was found of one tenant."""

    tenant: str
    versions: Mapping[str, str]
    """By source, what was expected of it."""
    differences: tuple[Difference, ...] = ()
    failure: str = ""
    """Why it could not be verified; empty when it was."""

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "tenant": self.tenant,
            "versions": dict(self.versions),
            "differences": [each.to_json() for each in self.differences],
            "failure": self.failure or None,
        }


@dataclass(frozen=True)
class VerifyRequest:
    """What ``tidegate tenant verify`` asks for."""

    selection: Selection = field(default_factory=Selection)
    options: RunOptions = field(default_factory=RunOptions)


class UnbuildableError(Exception):
    """The expected schema cannot be made."""


class Verifier:
    """Verifies tenants of one cluster."""

    def __init__(self, store: TenantStore, topology: TopologyStore, sources: Sources) -> None:
        self._store = store
        self._topology = topology
        self._sources = sources

    def run(self, request: VerifyRequest) -> list[Verified]:
        """Verify the chosen tenants; the answer has each of them.

        Raises:
            NotFoundError: a name names no tenant.
            InvalidArgumentError: a comparison of versions is asked for, or too many tenants.
            MigrationSourceError: a source must not be run.
        """
        if request.selection.where:
            raise InvalidArgumentError(
                "tenants are verified at the versions they have, of all sources",
                next_step="choose them by name or keyspace",
            )
        chosen = select(self._store.all(), request.selection, "", Chain(()), "")
        if len(chosen) > VERIFIED_MAX:
            raise InvalidArgumentError(
                f"{len(chosen)} tenants are too many to verify at once",
                next_step=f"choose at most {VERIFIED_MAX}: --tenants 'a*'",
            )
        known = {source.name: source for source in self._store.sources()}
        used = {name for tenant in chosen for name in tenant.versions if name in known}
        opened = {name: self._sources.open(known[name]) for name in sorted(used)}
        return _Round(self._topology, opened, request.options).verify(chosen)


class _Round:
    """One verification: what was built is kept for tenants that are to have the same."""

    def __init__(
        self, topology: TopologyStore, opened: Mapping[str, Opened], options: RunOptions
    ) -> None:
        self._snapshot = topology.read()
        self._opened = opened
        self._options = options
        self._built: dict[tuple[Any, ...], Objects | str] = {}

    def verify(self, chosen: Sequence[Tenant]) -> list[Verified]:
        return [self._one(tenant) for tenant in chosen]

    def _one(self, tenant: Tenant) -> Verified:
        versions = {n: v for n, v in sorted(tenant.versions.items()) if n in self._opened and v}
        if not versions:
            why = "no version of a registered source is stored for it"
            return Verified(tenant.name, versions, failure=why)
        job = job_of(self._snapshot, tenant, "")
        if isinstance(job, Outcome):
            return Verified(tenant.name, versions, failure=job.message)
        try:
            found, repeated = self._read(job, versions)
            expected = self._expected(job, versions, repeated)
        except UnbuildableError as error:
            return Verified(tenant.name, versions, failure=str(error))
        except TidegateError as error:
            return Verified(tenant.name, versions, failure=error.message)
        except psycopg.Error as error:
            return Verified(tenant.name, versions, failure=" ".join(str(error).split()))
        return Verified(tenant.name, versions, compare(expected, found))

    def _read(self, job: Job, versions: Mapping[str, str]) -> tuple[Objects, Repeated]:
        with connect(job.endpoint, purpose=PURPOSE, dbname=job.place.database or None) as session:
            schema = job.place.schema
            if schema and not tenant_places.has_schema(session, schema):
                raise UnbuildableError(f"{job.place} is not there")
            repeated = tuple((name, self._repeated(session, job, name)) for name in versions)
            return tenant_catalog.objects(session, schema, self._version_tables()), repeated

    def _repeated(self, session: Connection[TupleRow], job: Job, source: str) -> tuple[str, ...]:
        """The repeatable files of a source that a tenant has."""
        opened = self._opened[source]
        if not opened.chain.repeatable:
            return ()
        schema = job.place.schema or tenants.DEFAULT_SCHEMA
        read = tenant_records.statements(schema, opened.source.version_table).read
        own = opened.own(session.execute(read.encode()).fetchall(), job.stored)
        if own.refusal:
            raise UnbuildableError(own.refusal)
        recorded = split(own.rows)[1]
        if other := outdated(opened.chain, recorded):
            raise UnbuildableError(
                f"the tenant has {', '.join(other)} in an older wording than source {source};"
                " upgrade it first"
            )
        return tuple(sorted(recorded))

    def _version_tables(self) -> set[str]:
        return {each.source.records_in for each in self._opened.values()}

    def _expected(self, job: Job, versions: Mapping[str, str], repeated: Repeated) -> Objects:
        place = job.place
        own = (place.schema, job.name) if self._has_variables(versions) else bool(place.schema)
        database = place.database if place.schema else ""
        key = (job.endpoint, database, own, tuple(versions.items()), repeated)
        if key not in self._built:
            try:
                self._built[key] = self._build(job, versions, dict(repeated))
            except UnbuildableError as error:
                self._built[key] = str(error)
        found = self._built[key]
        if isinstance(found, str):
            raise UnbuildableError(found)
        return found

    def _has_variables(self, versions: Mapping[str, str]) -> bool:
        """Whether what is made depends on the tenant's values."""
        folders = [self._opened[name].folder for name in versions]
        return any(s.variables for folder in folders if folder is not None for s in folder.all)

    def _build(
        self, job: Job, versions: Mapping[str, str], repeated: Mapping[str, tuple[str, ...]]
    ) -> Objects:
        shared = {s for name in versions for s in self._opened[name].source.also_search}
        schema = job.place.schema
        with scratch_database(
            job.endpoint,
            job.place.database,
            is_schema=bool(schema),
            shared=sorted(shared) if schema else (),
        ) as (database, session):
            roles = sorted({self._opened[name].source.role for name in versions} - {""})
            _make_room(session, schema, roles)
            place = replace(job.place, database=database)
            for name, version in versions.items():
                hand = self._opened[name].as_of(version, repeated[name]).hand(self._options)
                try:
                    outcome = hand.upgrade(replace(job, place=place, target=version, stored=()))
                finally:
                    hand.close()
                if outcome.result is not Result.DONE:
                    raise UnbuildableError(
                        f"what source {name} makes cannot be built beside the tenant:"
                        f" {outcome.message}"
                    )
            return tenant_catalog.objects(session, schema, self._version_tables())


def _make_room(session: Connection[TupleRow], schema: str, roles: Sequence[str]) -> None:
    """The schema of the tenant, and what its roles need to make things in it."""
    name = quoted(schema or tenants.DEFAULT_SCHEMA)
    session.execute(f"CREATE SCHEMA IF NOT EXISTS {name}".encode())
    for role in roles:
        session.execute(f"GRANT ALL ON SCHEMA {name} TO {quoted(role)}".encode())
        if not schema:
            database = quoted(session.info.dbname)
            session.execute(f"GRANT ALL ON DATABASE {database} TO {quoted(role)}".encode())
