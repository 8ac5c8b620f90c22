"""The engine wall: which modules outside it still know PostgreSQL.

Only the engines, the cluster database's stores and the router's adapters may know a driver or the
SQL of a database. Whoever else does is listed here, by what it knows. The lists only shrink: a new
offender fails, and so does an entry that no longer offends.

An import counts wherever it stands, those for type checkers included. SQL of a shard is recognised
in string constants (docstrings left out, f-strings as a whole), by either of

* a statement's keyword in capitals at the beginning, followed by more; BEGIN, COMMIT and ROLLBACK
  alone count too. So does advice that spells a statement out: only the engine can know it;
* a name that only PostgreSQL or our schema at the shards has: ``_tidegate.``, ``pg_catalog.``,
  ``information_schema.``, a call of ``pg_…(``, ``FROM pg_…``.

A fragment of a statement with none of these in it is not recognised.
"""

from __future__ import annotations

import ast
import functools
import re
from enum import Enum
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tidegate"

#: What may know a database: folders end in a slash.
WALL = ("engines/", "cluster/stores/", "router/psycopg.py", "router/sqlalchemy.py")

#: The launcher of local servers is for the demo as well.
LAUNCHER = "tidegate.engines.postgres.local"

#: Whose SQL is that of the cluster database, in the subset that all its engines share.
CLUSTER_SQL = (
    "cluster/",
    "bootstrap/stored.py",
    "bootstrap/tables.py",
    "bootstrap/tenants/runs.py",
    "bootstrap/tenants/store.py",
    "operations/",
    "topology/followers.py",
    "topology/store.py",
    "workflow/store.py",
)

_STATEMENT = re.compile(
    r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|MERGE INTO|WITH \w+ AS|TRUNCATE|CREATE|ALTER"
    r"|DROP|LOCK TABLE|COPY|START TRANSACTION|SAVEPOINT|RELEASE|SET|RESET|SHOW|LISTEN|NOTIFY"
    r"|ANALYZE|VACUUM|REINDEX|GRANT|REVOKE|COMMENT ON|EXPLAIN|DECLARE|FETCH|VALUES|CALL|DO"
    r"|IDENTIFY_SYSTEM|START_REPLICATION|CREATE_REPLICATION_SLOT)\s"
    r"|\s*(?:BEGIN|COMMIT|ROLLBACK)(?:\s|$)"
)
_NAME = re.compile(
    r"\b_tidegate\.|\bpg_catalog\.|\binformation_schema\.|\bpg_[a-z_]+\s*\(|\bFROM pg_[a-z]"
)


class Offence(Enum):
    """What a module knows that only an engine may know."""

    DRIVER = "imports psycopg"
    ENGINE = "imports from tidegate.engines.postgres"
    SQL = "holds SQL of a shard"


def is_sql(text: str) -> bool:
    return bool(_STATEMENT.match(text) or _NAME.search(text))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{each.name}" for each in node.names]
    return []


def texts(node: ast.AST) -> list[str]:
    """The strings below a node: an f-string is one, with ``{}`` for what is put in."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        return ["".join(map(str, parts))]
    return [text for child in ast.iter_child_nodes(node) for text in texts(child)]


def offences_in(source: str) -> set[Offence]:
    tree = ast.parse(source)
    names = [name for node in ast.walk(tree) for name in imported(node)]
    found: set[Offence] = set()
    if any(name.split(".")[0] == "psycopg" for name in names):
        found.add(Offence.DRIVER)
    engine = [n for n in names if f"{n}.".startswith("tidegate.engines.postgres.")]
    if not all(f"{name}.".startswith(f"{LAUNCHER}.") for name in engine):
        found.add(Offence.ENGINE)
    if any(map(is_sql, texts(tree))):
        found.add(Offence.SQL)
    return found


@functools.cache
def offences() -> dict[str, set[Offence]]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(WALL):
            continue
        here = offences_in(path.read_text(encoding="utf-8"))
        if name.startswith(CLUSTER_SQL):
            here.discard(Offence.SQL)
        if here:
            found[name] = here
    return found


#: Modules of which each imports psycopg.
DRIVER: set[str] = {
    "bootstrap/shards.py",
    "bootstrap/tenants/amending.py",
    "bootstrap/tenants/hands.py",
    "bootstrap/tenants/looking.py",
    "bootstrap/tenants/provisioning.py",
    "bootstrap/tenants/trying.py",
    "bootstrap/tenants/undoing.py",
    "bootstrap/tenants/verifying.py",
    "conninfo.py",
    "dataplane/compare.py",
    "dataplane/copy.py",
    "dataplane/retention.py",
    "dataplane/source_tables.py",
    "demo/story.py",
    "demo/verdict.py",
    "demo/world.py",
    "demo/writers.py",
    "server/doctor.py",
    "server/slot_watch.py",
    "server/workflow_figures.py",
    "workflow/relocation.py",
    "workflow/service.py",
    "workflow/sessions.py",
    "workflow/target_tables.py",
    "workflow/vdiff/consistency.py",
    "workflow/vdiff/interruption.py",
    "workflow/vdiff/links.py",
    "workflow/vdiff/service.py",
}

#: Modules of which each imports from tidegate.engines.postgres.
ENGINE: set[str] = {
    "bootstrap/shards.py",
    "bootstrap/tenants/amending.py",
    "bootstrap/tenants/folder.py",
    "bootstrap/tenants/hands.py",
    "bootstrap/tenants/looking.py",
    "bootstrap/tenants/previews.py",
    "bootstrap/tenants/programs.py",
    "bootstrap/tenants/provisioning.py",
    "bootstrap/tenants/registry.py",
    "bootstrap/tenants/sources.py",
    "bootstrap/tenants/trying.py",
    "bootstrap/tenants/undoing.py",
    "bootstrap/tenants/verifying.py",
    "dataplane/apply.py",
    "dataplane/compare.py",
    "dataplane/copy.py",
    "dataplane/copy_work.py",
    "dataplane/fanout.py",
    "dataplane/phases.py",
    "dataplane/reader.py",
    "dataplane/refetch.py",
    "dataplane/retention.py",
    "dataplane/session.py",
    "dataplane/source_tables.py",
    "server/api/topology.py",
    "server/doctor.py",
    "server/slot_watch.py",
    "server/takeover.py",
    "workflow/catalogue.py",
    "workflow/cleanup.py",
    "workflow/complete.py",
    "workflow/identities.py",
    "workflow/model.py",
    "workflow/objects.py",
    "workflow/open_writers.py",
    "workflow/overview.py",
    "workflow/preflight/checks/foreign_keys_cross.py",
    "workflow/preflight/checks/foreign_keys_split.py",
    "workflow/preflight/checks/sharding_type.py",
    "workflow/preflight/facts.py",
    "workflow/preflight/gather.py",
    "workflow/preflight/overlaps.py",
    "workflow/preflight/shape.py",
    "workflow/readiness.py",
    "workflow/recheck.py",
    "workflow/relocation.py",
    "workflow/sessions.py",
    "workflow/status.py",
    "workflow/switch_sequences.py",
    "workflow/switch_steps.py",
    "workflow/target_tables.py",
    "workflow/targets.py",
    "workflow/trial.py",
    "workflow/vdiff/consistency.py",
    "workflow/vdiff/links.py",
    "workflow/vdiff/records.py",
    "workflow/vdiff/run.py",
    "workflow/vdiff/samples.py",
    "workflow/vdiff/service.py",
    "workflow/vdiff/sides.py",
    "workflow/waiting.py",
}

#: Modules of which each holds SQL of a shard.
SQL: set[str] = {
    "bootstrap/shards.py",
    "bootstrap/tenants/verifying.py",
    "bootstrap/tenants/worker/tidegate_alembic.py",
    "bootstrap/tenants/worker/tidegate_function.py",
    "bootstrap/tenants/worker/tidegate_session.py",
    "dataplane/apply.py",
    "dataplane/compare.py",
    "dataplane/copy.py",
    "dataplane/refetch.py",
    "dataplane/source_tables.py",
    "demo/verdict.py",
    "demo/world.py",
    "demo/writers.py",
    "topology/vindexes/pg_hash.py",
    "topology/vindexes/pg_types.py",
    "workflow/preflight/checks/sharding_nullable.py",
}

LISTED = {Offence.DRIVER: DRIVER, Offence.ENGINE: ENGINE, Offence.SQL: SQL}


@pytest.mark.parametrize("offence", Offence, ids=lambda each: each.name.lower())
def test_no_further_module_knows_postgresql(offence: Offence) -> None:
    found = {name for name, here in offences().items() if offence in here}
    new = sorted(found - LISTED[offence])
    assert not new, f"{offence.value}, which belongs to engines/postgres: {', '.join(new)}"


@pytest.mark.parametrize("offence", Offence, ids=lambda each: each.name.lower())
def test_each_module_on_the_lists_still_offends(offence: Offence) -> None:
    found = {name for name, here in offences().items() if offence in here}
    over = sorted(LISTED[offence] - found)
    assert not over, f"take these off the list {offence.name}: {', '.join(over)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import psycopg", {Offence.DRIVER}),
        ("def f():\n    from psycopg import sql", {Offence.DRIVER}),
        ("if TYPE_CHECKING:\n    from psycopg.rows import TupleRow", {Offence.DRIVER}),
        ("from tidegate.engines.postgres import slots", {Offence.ENGINE}),
        ("from tidegate.engines import postgres", {Offence.ENGINE}),
        ("import tidegate.engines.postgres.copy as wire", {Offence.ENGINE}),
        ("from tidegate.engines.postgres.local import LocalServer", set()),
        ("from tidegate.engines.postgres import local", set()),
        ("from tidegate.engines import seam", set()),
        ("x = f'UPDATE {table}'", {Offence.SQL}),
        ("x = f'{change} FROM it'", set()),
        ("x = f'{a} IN (SELECT id FROM _tidegate.stream)'", {Offence.SQL}),
        ("x = 'give it the role: GRANT pg_monitor TO x; pg_reload_conf()'", {Offence.SQL}),
        ("'''SELECT in a docstring'''", set()),
        ("x = 'Select the shard to copy'", set()),
        ("x = 'CREATE'", set()),
        ("x = 'COMMIT'", {Offence.SQL}),
    ],
)
def test_what_counts_as_an_offence(source: str, expected: set[Offence]) -> None:
    assert offences_in(source) == expected
