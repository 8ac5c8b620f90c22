"""Verbs about tenants, migration sources and the runs of upgrades.

Decides the request of each verb; it must not interpret answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.client.transport import VERB_TIMEOUT_S, Noun, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.client.transport import Json


def _verb(verb: str, *parts: str) -> str:
    """The path of a verb of a resource: ``/v1/tenants/acme:rename``."""
    return f"{path_of(*parts)}:{verb}"


class Tenants(Noun):
    """``tidegate tenant``."""

    def add(
        self,
        name: str,
        *,
        keyspace: str = "",
        shard: str = "",
        tablet: str = "",
        schema: str = "",
        database: str = "",
        provision: bool = False,
        source: str | None = None,
        dry_run: bool = False,
    ) -> Json:
        """Register a tenant: a schema or a database, at a shard or a tablet.

        Args:
            name: of the tenant.
            keyspace: it is in.
            shard: of the keyspace.
            tablet: it is at, instead of the primary of a shard.
            schema: its schema.
            database: its database.
            provision: make the schema or database if it is not there, and bring it to the head.
            source: to the head of which source; the only one there is when left out.
            dry_run: check only.
        """
        body = {
            "name": name,
            "keyspace": keyspace,
            "shard": shard,
            "tablet": tablet,
            "schema": schema,
            "database": database,
            "provision": provision,
            "source": source,
        }
        return self._call(
            "POST",
            path_of("tenants"),
            body,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def discover(
        self,
        keyspace: str,
        *,
        shard: str = "",
        schemas: str = "",
        databases: str = "",
        query: str = "",
        register: bool = False,
    ) -> Json:
        """Schemas or databases that are LIKE a pattern, or that a query names.

        Args:
            keyspace: on whose shards.
            shard: only this one.
            schemas: a pattern.
            databases: a pattern.
            query: a SELECT with the columns schema or database, and name; needs an admin.
            register: add those that are new.
        """
        body = {
            "keyspace": keyspace,
            "shard": shard,
            "schemas": schemas,
            "databases": databases,
            "query": query,
            "register": register,
        }
        return self._call("POST", _verb("discover", "tenants"), body, timeout_s=VERB_TIMEOUT_S)

    def page(self, after: str = "", *, keyspace: str | None = None, limit: int = 1000) -> Json:
        """The next tenants by name; ``next`` is where the page after it begins."""
        query = {"after": after, "limit": limit, "keyspace": keyspace}
        return self._call("GET", path_of("tenants"), query=query)

    def list(self, *, keyspace: str | None = None) -> Json:
        """All tenants, page by page."""
        answer = self.page(keyspace=keyspace)
        items = answer["items"]
        while answer["next"] is not None:
            answer = self.page(answer["next"], keyspace=keyspace)
            items += answer["items"]
        return {**answer, "items": items}

    def show(self, name: str) -> Json:
        """One tenant."""
        return self._call("GET", path_of("tenants", name))

    def remove(self, name: str, *, dry_run: bool = False) -> Json:
        """Forget a tenant; its schema or database is not touched."""
        return self._call("DELETE", path_of("tenants", name), query={"dry_run": dry_run})

    def rename(self, name: str, new_name: str, *, dry_run: bool = False) -> Json:
        """Give a tenant another name."""
        path = _verb("rename", "tenants", name)
        return self._call("POST", path, {"name": new_name}, query={"dry_run": dry_run})

    def status(self, *, source: str | None = None, keyspace: str | None = None) -> Json:
        """How many tenants have each version of a source."""
        query = {"source": source, "keyspace": keyspace}
        return self._call("GET", _verb("status", "tenants"), query=query)

    def ensure(self, name: str, *, source: str | None = None, **bounds: float) -> Json:
        """Bring one tenant to the head of a source now; cheap when it is there.

        Args:
            name: of the tenant.
            source: by name; the only one there is when left out.
            **bounds: lock_timeout_s, statement_timeout_s.
        """
        path = _verb("ensure", "tenants", name)
        return self._call("POST", path, {"source": source, **bounds}, timeout_s=VERB_TIMEOUT_S)

    def baseline(self, version: str, *, dry_run: bool = False, **which: Any) -> Json:
        """Let tenants without a version start at one; nothing is run.

        Args:
            version: head, or a version of the source.
            dry_run: answer what would be changed.
            **which: source, tenants, without, keyspace, where, lock_timeout_s.
        """
        return self._amend("baseline", {"version": version, **which}, dry_run=dry_run)

    def stamp(
        self, version: str, *, tenants: Sequence[str], dry_run: bool = False, **which: Any
    ) -> Json:
        """Record a version in tenants, whatever they had; nothing is run.

        Args:
            version: head, or a version of the source.
            tenants: names, or patterns with ``*`` and ``?``.
            dry_run: answer what would be changed.
            **which: source, without, keyspace, where, lock_timeout_s.
        """
        body = {"version": version, "tenants": [*tenants], **which}
        return self._amend("stamp", body, dry_run=dry_run)

    def repair(self, *, dry_run: bool = False, **which: Any) -> Json:
        """Record the files as they are now; tenants keep their versions, and nothing is run.

        Args:
            dry_run: answer what would be changed.
            **which: source, tenants, without, keyspace, where, lock_timeout_s.
        """
        return self._amend("repair", which, dry_run=dry_run)

    def verify(self, **which: Any) -> Json:
        """Compare tenants with what their sources make, in a scratch database beside them.

        Args:
            **which: tenants, without, keyspace, lock_timeout_s, statement_timeout_s.
        """
        return self._call("POST", _verb("verify", "tenants"), which, timeout_s=VERB_TIMEOUT_S)

    def _amend(self, verb: str, body: Json, *, dry_run: bool) -> Json:
        return self._call(
            "POST",
            _verb(verb, "tenants"),
            body,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def upgrade(self, *, dry_run: bool = False, **options: Any) -> Json:
        """Create a run, which the node works on from now on.

        Args:
            dry_run: answer the waves and what would be run.
            **options: trial (answer what becomes of a copy of the first tenant), source, to,
                tenants, without, keyspace, where, wave, then, jobs,
                max_failures, lock_timeout_s, statement_timeout_s, retries, pause_s, verify,
                downgrade, out_of_order, single_transaction,
                sql (with dry_run: answer the SQL as well), discover_schemas, discover_databases
                (patterns of LIKE: register what is new in the keyspace first), discover_query.
        """
        return self._call(
            "POST",
            path_of("tenant-runs"),
            options,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def runs(self, limit: int = 20) -> Json:
        """The newest runs."""
        return self._call("GET", path_of("tenant-runs"), query={"limit": limit})

    def run(self, run: int | str = "last") -> Json:
        """A run by its number, or the last one."""
        return self._call("GET", path_of("tenant-runs", str(run)))

    def run_tenants(self, run: int | str = "last") -> Json:
        """Every tenant of a run."""
        return self._call("GET", path_of("tenant-runs", str(run), "tenants"))

    def pause(self, run: int | str = "last") -> Json:
        """Begin with no more tenants of a run."""
        return self._call("POST", _verb("pause", "tenant-runs", str(run)), {})

    def resume(self, run: int | str = "last") -> Json:
        """Go on with a paused run, or with a stopped one in spite of its failures."""
        return self._call("POST", _verb("resume", "tenant-runs", str(run)), {})

    def cancel(self, run: int | str = "last") -> Json:
        """End a run; what was upgraded stays."""
        return self._call("POST", _verb("cancel", "tenant-runs", str(run)), {})

    def retry(self, run: int | str = "last", tenants: Sequence[str] = ()) -> Json:
        """Try failed tenants of a run again, all or some, and go on."""
        path = _verb("retry", "tenant-runs", str(run))
        return self._call("POST", path, {"tenants": [*tenants]})

    def skip(self, tenants: Sequence[str], run: int | str = "last") -> Json:
        """Leave tenants out of a run."""
        path = _verb("skip", "tenant-runs", str(run))
        return self._call("POST", path, {"tenants": [*tenants]})


class Migrations(Noun):
    """``tidegate migrations``."""

    def create(self, name: str, source: str, *, dry_run: bool = False, **how: Any) -> Json:
        """Register a migration source, after reading it once.

        Args:
            name: of the source.
            source: ``sql:/folder``, ``python:module:function``, ``alembic:/path/alembic.ini`` or
                ``django:settings.module``; paths are the node's.
            dry_run: read it only.
            **how: python, folder, role, also_search, version_table, url_variable, recursive,
                single_transaction, variables (a dictionary).
        """
        body = {"name": name, "source": source, **how}
        return self._call(
            "POST",
            path_of("migrations"),
            body,
            query={"dry_run": dry_run},
            timeout_s=VERB_TIMEOUT_S,
        )

    def list(self) -> Json:
        """The registered migration sources."""
        return self._call("GET", path_of("migrations"))

    def show(self, name: str) -> Json:
        """A migration source with its versions, as they are now."""
        return self._call("GET", path_of("migrations", name), timeout_s=VERB_TIMEOUT_S)

    def delete(self, name: str, *, dry_run: bool = False) -> Json:
        """Forget a migration source; tenants keep their own version tables."""
        return self._call("DELETE", path_of("migrations", name), query={"dry_run": dry_run})
