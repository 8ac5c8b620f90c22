"""Python functions as migrations: ``module:function``, called once for each version.

The module says its versions in order: ``VERSIONS = ("1", "2")``, or the function does as its
attribute ``versions``. ``function(connection, tenant)`` gets a connection of the driver inside the
tenant's transaction, and ``tenant`` with ``name``, ``schema``, ``database`` and the ``version`` to
make. All versions that a tenant lacks run in one transaction, which the function must not end.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.bootstrap.tenants.worker import tidegate_session as session
else:
    session = importlib.import_module("tidegate_session")

_open: dict[str, Any] = {}


class TransactionEndedError(RuntimeError):
    """The function committed or rolled back by itself."""


def find(source: dict[str, Any]) -> tuple[Any, list[str], str]:
    """The function, its versions, and the file it is in."""
    name, _, attribute = source["address"].partition(":")
    module = importlib.import_module(name)
    function = getattr(module, attribute)
    versions = getattr(function, "versions", None) or getattr(module, "VERSIONS", None)
    if not versions or len(set(versions)) != len(versions):
        raise ValueError(
            f"{source['address']} needs its versions, each once: VERSIONS = ('1', '2') in {name}"
        )
    return function, [str(each) for each in versions], str(module.__file__)


def describe(source: dict[str, Any]) -> dict[str, Any]:
    """The versions in order."""
    _, versions, file = find(source)
    return {"versions": [{"id": each, "name": ""} for each in versions], "files": [file]}


def upgrade(request: dict[str, Any]) -> dict[str, Any]:
    """Bring one tenant to the target."""
    function, versions, _ = find(request["source"])
    parameters = request["connection"]
    key = repr(sorted(parameters.items()))
    connection = _open.get(key)
    if connection is None:
        while _open:
            _open.popitem()[1].close()
        connection = _open[key] = session.connect(parameters)
    try:
        answer = _upgrade(connection, request, function, versions)
        if not connection.autocommit:
            connection.rollback()
            connection.autocommit = True
        session.release(connection)
    except BaseException:
        # Whatever state it is in: the server rolls back and gives up the lock.
        _open.pop(key).close()
        raise
    return answer


def _upgrade(
    connection: Any, request: dict[str, Any], function: Any, versions: list[str]
) -> dict[str, Any]:
    tenant, target = request["tenant"], request["target"]
    try:
        session.prepare(connection, request)
    except session.TenantMissingError:
        return session.missing()
    connection.autocommit = False
    table = (
        f"{session.quoted(session.version_schema(tenant))}"
        f".{session.quoted(request['source']['version_table'])}"
    )
    session.execute(
        connection,
        f"CREATE TABLE IF NOT EXISTS {table} (version text NOT NULL PRIMARY KEY,"
        " name text NOT NULL, sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())",
    )
    have = {row[0] for row in session.execute(connection, f"SELECT version FROM {table}")}  # noqa: S608 - quoted
    current = next((each for each in reversed(versions) if each in have), "")
    strangers = sorted(have - set(versions))
    if strangers:
        return session.refused(
            f"the tenant has version {strangers[-1]}, which the function does not know", current
        )
    wanted = versions[: versions.index(target) + 1]
    if current and current not in wanted:
        return session.refused(
            f"the tenant is at version {current}, ahead of {target}; it is never taken back",
            current,
        )
    missing = [each for each in wanted if each not in have]
    if missing and current and versions.index(missing[0]) < versions.index(current):
        return session.refused(
            f"the tenant is at version {current} but lacks {missing[0]} before it", current
        )
    if not missing:
        return session.done(current, target, [])
    _call(connection, function, tenant, missing, table)
    connection.commit()
    return session.done(current, target, missing)


def _call(
    connection: Any, function: Any, tenant: dict[str, str], missing: list[str], table: str
) -> None:
    began = session.execute(connection, "SELECT pg_catalog.txid_current()")
    for version in missing:
        function(connection, SimpleNamespace(**tenant, version=version))
        if session.execute(connection, "SELECT pg_catalog.txid_current()") != began:
            raise TransactionEndedError(
                f"the function ended the tenant's transaction while making version {version};"
                " what it committed stays"
            )
        session.execute(
            connection,
            f"INSERT INTO {table} (version, name, sha256) VALUES (%s, '', '')",  # noqa: S608 - quoted
            (version,),
        )
