"""Moves the tables of real applications: how far does each schema of a folder get?

    .venv/bin/python scripts/applications.py FOLDER [-o json] [--follow-advice] [--only NAME,NAME]

FOLDER holds one SQL file or one sub-folder of SQL files, applied in order of their names, for each
application; psql's own commands may be in them. Each application gets a database of its own on two
throw-away servers, a few generated rows in every table, and one MoveTables: dry runs until one
admits the tables that are left, then copy, compare, switch, reverse, and complete or cancel. With
--follow-advice, foreign keys are dropped and triggers left out where a refusal says so.
One line for each application is printed; a failure ends only its own application.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from filler import TABLES, fill
from psycopg import sql
from psycopg.rows import dict_row

from tidegate.demo.node import Node
from tidegate.engines.postgres.local import LocalServer, local_folder
from tidegate.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.client import Client

LOAD_TIMEOUT_S = 180.0
STEP_TIMEOUT_S = 120.0
APPLICATION_TIMEOUT_S = 600
DRY_RUNS_MAX = 12
POLL_S = 0.1
WORKFLOW = "move"
#: Functions of the application's own, by language.
FUNCTIONS = """
SELECT l.lanname, count(*) FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')
AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
GROUP BY 1 ORDER BY 1
"""


@dataclass
class Result:
    """What became of one application."""

    name: str
    tables: int = 0
    empty: int = 0
    load_errors: list[str] = field(default_factory=list)
    functions: dict[str, int] = field(default_factory=dict)
    movable: int = 0
    dry_runs: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    advice: dict[str, Any] = field(default_factory=dict)
    outcome: str = "not begun"
    seconds: float = 0.0

    def __str__(self) -> str:
        found = " ".join(f"{name}:{count}" for name, count in sorted(self.findings.items()))
        return (
            f"{self.name}: {self.tables} tables ({self.empty} empty),"
            f" {sum(self.functions.values())} functions, {len(self.load_errors)} errors of psql,"
            f" {self.movable} movable after {self.dry_runs} dry runs"
            f" [{found}], {self.outcome}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Site:
    """Two servers and a node."""

    servers: tuple[LocalServer, LocalServer]
    client: Client

    def connect(self, side: int, name: str) -> psycopg.Connection[dict[str, Any]]:
        """A superuser's connection to a database."""
        server = self.servers[side]
        return psycopg.connect(
            server.conninfo(name), password=server.password, autocommit=True, row_factory=dict_row
        )


@contextlib.contextmanager
def started() -> Iterator[Site]:
    """The servers with their roles and the node; everything is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="applications-", dir=local_folder()))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        slots = {"max_replication_slots": "60", "max_wal_senders": "60", "fsync": "off"}
        servers = [LocalServer.create(name, settings=slots) for name in ("source", "target")]
        for server in servers:
            stack.callback(server.destroy)
            server.start()
            with psycopg.connect(server.conninfo(), password=server.password) as connection:
                for role, attributes in (("app", ""), ("tidegate", "SUPERUSER REPLICATION")):
                    connection.execute(
                        f"CREATE ROLE {role} LOGIN {attributes} PASSWORD '{servers[0].password}'"
                    )
        node = Node.start(folder / "node", local_folder())
        stack.callback(node.stop)
        client = stack.enter_context(node.client())
        client.cell.create("local")
        yield Site((servers[0], servers[1]), client)


def load(site: Site, path: Path, result: Result) -> None:
    """Make the databases, apply the files as the role that owns everything, fill the tables."""
    for side in (0, 1):
        with site.connect(side, "postgres") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER app").format(sql.Identifier(result.name))
            )
    server = site.servers[0]
    with site.connect(0, "postgres") as connection:
        connection.execute("ALTER ROLE app SUPERUSER")  # some schemas make functions in C
    try:
        files = sorted(path.rglob("*.sql")) if path.is_dir() else [path]
        command = [server.programs.path("psql"), "-X", "-q"]
        done = subprocess.run(
            [*command, *(word for file in files for word in ("-f", str(file)))],
            env={
                **server.environment(result.name),
                "PGUSER": "app",
                "PGPASSWORD": site.servers[0].password,
                "PGOPTIONS": "-c client_min_messages=error",
            },
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LOAD_TIMEOUT_S,
        )
    finally:
        with site.connect(0, "postgres") as connection:
            connection.execute("ALTER ROLE app NOSUPERUSER")
    result.load_errors = [line for line in done.stderr.splitlines() if "ERROR:" in line]


def names_of(table: dict[str, Any]) -> str:
    """A table as requests and findings name it."""
    schema, name = table["schema"], table["name"]
    return str(name) if schema == "public" else f"{schema}.{name}"


def named_by(finding: dict[str, Any], tables: set[str]) -> set[str]:
    """The tables that a finding names: as its object, else in its message."""
    for text in (finding["object"], finding["message"]):
        words = set(re.findall(r"[\w.]+", text.replace("public.", "")))
        # A trigger or column follows its table's name after a dot.
        words |= {word.rpartition(".")[0] for word in words}
        if found := words & tables:
            return found
    return set()


def admitted(site: Site, result: Result, tables: set[str], *, follow: bool) -> set[str]:
    """The tables that a dry run admits, after leaving out those that refusals name.

    With ``follow``, foreign keys are dropped and triggers left out first, as refusals advise.
    """
    counted: Counter[str] = Counter()
    while tables and result.dry_runs < DRY_RUNS_MAX:
        result.dry_runs += 1
        try:
            answer = create(site, result, tables, dry_run=True)
        except PreflightError as error:
            refusing = [f for f in error.details["findings"] if f["severity"] == "error"]
            result.refusals += refusing
            counted.update(f["id"] for f in refusing)
            left = [f for f in refusing if not (follow and followed(site, result, f))]
            dropped = set().union(*(named_by(f, tables) for f in left))
            tables = tables - dropped
            if left and not dropped:
                break
        else:
            counted.update(f["id"] for f in answer["findings"])
            result.findings = dict(counted)
            return tables
    result.findings = dict(counted)
    return set()


def followed(site: Site, result: Result, finding: dict[str, Any]) -> bool:
    """Do what a finding says is to be done, word by word; False when it asks for something else."""
    advice = finding["next_step"]
    if statement := re.search(r"ALTER TABLE .* DROP CONSTRAINT .*", advice):
        with site.connect(0, result.name) as connection:
            connection.execute(statement[0].encode())
        return True
    if trigger := re.search(r"--leave-out-triggers ([^)]+)", advice):
        result.advice.setdefault("leave_out_triggers", []).append(trigger[1])
        return True
    if allowed := re.search(r"--allow ([A-Z0-9-]+)", advice):
        result.advice.setdefault("allow", []).append(allowed[1])
        return True
    return False


def create(site: Site, result: Result, tables: set[str], *, dry_run: bool) -> dict[str, Any]:
    """`movetables create` of the tables."""
    advice = {option: sorted(set(values)) for option, values in result.advice.items()}
    triggers = [t for t in advice.pop("leave_out_triggers", []) if t.rpartition(".")[0] in tables]
    return site.client.movetables.create(
        WORKFLOW,
        f"{result.name}-to",
        source_keyspace=f"{result.name}-from",
        tables=sorted(tables),
        set_identity=True,
        dry_run=dry_run,
        leave_out_triggers=triggers,
        **advice,
    )


def rows_at(site: Site, side: int, result: Result, tables: set[str]) -> int:
    """How many rows the tables have."""
    total = 0
    with site.connect(side, result.name) as connection:
        for table in connection.execute(TABLES).fetchall():
            if names_of(table) in tables:
                name = sql.Identifier(table["schema"], table["name"])
                row = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(name))
                total += row.fetchall()[0]["n"]
    return total


def move(site: Site, result: Result, tables: set[str], *, complete: bool) -> None:
    """Copy, compare, switch, reverse, then switch and complete, or cancel; every row is counted."""
    client, target = site.client, f"{result.name}-to"

    def step(name: str, action: Callable[[], Any]) -> Any:
        result.outcome = f"failed at {name}"
        return action()

    before = step("count", lambda: rows_at(site, 0, result, tables))
    step("create", lambda: create(site, result, tables, dry_run=False))
    step("copy", lambda: in_step(client, target))
    uuid = step("vdiff", lambda: client.vdiff.create(WORKFLOW, target)["uuid"])
    report = client.vdiff.wait(WORKFLOW, target, uuid, timeout_s=STEP_TIMEOUT_S)
    if report["State"] != "completed" or report["HasMismatch"]:
        raise RuntimeError(f"{report['State']}, {report['Errors']}")
    step("switch", lambda: client.workflow.switch_traffic(WORKFLOW, target))
    step("way back", lambda: in_step(client, target))
    step("reverse", lambda: client.workflow.reverse_traffic(WORKFLOW, target))
    step("way there", lambda: in_step(client, target))
    if complete:
        step("second switch", lambda: client.workflow.switch_traffic(WORKFLOW, target))
        # What stays behind may lean on the old tables: a view, for instance.
        keep = "TG-PF-225" in result.findings
        step("complete", lambda: client.workflow.complete(WORKFLOW, target, keep_data=keep))
    else:
        step("cancel", lambda: client.workflow.cancel(WORKFLOW, target))
    after = step("last count", lambda: rows_at(site, int(complete), result, tables))
    if after != before:
        raise RuntimeError(f"{before} rows before, {after} afterwards")
    left = step("look for traces", lambda: traces(site, result))
    if left:
        raise RuntimeError(f"left behind: {left}")
    result.outcome = f"{'completed' if complete else 'cancelled'}, {before} rows"


def in_step(client: Client, keyspace: str) -> None:
    """Wait until the streams that run have applied everything; bounded."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while True:
        status = client.workflow.status(WORKFLOW, keyspace)
        if status["state"] == "error":
            raise RuntimeError(str(status["streams"]))
        lag = status["max_lag_s"]
        if status["state"] in {"running", "switched"} and lag is not None and lag < 1.5:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in step: {status}")
        time.sleep(POLL_S)


def traces(site: Site, result: Result) -> list[str]:
    """Slots and publications that a workflow which ended should have removed."""
    found = []
    for side in (0, 1):
        with site.connect(side, result.name) as connection:
            rows = connection.execute(
                "SELECT slot_name::text AS n FROM pg_replication_slots WHERE database = %s"
                " UNION ALL SELECT pubname::text FROM pg_publication WHERE pubname LIKE '%%tide%%'",
                [result.name],
            )
            found += [row["n"] for row in rows]
    return found


def try_out(site: Site, path: Path, number: int, options: argparse.Namespace) -> Result:
    """Everything about one application."""
    result = Result(re.sub(r"\W", "", path.stem.lower()))
    begun = time.monotonic()
    try:
        result.outcome = "failed at load"
        load(site, path, result)
        with site.connect(0, result.name) as connection:
            result.empty = fill(connection, options.rows)
            tables = connection.execute(TABLES).fetchall()
            counts = connection.execute(FUNCTIONS).fetchall()
        result.tables = len(tables)
        result.functions = {row["lanname"]: row["count"] for row in counts}
        result.outcome = "failed at tablets"
        for side, keyspace in enumerate((f"{result.name}-from", f"{result.name}-to")):
            site.client.keyspace.create(keyspace, shards=["-"])
            site.client.tablet.create(
                f"local-{2 * number + side + 1}",
                keyspace=keyspace,
                shard="-",
                conninfo=site.servers[side].conninfo(result.name, "tidegate"),
                secret=site.servers[0].secret,
            )
        result.outcome = "failed at dry run"
        keyed = {names_of(t) for t in tables if t["keyed"]}
        movable = admitted(site, result, keyed, follow=options.follow_advice)
        result.movable = len(movable)
        if movable:
            move(site, result, movable, complete=number % 2 == 0)
        else:
            result.outcome = "refused"
    except Exception as error:  # noqa: BLE001 - a failure ends only its own application
        result.outcome += f": {type(error).__name__}: {error}"
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def too_late(*_signal: object) -> None:
    """Raised in the main thread when an application takes too long."""
    raise TimeoutError(f"{APPLICATION_TIMEOUT_S} s are over")


def main() -> int:
    """Exit status: 1 when an application that was admitted did not get through."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--only", default="", help="names of applications, with commas")
    parser.add_argument("--rows", type=int, default=20, help="generated for each table")
    parser.add_argument("--follow-advice", action="store_true", help="of refusals, to move more")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    paths = [p for p in sorted(options.folder.iterdir()) if not only or p.stem in only]
    failed = 0
    signal.signal(signal.SIGALRM, too_late)
    with started() as site:
        for number, path in enumerate(paths):
            signal.alarm(APPLICATION_TIMEOUT_S)
            result = try_out(site, path, number, options)
            signal.alarm(0)
            failed += result.outcome.startswith("failed")
            print(json.dumps(asdict(result)) if options.output == "json" else result, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
