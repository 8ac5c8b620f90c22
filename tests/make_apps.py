"""Applications as users have them: an Alembic environment, a Django project, a Python function."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: How an env.py may get its connection.
ENV_ATTRIBUTES = """
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config


def run(connection):
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


connection = config.attributes.get("connection")
if connection is not None:
    run(connection)
else:
    engine = engine_from_config(
        config.get_section(config.config_ini_section), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        run(connection)
"""
#: As `alembic init` writes it.
ENV_GENERIC = """
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config
connectable = engine_from_config(
    config.get_section(config.config_ini_section, {}),
    prefix="sqlalchemy.",
    poolclass=pool.NullPool,
)
with connectable.connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
ENV_VARIABLE = """
import os

from alembic import context
from sqlalchemy import create_engine

with create_engine(os.environ["SHOP_DATABASE_URL"]).connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""

REVISIONS = {
    "a1_orders": """
        revision, down_revision = "a1", None

        def upgrade():
            op.create_table("orders", sa.Column("id", sa.BigInteger, primary_key=True))
    """,
    "b2_note": """
        revision, down_revision = "b2", "a1"

        def upgrade():
            op.add_column("orders", sa.Column("note", sa.Text))
            op.create_index("orders_note", "orders", ["note"])

        def downgrade():
            op.drop_column("orders", "note")
    """,
}


def add_revision(folder: Path, name: str, body: str) -> None:
    head = "import sqlalchemy as sa\nfrom alembic import op\n\n"
    path = folder / "alembic" / "versions" / f"{name}.py"
    path.write_text(head + textwrap.dedent(body))


def make_alembic(folder: Path, env: str = ENV_ATTRIBUTES) -> str:
    """An Alembic environment; the address of its source."""
    (folder / "alembic" / "versions").mkdir(parents=True)
    (folder / "alembic" / "env.py").write_text(env)
    ini = folder / "alembic.ini"
    ini.write_text(
        "[alembic]\nscript_location = %(here)s/alembic\npath_separator = os\n"
        "sqlalchemy.url = postgresql://nobody@nowhere.invalid/none\n"
    )
    for name, body in REVISIONS.items():
        add_revision(folder, name, body)
    return f"alembic:{ini}"


def make_django(folder: Path) -> str:
    """A Django project with one app; the address of its source."""
    app = folder / "shop"
    (app / "migrations").mkdir(parents=True)
    for each in (app, app / "migrations"):
        (each / "__init__.py").touch()
    (folder / "settings.py").write_text(
        textwrap.dedent(
            """
            SECRET_KEY = "throw-away"
            INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
            DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}}
            DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
            USE_TZ = True
            """
        )
    )
    (app / "models.py").write_text(
        textwrap.dedent(
            """
            from django.db import models


            class Order(models.Model):
                note = models.TextField(null=True)
            """
        )
    )
    (app / "migrations" / "0001_initial.py").write_text(
        textwrap.dedent(
            """
            from django.db import migrations, models


            class Migration(migrations.Migration):
                initial = True
                dependencies = []
                operations = [
                    migrations.CreateModel(
                        "Order", [("id", models.BigAutoField(primary_key=True))]
                    ),
                ]
            """
        )
    )
    add_django_migration(folder)
    return "django:settings"


def add_django_migration(
    folder: Path,
    name: str = "0002_note",
    after: str = "0001_initial",
    operation: str = 'migrations.AddField("Order", "note", models.TextField(null=True))',
) -> None:
    path = folder / "shop" / "migrations" / f"{name}.py"
    path.write_text(
        "from django.db import migrations, models\n\n\n"
        "class Migration(migrations.Migration):\n"
        f'    dependencies = [("shop", "{after}")]\n'
        f"    operations = [{operation}]\n"
    )


def make_function(folder: Path, body: str, versions: str = '("1", "2")') -> str:
    """A module with a function; the address of its source."""
    folder.mkdir(exist_ok=True)
    (folder / "upgrades.py").write_text(
        f"VERSIONS = {versions}\n\n\n"
        "def migrate(connection, tenant):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    )
    return "python:upgrades:migrate"
