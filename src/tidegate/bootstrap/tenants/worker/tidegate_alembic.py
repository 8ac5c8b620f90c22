"""Alembic environments as they are: ``alembic.ini``, ``env.py`` and revisions.

``env.py`` gets the tenant's connection in ``config.attributes["connection"]``, its search path set
to the tenant's schema. An ``env.py`` that does not look there finds the same database in
``sqlalchemy.url``, with the settings in libpq's ``options``, and in the variable that the source
names. The version table lies in the tenant's schema. Arguments of ``-x``: ``tenant``, ``schema``.

Whatever ``env.py`` connects to is compared with the tenant before the first migration runs.
"""

from __future__ import annotations

import importlib
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool, text
from sqlalchemy.engine import URL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tidegate.bootstrap.tenants.worker import tidegate_session as session
else:
    session = importlib.import_module("tidegate_session")

_DRIVERS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}
_scripts: dict[str, ScriptDirectory] = {}
_open: dict[str, Connection] = {}


class ElsewhereError(RuntimeError):
    """``env.py`` connects to something that is not the tenant."""


class RefusedError(RuntimeError):
    """The tenant's version does not allow it."""


def script_of(address: str) -> ScriptDirectory:
    """The revisions; read once in the life of the process."""
    if address not in _scripts:
        _scripts[address] = ScriptDirectory.from_config(Config(address))
    return _scripts[address]


def describe(source: dict[str, Any]) -> dict[str, Any]:
    """The revisions, from the first to the last."""
    script = script_of(source["address"])
    revisions = reversed(list(script.walk_revisions()))
    folders = [Path(script.dir) / "env.py", *map(Path, script._version_locations)]  # noqa: SLF001
    return {
        "versions": [
            {
                "id": each.revision,
                "name": each.doc or "",
                "parents": list(each._all_down_revisions),  # noqa: SLF001 - with depends_on
            }
            for each in revisions
        ],
        "heads": list(script.get_heads()),
        "files": [source["address"], *map(str, folders)],
    }


def url_of(request: dict[str, Any]) -> URL:
    """The tenant's database as SQLAlchemy writes it, the settings in libpq's options."""
    given = dict(request["connection"])
    given["options"] = session.options(request)
    known = {key: given.pop(key, None) for key in ("user", "password", "host", "port", "dbname")}
    return URL.create(
        _DRIVERS[session.refuse_old_libpq(given)],
        username=known["user"],
        password=known["password"],
        host=known["host"],
        port=int(known["port"]) if known["port"] else None,
        database=known["dbname"],
        query={key: str(value) for key, value in given.items()},
    )


def offline(request: dict[str, Any]) -> dict[str, Any]:
    """The SQL of Alembic's offline mode, from the version that is stored to the target."""
    source, tenant = request["source"], request["tenant"]
    url = url_of(request).render_as_string(hide_password=False)
    if source["url_variable"]:
        os.environ[source["url_variable"]] = url
    words = [f"tenant={tenant['name']}", f"schema={tenant['schema']}"]
    output = io.StringIO()
    config = Config(source["address"], output_buffer=output, cmd_opts=Namespace(x=words))
    config.attributes["tenant"] = dict(tenant)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    script, target = script_of(source["address"]), request["target"]
    options = {"version_table_schema": tenant["schema"]} if tenant["schema"] else {}
    with EnvironmentContext(
        config,
        script,
        fn=lambda heads, _context: script._upgrade_revs(target, heads),  # noqa: SLF001
        as_sql=True,
        starting_rev=request["version"] or None,
        destination_rev=target,
        **options,
    ):
        script.run_env()
    return {"result": "done", "sql": output.getvalue()}


def upgrade(request: dict[str, Any]) -> dict[str, Any]:
    """Bring one tenant to the target."""
    if request["do"] == "sql":
        return offline(request)
    parameters = request["connection"]
    key = repr(sorted(parameters.items()))
    connection = _open.get(key)
    if connection is None or connection.closed:
        while _open:
            _open.popitem()[1].close()
        engine = create_engine(
            _DRIVERS[session.driver_name()] + "://",
            creator=lambda: session_connection(parameters),
            poolclass=pool.NullPool,
        )
        connection = _open[key] = engine.connect()
    try:
        answer = _upgrade(connection, request)
        raw = raw_of(connection)
        raw.autocommit = True
        session.release(raw)
        raw.autocommit = False
    except BaseException:
        # Whatever state it is in: the server rolls back and gives up the lock.
        _open.pop(key).invalidate()
        raise
    return answer


def session_connection(parameters: dict[str, str]) -> Any:
    """A driver's connection as SQLAlchemy expects it: not in autocommit."""
    connection = session.connect(parameters)
    connection.autocommit = False
    return connection


def raw_of(connection: Connection) -> Any:
    """The driver's connection, with no transaction open."""
    if connection.in_transaction():
        connection.rollback()
    return connection.connection.driver_connection


def _upgrade(connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
    source, tenant = request["source"], request["tenant"]
    raw = raw_of(connection)
    raw.autocommit = True
    try:
        session.prepare(raw, request)
    except session.TenantMissingError:
        return session.missing()
    raw.autocommit = False
    if tenant["schema"]:
        connection.dialect.default_schema_name = tenant["schema"]
    url = url_of(request).render_as_string(hide_password=False)
    if source["url_variable"]:
        os.environ[source["url_variable"]] = url
    words = [f"tenant={tenant['name']}", f"schema={tenant['schema']}"]
    config = Config(source["address"], cmd_opts=Namespace(x=words))
    config.attributes["connection"] = connection
    config.attributes["tenant"] = dict(tenant)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    run = _Run(script_of(source["address"]), request)
    options = {"version_table_schema": tenant["schema"]} if tenant["schema"] else {}
    try:
        with EnvironmentContext(
            config,
            run.script,
            fn=run.steps,
            destination_rev=request["target"],
            dont_mutate=bool(request.get("dry_run")),
            **options,
        ):
            run.script.run_env()
    except RefusedError as error:
        return session.refused(str(error), run.current)
    if not run.was_called:
        raise ElsewhereError("env.py ran no migrations: it never called run_migrations()")
    if connection.in_transaction():
        connection.commit()
    return session.done(run.current, request["target"], run.applied)


class _Run:
    """What Alembic asks: which steps, given the heads it found."""

    def __init__(self, script: ScriptDirectory, request: dict[str, Any]) -> None:
        self.script = script
        self._request = request
        self.current = ""
        self.applied: list[str] = []
        self.was_called = False

    def steps(self, heads: Any, context: Any) -> Iterator[Any]:
        """The steps to the target, each noted once Alembic comes back for the next one."""
        self.was_called = True
        self._refuse_elsewhere(context.connection)
        have = heads if isinstance(heads, tuple) else (heads,) if heads else ()
        self.current = ",".join(have)
        target = self._request["target"]
        way = self._request["do"]
        if way in {"baseline", "stamp"}:
            if way == "baseline" and have and have != (target,):
                raise RefusedError(
                    f"the tenant has revision {self.current} already; a baseline is for tenants"
                    " without a version, a stamp for others"
                )
            self._refuse_unknown(have)
            if have != (target,) and not self._request["dry_run"]:
                yield from self.script._stamp_revs(target, heads)  # noqa: SLF001 - as alembic.command
            return
        if way == "downgrade":
            self._refuse_unknown(have)
            self._refuse_behind(have, target)
            if have != (target,):
                yield from self.script._downgrade_revs(target, heads)  # noqa: SLF001
            return
        self._refuse_version(have, target)
        if have == (target,):
            return
        raw = context.connection.connection.driver_connection
        standing = session.standing(raw)
        for step in self.script._upgrade_revs(target, heads):  # noqa: SLF001 - as alembic.command
            yield step
            session.restore(raw, standing)
            self.applied.append(step.revision.revision)

    def _refuse_elsewhere(self, connection: Connection) -> None:
        tenant = self._request["tenant"]
        database, schema = connection.execute(
            text("SELECT pg_catalog.current_database(), pg_catalog.current_schema()")
        ).one()
        wanted = self._request["connection"].get("dbname") or database
        if database != wanted or (tenant["schema"] and schema != tenant["schema"]):
            raise ElsewhereError(
                f"env.py connects to database {database}, schema {schema}, and not to the tenant;"
                ' let it use config.attributes["connection"] or sqlalchemy.url'
            )

    def _refuse_version(self, have: tuple[str, ...], target: str) -> None:
        self._refuse_unknown(have)
        if target in have:
            return
        for revision in have:
            below = {each.revision for each in self.script.iterate_revisions(revision, "base")}
            if target in below:
                raise RefusedError(
                    f"the tenant is at revision {revision}, ahead of {target};"
                    " only --downgrade takes it back"
                )

    def _refuse_behind(self, have: tuple[str, ...], target: str) -> None:
        for revision in have or ("base",):
            below = () if revision == "base" else self.script.iterate_revisions(revision, "base")
            if target not in {each.revision for each in below}:
                raise RefusedError(f"the tenant is at revision {revision}, not ahead of {target}")

    def _refuse_unknown(self, have: tuple[str, ...]) -> None:
        known = {each.revision for each in self.script.walk_revisions()}
        for revision in have:
            if revision not in known:
                raise RefusedError(
                    f"the tenant has revision {revision}, which is not among the revisions"
                )
