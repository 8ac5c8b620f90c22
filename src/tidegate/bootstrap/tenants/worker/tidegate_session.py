"""A tenant's session in the worker: whichever driver the user has, its settings and its lock.

The statements are those of the node's own sessions, so that a worker and a node that upgrade the
same tenant take turns.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import Any

LOCK_PREFIX = "tidegate tenant "
DEFAULT_SCHEMA = "public"
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25
"""Between two attempts at the tenant's lock."""
REQUIRE_AUTH_SINCE = 160000


class TenantMissingError(Exception):
    """The tenant's schema is not there."""


class TenantLockedError(Exception):
    """Another session has the tenant's lock."""

    sqlstate = "55P03"


def driver_name() -> str:
    """psycopg, or psycopg2 where only that is installed."""
    for name in ("psycopg", "psycopg2"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise ModuleNotFoundError("neither psycopg nor psycopg2 is installed in this environment")


def refuse_old_libpq(parameters: dict[str, str]) -> str:
    """The driver's name, if its libpq knows all it is told."""
    name = driver_name()
    if "require_auth" in parameters:
        place = "psycopg.pq" if name == "psycopg" else "psycopg2.extensions"
        module = importlib.import_module(place)
        version = module.version() if name == "psycopg" else module.libpq_version()
        if version < REQUIRE_AUTH_SINCE:
            raise ModuleNotFoundError(
                f"the libpq {version // 10000} of {name} cannot refuse to send a password in clear"
                " text: install one with libpq 16 or newer, or connect with sslmode=verify-full"
            )
    return name


def connect(parameters: dict[str, str]) -> Any:
    """A connection of the driver, in autocommit."""
    name = refuse_old_libpq(parameters)
    # A session is made like a new one in between, which takes prepared statements away.
    more = {"prepare_threshold": None} if name == "psycopg" else {}
    connection = importlib.import_module(name).connect(**parameters, **more)
    connection.autocommit = True
    return connection


def quoted(identifier: str) -> str:
    """An identifier in double quotes."""
    return '"' + identifier.replace('"', '""') + '"'


def version_schema(tenant: dict[str, str]) -> str:
    """The schema of the version table, which also names the tenant's lock."""
    return tenant["schema"] or DEFAULT_SCHEMA


def settings(request: dict[str, Any], *, with_role: bool = True) -> dict[str, str]:
    """The settings under which the tenant's migrations run."""
    tenant, source, bounds = request["tenant"], request["source"], request["bounds"]
    values = {
        "lock_timeout": str(bounds["lock_timeout_ms"]),
        "statement_timeout": str(bounds["statement_timeout_ms"]),
        # The version is stored elsewhere after the COMMIT, so that has to survive a crash.
        "synchronous_commit": "on",
        **request.get("keepalives", {}),  # of the server: a machine that is gone keeps no lock
    }
    if tenant["schema"]:
        path = [tenant["schema"], *source["also_search"]]
        values["search_path"] = ", ".join(map(quoted, path))
    if with_role and source["role"]:
        values["role"] = source["role"]
    return values


def options(request: dict[str, Any]) -> str:
    """The same as libpq's ``options``, for connections that others make."""
    words = []
    for name, value in settings(request).items():
        escaped = "".join(f"\\{each}" if each.isspace() or each == "\\" else each for each in value)
        words.append(f"-c {name}={escaped}")
    given = request["connection"].get("options", "")
    return " ".join([*([given] if given else []), *words])


def execute(connection: Any, statement: str, values: Any = None) -> list[Any]:
    """Run one statement of a driver's connection."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []
    finally:
        cursor.close()


def standing(connection: Any) -> tuple[str, str, str]:
    """What a migration may change of its session and the next one must not find: path and role."""
    path, role, user = execute(
        connection,
        "SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role'),"
        " session_user::text",
    )[0]
    return path, role, user


def restore(connection: Any, wanted: tuple[str, str, str]) -> None:
    """Give a session its search path and its role back, if a migration changed them."""
    if standing(connection) == wanted:
        return
    path, role, _ = wanted
    execute(connection, "SET SESSION AUTHORIZATION DEFAULT")
    for name, value in (("role", role), ("search_path", path)):
        execute(connection, "SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def prepare(connection: Any, request: dict[str, Any]) -> None:
    """Apply the settings to a session, take the tenant's lock, and see that its schema is there.

    Raises:
        TenantMissingError: it is not.
    """
    for name, value in settings(request).items():
        execute(connection, "SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
    take_lock(connection, request)


def take_lock(connection: Any, request: dict[str, Any]) -> None:
    """Take the tenant's lock for the session; the connection is in autocommit.

    The lock is tried, never waited for: a statement that waits holds a snapshot, and whoever has
    the lock may be building an index concurrently, which waits for every older snapshot.

    Raises:
        TenantMissingError: the schema is not there.
        TenantLockedError: the lock was not free within the bound of locks.
    """
    schema = version_schema(request["tenant"])
    bound_s = request["bounds"]["lock_timeout_ms"] / 1000
    deadline = time.monotonic() + bound_s
    attempt = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(%s, 0))"
    pause_s = FIRST_PAUSE_S
    while not execute(connection, attempt, (f"{LOCK_PREFIX}{schema}",))[0][0]:
        if time.monotonic() >= deadline:
            raise TenantLockedError(
                f"another session has been upgrading the tenant for {bound_s:g} s"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    found = execute(
        connection, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,)
    )
    if not found:
        raise TenantMissingError(schema)


def release(connection: Any) -> None:
    """Make a session like a new one: settings, role, temporary tables, locks."""
    execute(connection, "DISCARD ALL")


def missing() -> dict[str, Any]:
    """The answer for a tenant that is not there."""
    return {"result": "missing"}


def refused(message: str, current: str = "") -> dict[str, Any]:
    """The answer for a tenant whose version does not allow it."""
    return {"result": "failed", "cause": "version", "message": message, "from": current}


def done(current: str, target: str, applied: list[str]) -> dict[str, Any]:
    """The answer for a tenant that is at the target."""
    return {"result": "done", "from": current, "to": target, "applied": applied}
