"""Python functions as migrations: ``module:function``, called once for each version.

The module says its versions in order: ``VERSIONS = ("1", "2")``, or the function does as its
attribute ``versions``. ``function(connection, tenant)`` gets a connection of the driver inside the
tenant's transaction, and ``tenant`` with ``name``, ``schema``, ``database`` and the ``version`` to
make. Each version runs in a transaction of its own, which the function must not end, together with
its record; all that a tenant lacks in one, if that was asked for. Between two the session is made
like a new one.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.bootstrap.tenants.worker import tidegate_records as records
    from tidegate.bootstrap.tenants.worker import tidegate_session as session
else:
    records = importlib.import_module("tidegate_records")
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
    sha256 = records.identity(source["address"])
    return {
        "versions": [{"id": each, "name": "", "sha256": sha256} for each in versions],
        "files": [file],
    }


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
    target = request["target"]
    first = None
    applied: list[str] = []
    while True:
        try:
            session.prepare(connection, request)
        except session.TenantMissingError:
            return session.missing()
        connection.autocommit = False
        table = _Table(connection, request)
        current, missing, refusal = _missing(table.own(versions), versions, target)
        first = current if first is None else first
        if not refusal and not request["out_of_order"]:
            refusal = _late(current, missing, versions)
        if refusal:
            return session.refused(refusal, current)
        batch = missing if request["single"] else missing[:1]
        if batch:
            _call(connection, function, request["tenant"], batch, table)
        connection.commit()
        applied += batch
        if len(batch) == len(missing):
            return session.done(first, target, applied)
        connection.autocommit = True
        session.release(connection)


def _missing(found: Any, versions: list[str], target: str) -> tuple[str, list[str], str]:
    """The version a tenant has, those it lacks up to the target, and why they must not be made."""
    have = {row.version for row in found.rows}
    current = next((each for each in reversed(versions) if each in have), "")
    wanted = versions[: versions.index(target) + 1]
    missing = [each for each in wanted if each not in have]
    strangers = sorted(have - set(versions))
    refusal = found.refusal
    if not refusal and strangers:
        refusal = f"the tenant has version {strangers[-1]}, which the function does not know"
    elif not refusal and current and current not in wanted:
        refusal = f"the tenant is at version {current}, ahead of {target}; it is never taken back"
    return current, missing, refusal


def _late(current: str, missing: list[str], versions: list[str]) -> str:
    """Why a tenant must not be upgraded that lacks a version before one it has."""
    if not current or not missing or versions.index(missing[0]) > versions.index(current):
        return ""
    return (
        f"the tenant is at version {current} but lacks {missing[0]} before it; put that behind it,"
        " or run it with --out-of-order"
    )


class _Table:
    """The version table of one tenant; the statements that have no values come from the node."""

    def __init__(self, connection: Any, request: dict[str, Any]) -> None:
        self._connection = connection
        self._records = request["records"]
        schema, name = session.version_schema(request["tenant"]), request["source"]["version_table"]
        self._name = f"{session.quoted(schema)}.{session.quoted(name)}"
        # Where values are given, the driver takes a percent sign for a placeholder.
        self._escaped = self._name.replace("%", "%%")
        self._sha256 = records.identity(request["source"]["address"])

    def own(self, versions: list[str]) -> Any:
        """The source's rows; the table is made, or brought up to date, if need be."""
        given = self._records
        columns = session.execute(
            self._connection,
            "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attnum > 0"
            " AND NOT attisdropped AND attrelid = pg_catalog.to_regclass(%s)",
            (self._name,),
        )
        if not columns:
            session.execute(self._connection, given["make"])
        elif ("source",) not in columns:
            session.execute(self._connection, given["renew"])
        rows = [records.Row(*row) for row in session.execute(self._connection, given["read"])]
        asker = records.Asker(
            given["source"],
            dict.fromkeys(versions, self._sha256),
            others=tuple(given["others"]),
            stored=tuple(given["stored"]),
        )
        found = records.own(rows, asker)
        for former in found.adopted:
            session.execute(
                self._connection,
                f"UPDATE {self._escaped} SET source = %s,"  # noqa: S608 - quoted
                " sha256 = CASE sha256 WHEN '' THEN %s ELSE sha256 END WHERE source = %s",
                (given["source"], self._sha256, former),
            )
        return found

    def record(self, version: str) -> None:
        """Record that a version is made."""
        session.execute(
            self._connection,
            f"INSERT INTO {self._escaped} (source, version, name, sha256)"  # noqa: S608 - quoted
            " VALUES (%s, %s, '', %s)",
            (self._records["source"], version, self._sha256),
        )


def _call(
    connection: Any, function: Any, tenant: dict[str, str], missing: list[str], table: _Table
) -> None:
    began = session.execute(connection, "SELECT pg_catalog.txid_current()")
    for version in missing:
        function(connection, SimpleNamespace(**tenant, version=version))
        if session.execute(connection, "SELECT pg_catalog.txid_current()") != began:
            raise TransactionEndedError(
                f"the function ended the tenant's transaction while making version {version};"
                " what it committed stays"
            )
        table.record(version)
