"""Django's migrations: a settings module, one ``django_migrations`` table in each tenant's schema.

The database ``default`` of the settings is pointed at the tenant: host, name, user and password are
the tenant's, the search path is its schema. Then Django's own ``migrate`` runs, with all it does
besides (content types, permissions, signals). The version is a digest of all migrations of the
installed apps, because Django's have no order of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.bootstrap.tenants.worker import tidegate_session as session
else:
    session = importlib.import_module("tidegate_session")

ALIAS = "default"
_ENGINES = ("postgresql", "postgis", "django_tenants")
_PARTS = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
_ready: list[str] = []


def setup(source: dict[str, Any]) -> None:
    """Set Django up, once in the life of the process."""
    if not _ready:
        os.environ["DJANGO_SETTINGS_MODULE"] = source["address"]
        importlib.import_module("django").setup()
        _ready.append(source["address"])


def loader_of(connection: Any) -> Any:
    """Django's graph of migrations, with what the connection's database has applied."""
    module = importlib.import_module("django.db.migrations.loader")
    return module.MigrationLoader(connection, ignore_no_migrations=True)


def head_of(loader: Any) -> str:
    """The version of a database that has all migrations."""
    nodes = sorted(f"{app}.{name}" for app, name in loader.graph.nodes)
    digest = hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:12]
    return f"{len(nodes)}-{digest}"


def describe(source: dict[str, Any]) -> dict[str, Any]:
    """One version: all migrations of the installed apps."""
    setup(source)
    loader = loader_of(None)
    conflicts = loader.detect_conflicts()
    if conflicts:
        apps = ", ".join(sorted(conflicts))
        raise ValueError(f"apps with more than one leaf: {apps}; run makemigrations --merge")
    leaves = ", ".join(f"{app}.{name}" for app, name in sorted(loader.graph.leaf_nodes()))
    apps = importlib.import_module("django.apps").apps
    folders = [Path(config.path) / "migrations" for config in apps.get_app_configs()]
    settings = importlib.import_module(source["address"]).__file__
    return {
        "versions": [{"id": head_of(loader), "name": leaves}],
        "files": [str(settings), *(str(each) for each in folders if each.is_dir())],
    }


def point(connection: Any, request: dict[str, Any]) -> None:
    """Let Django's connection lead to the tenant.

    Raises:
        ValueError: the settings name another engine than PostgreSQL.
    """
    known = connection.settings_dict
    if not any(each in known["ENGINE"] for each in _ENGINES):
        raise ValueError(f"DATABASES[{ALIAS!r}] uses {known['ENGINE']}, not PostgreSQL")
    given = {key: str(value) for key, value in request["connection"].items()}
    session.refuse_old_libpq(given)
    options = {**known.get("OPTIONS", {}), **given, "options": session.options(request)}
    for name in (*_PARTS, "application_name", "pool", "service", "passfile"):
        options.pop(name, None)
    if "passfile" in given:
        options["passfile"] = given["passfile"]
    connection.close()
    known.update(
        {django: given.get(libpq, "") for libpq, django in _PARTS.items()},
        OPTIONS=options,
        CONN_MAX_AGE=None,
        AUTOCOMMIT=True,
    )
    if hasattr(connection, "set_schema") and request["tenant"]["schema"]:
        connection.set_schema(request["tenant"]["schema"], include_public=False)


def upgrade(request: dict[str, Any]) -> dict[str, Any]:
    """Bring one tenant to the head."""
    setup(request["source"])
    connection = importlib.import_module("django.db").connections[ALIAS]
    point(connection, request)
    try:
        connection.ensure_connection()
        session.take_lock(connection.connection, request)
        return _upgrade(connection, request)
    except session.TenantMissingError:
        return session.missing()
    finally:
        connection.close()


def sql_of(connection: Any) -> str:
    """The SQL of what the tenant lacks, as ``sqlmigrate`` writes it; nothing is run."""
    executor_module = importlib.import_module("django.db.migrations.executor")
    executor = executor_module.MigrationExecutor(connection)
    parts = []
    for migration, backwards in executor.migration_plan(executor.loader.graph.leaf_nodes()):
        parts.append(f"-- {migration.app_label}.{migration.name}")
        parts += executor.loader.collect_sql([(migration, backwards)])
    return "\n".join([*parts, ""])


def _upgrade(connection: Any, request: dict[str, Any]) -> dict[str, Any]:
    loader = loader_of(connection)
    head = head_of(loader)
    if head != request["target"]:
        return session.refused(f"the migrations are at {head} by now, not {request['target']}")
    have = set(loader.applied_migrations)
    current = _current(loader, have)
    strangers = sorted(_unknown(loader, have))
    if strangers:
        named = ", ".join(f"{app}.{name}" for app, name in strangers[:5])
        return session.refused(
            f"the tenant has {named}, which the installed apps do not know; run an older tenant's"
            " program, or remove what was squashed: manage.py migrate --prune",
            current,
        )
    if request["do"] == "sql":
        return {"result": "done", "sql": sql_of(connection)}
    missing = sorted(set(loader.graph.nodes) - have)
    is_record_only = request["do"] in {"baseline", "stamp"}
    if request["do"] == "baseline" and current not in {"", head}:
        return session.refused(
            f"the tenant has {current} already; a baseline is for tenants without a version,"
            " a stamp for others",
            current,
        )
    if not missing or request.get("dry_run"):
        return session.done(current, head, [])
    management = importlib.import_module("django.core.management")
    # By class: of that name, a project may have a command that migrates all tenants by itself.
    command = importlib.import_module("django.core.management.commands.migrate").Command()
    with _each_alone(connection):
        management.call_command(
            command, database=ALIAS, interactive=False, verbosity=0, fake=is_record_only
        )
    after = loader_of(connection)
    left = sorted(set(after.graph.nodes) - set(after.applied_migrations))
    if left:
        raise RuntimeError(f"migrate left out {', '.join('.'.join(each) for each in left[:5])}")
    return session.done(current, head, [".".join(each) for each in missing])


@contextlib.contextmanager
def _each_alone(connection: Any) -> Iterator[None]:
    """Take back what a migration changes of its session, before it is recorded."""
    executor = importlib.import_module("django.db.migrations.executor").MigrationExecutor
    original = executor.record_migration
    standing = session.standing(connection.connection)

    def record_migration(*given: Any, **named: Any) -> None:
        session.restore(connection.connection, standing)
        original(*given, **named)

    executor.record_migration = record_migration
    try:
        yield
    finally:
        executor.record_migration = original


def _current(loader: Any, have: set[tuple[str, str]]) -> str:
    """The version as the head is written: how many of the migrations, and a digest of them."""
    nodes = sorted(f"{app}.{name}" for app, name in loader.graph.nodes if (app, name) in have)
    if not nodes:
        return ""
    digest = hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:12]
    return f"{len(nodes)}-{digest}"


def _unknown(loader: Any, have: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What was applied of installed apps and is in no file any more, nor replaced by one."""
    known = set(loader.disk_migrations)
    for migration in loader.disk_migrations.values():
        known |= {tuple(each) for each in migration.replaces}
    apps = {
        config.label for config in importlib.import_module("django.apps").apps.get_app_configs()
    }
    return {each for each in have - known if each[0] in apps}
