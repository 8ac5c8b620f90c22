"""Rows: upgrades of tenant schemas, against a loop of Alembic and django-tenants' migrate_schemas.

2,000 schemas of one database, each with a table and its version table at the first version; the
update has three statements. Each side works on schemas of its own. The peers run as their users run
them: one process, one `upgrade head` a schema; `manage.py migrate_schemas`. Ours is a run of a real
node from SQL files, eight tenants at a time, from the request to the answer that it is done.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Row, Sample
from servers import connect, servers

from tidegate.demo.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.client import Client
    from tidegate.engines.postgres.local import LocalServer

TENANTS = 2000
PEER_S = 60.0
FIRST = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, note text)"
SECOND = (
    "ALTER TABLE orders ADD COLUMN total numeric NOT NULL DEFAULT 0",
    "CREATE TABLE item (id bigint PRIMARY KEY, of_order bigint REFERENCES orders, what text)",
    "CREATE INDEX orders_customer ON orders (customer)",
)
ENV = """
from alembic import context
from sqlalchemy import create_engine, pool, text

config = context.config
schema = config.attributes["schema"]
engine = create_engine(config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    connection.execute(text(f'SET search_path TO "{schema}"'))
    connection.commit()
    connection.dialect.default_schema_name = schema
    context.configure(connection=connection, version_table_schema=schema)
    with context.begin_transaction():
        context.run_migrations()
"""
LOOP = """
import sys
from alembic import command
from alembic.config import Config

config = Config(sys.argv[1])
for number in range(int(sys.argv[2])):
    config.attributes["schema"] = f"peer_{number:04d}"
    command.upgrade(config, "head")
"""


def schemas(server: LocalServer, prefix: str, version_table: str) -> None:
    """Schemas at the first version, as if it had been run by whoever owns the version table."""
    with connect(server) as connection:
        for number in range(TENANTS):
            name = f"{prefix}_{number:04d}"
            connection.execute(
                f"CREATE SCHEMA {name}; SET LOCAL search_path = {name}; {FIRST}; {version_table}"
            )


@contextlib.contextmanager
def node(server: LocalServer, folder: Path) -> Iterator[Client]:
    """A client of a node that knows the server as keyspace ``saas``."""
    running = Node.start(folder / "state")
    try:
        with running.client() as client:
            client.cell.create("zone1")
            client.keyspace.create("saas", shards=["0"])
            client.tablet.create(
                "zone1-100",
                keyspace="saas",
                shard="0",
                conninfo=server.conninfo(),
                secret=server.secret,
            )
            yield client
    finally:
        running.stop()


def timed(work: Callable[[], object]) -> float:
    """Seconds of a piece of work."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def upgrade(client: Client) -> None:
    """One run, followed until it is done, as the command line does it."""
    run = client.tenant.upgrade(source="app", jobs=8)
    while run["state"] == "running":
        time.sleep(0.02)
        run = client.tenant.run(run["id"])
    if run["state"] != "done":
        raise RuntimeError(f"the run ended {run['state']}: {run['message']}")


def prepare_ours(server: LocalServer, folder: Path, client: Client) -> None:
    """Files, tenants, and the first version in each of them by a run of its own."""
    sql = folder / "sql"
    sql.mkdir()
    (sql / "001_orders.sql").write_text(f"{FIRST};\n")
    with connect(server) as connection:
        for number in range(TENANTS):
            connection.execute(f"CREATE SCHEMA ours_{number:04d}")
    client.tenant.discover("saas", schemas="ours_%", register=True)
    client.migrations.create("app", f"sql:{sql}")
    upgrade(client)
    (sql / "002_total.sql").write_text(";\n".join(SECOND) + ";\n")


def prepare_alembic(server: LocalServer, folder: Path) -> list[str]:
    """An environment with two revisions, schemas at the first; the command of the loop."""
    versions = folder / "alembic" / "versions"
    versions.mkdir(parents=True)
    (folder / "alembic" / "env.py").write_text(ENV)
    url = f"postgresql+psycopg://postgres:{server.password}@127.0.0.1:{server.port}/postgres"
    ini = folder / "alembic.ini"
    ini.write_text(
        f"[alembic]\nscript_location = {folder}/alembic\npath_separator = os\n"
        f"sqlalchemy.url = {url.replace('%', '%%')}\n"
    )
    for revision, down, statements in (("a1", None, [FIRST]), ("b2", "a1", SECOND)):
        body = "\n".join(f"    op.execute({statement!r})" for statement in statements)
        (versions / f"{revision}.py").write_text(
            f"from alembic import op\n\nrevision = {revision!r}\ndown_revision = {down!r}\n\n\n"
            f"def upgrade():\n{body}\n"
        )
    table = (
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);"
        "INSERT INTO alembic_version VALUES ('a1')"
    )
    schemas(server, "peer", table)
    (folder / "loop.py").write_text(LOOP)
    return [sys.executable, str(folder / "loop.py"), str(ini), str(TENANTS)]


@functools.cache
def against_alembic() -> tuple[Sample, Sample]:
    """The update and a run with nothing to do, ours and the loop's; measured once for both rows."""
    with servers("tenants") as (server,), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = prepare_alembic(server, folder)
        with node(server, folder) as client:
            prepare_ours(server, folder, client)
            with connect(server) as connection:
                connection.execute("CHECKPOINT")
            ours = timed(lambda: upgrade(client))
            peer = timed(lambda: subprocess.run(command, check=True))
            check(server, "ours")
            check(server, "peer")
            idle = min(timed(lambda: upgrade(client)) for _ in range(3))
            idle_peer = timed(lambda: subprocess.run(command, check=True))
    return Sample(ours, peer), Sample(idle, idle_peer)


def updated(server: LocalServer, prefix: str) -> int:
    """How many schemas have all that the update makes."""
    with connect(server) as connection:
        row = connection.execute(
            "SELECT count(*) FROM (SELECT FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE nspname LIKE %s AND relname IN ('item', 'orders_customer')"
            " GROUP BY nspname HAVING count(*) = 2) AS whole",
            [f"{prefix}\\_%"],
        ).fetchone()
    assert row is not None
    return int(row[0])


def check(server: LocalServer, prefix: str) -> None:
    """Every schema has all that the update makes."""
    found = updated(server, prefix)
    if found != TENANTS:
        raise RuntimeError(f"{prefix}: {found} of {TENANTS} schemas are updated")


SETTINGS = """
SECRET_KEY = "throw-away"
SHARED_APPS = ["django_tenants", "django.contrib.contenttypes", "customers"]
TENANT_APPS = ["shop"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
TENANT_MODEL = "customers.Client"
TENANT_DOMAIN_MODEL = "customers.Domain"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {{"default": {{
    "ENGINE": "django_tenants.postgresql_backend", "NAME": "postgres", "USER": "postgres",
    "PASSWORD": {password!r}, "HOST": "127.0.0.1", "PORT": {port},
}}}}
"""
CUSTOMERS = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    auto_create_schema = False


class Domain(DomainMixin):
    pass
"""
MIGRATION = """
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {dependencies!r}
    operations = [migrations.RunSQL(each) for each in {statements!r}]
"""


def prepare_django(server: LocalServer, folder: Path) -> Callable[..., None]:
    """A project of django-tenants with its schemas at the first migration; its manage.py."""
    (folder / "settings.py").write_text(SETTINGS.format(password=server.password, port=server.port))
    for app in ("customers", "shop"):
        (folder / app / "migrations").mkdir(parents=True)
        for each in (folder / app, folder / app / "migrations"):
            (each / "__init__.py").touch()
    (folder / "customers" / "models.py").write_text(textwrap.dedent(CUSTOMERS))
    migrations = folder / "shop" / "migrations"
    (migrations / "0001_orders.py").write_text(
        MIGRATION.format(dependencies=[], statements=[FIRST])
    )

    def manage(*words: str, timeout_s: float | None = None) -> None:
        subprocess.run(
            [sys.executable, "-m", "django", *words],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(folder)},
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=timeout_s,
        )

    manage("makemigrations", "customers")
    manage("migrate_schemas", "--shared")
    table = (
        "CREATE TABLE django_migrations (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
        " app varchar(255) NOT NULL, name varchar(255) NOT NULL, applied timestamptz NOT NULL);"
        "INSERT INTO django_migrations (app, name, applied)"
        " SELECT app, name, now() FROM public.django_migrations WHERE app <> 'shop'"
        " UNION ALL SELECT 'shop', '0001_orders', now()"
    )
    schemas(server, "peer", table)
    with connect(server) as connection:
        connection.execute(
            "INSERT INTO public.customers_client (schema_name) SELECT nspname FROM pg_namespace"
            " WHERE nspname LIKE 'peer\\_%'"
        )
    (migrations / "0002_total.py").write_text(
        MIGRATION.format(dependencies=[("shop", "0001_orders")], statements=list(SECOND))
    )
    return manage


def against_django() -> Iterator[Sample]:
    """Tenants a second in the update: ours to its end, migrate_schemas for :data:`PEER_S` seconds.

    It looks through the whole catalogue for each schema and would take many minutes to its end.
    """
    with servers("tenants") as (server,), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manage = prepare_django(server, folder)
        with node(server, folder) as client:
            prepare_ours(server, folder, client)
            ours = timed(lambda: upgrade(client))
        check(server, "ours")
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            manage("migrate_schemas", "--tenant", timeout_s=PEER_S)
        taken = time.monotonic() - started
        yield Sample(TENANTS / ours, updated(server, "peer") / taken)


ROWS = [
    Row(
        name="tenants",
        what=f"an update of three statements in {TENANTS} schemas",
        unit="s",
        peer="a loop of Alembic",
        target=10,
        target_text=">= 10",
        produce=lambda: iter(against_alembic()[:1]),
        higher_is_better=False,
    ),
    Row(
        name="tenants-idle",
        what=f"a run with nothing to do for {TENANTS} schemas",
        unit="s",
        peer="a loop of Alembic",
        target=100,
        target_text=">= 100",
        produce=lambda: iter(against_alembic()[1:]),
        higher_is_better=False,
    ),
    Row(
        name="tenants-django",
        what=f"an update of three statements in {TENANTS} schemas",
        unit="tenants/s",
        peer=f"{PEER_S:g} s of django-tenants' migrate_schemas",
        target=10,
        target_text=">= 10",
        produce=against_django,
    ),
]
