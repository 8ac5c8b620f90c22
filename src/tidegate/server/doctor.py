"""What a person should look at first: unreachable databases, slots that retain log, ill workers.

Decides which facts are findings and how they rank: the slot that retains most comes first, because
it is what fills a disk. It changes nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import psycopg
import structlog

from tidegate.engines.postgres import slots
from tidegate.engines.postgres.connection import connect, log_decodes, server_facts
from tidegate.errors import TidegateError
from tidegate.server import logs
from tidegate.server.slot_watch import NEXT_STEP
from tidegate.topology.connections import Endpoint, redacted
from tidegate.workflow.model import replication_name

if TYPE_CHECKING:
    from tidegate.dataplane.model import Direction
    from tidegate.server.services import Services
    from tidegate.topology.records import Tablet
    from tidegate.workflow.model import Workflow

PARALLEL: Final = 8
UNREADY: Final = "mend what is named; /readyz says when the node is ready, its log since when not"
RETAINED_LARGE_BYTES: Final = 10 * 1024**3

log = structlog.get_logger("tidegate.doctor")


def examine(services: Services) -> dict[str, Any]:
    """Look at every tablet and every worker."""
    snapshot = services.store.read()
    workflows = services.records.all()
    tablets = [tablet for _, tablet in sorted(snapshot.tablets.items())]
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="doctor") as pool:
        databases = list(pool.map(_database, tablets))
    owners = _owners(workflows)
    # Several tablets may be one server: each slot is listed once, under the first that shows it.
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for database in databases:
        for slot in database.pop("slots", []):
            slot["workflow"] = owners.get(slot["slot"])
            found.setdefault((database.get("system_identifier", ""), slot["slot"]), slot)
    ranked = sorted(found.values(), key=lambda slot: -int(slot["retained_bytes"]))
    spans = services.supervisor.status()
    return {
        "databases": databases,
        "slots": ranked,
        "spans": spans,
        "findings": [
            *_findings(databases, ranked, spans),
            *_unfinished(workflows),
            *_unready(services),
            *_alarms(services),
            *services.upgrade.findings(),
        ],
    }


def _owners(workflows: list[Workflow]) -> dict[str, str]:
    def names(workflow: Workflow, direction: Direction) -> list[str]:
        return [
            replication_name(workflow, direction, shard) for shard in workflow.shards(direction)[0]
        ]

    return {
        name: workflow.key
        for workflow in workflows
        for direction in {stream.direction for stream in workflow.streams}
        for name in names(workflow, direction)
    }


def _database(tablet: Tablet) -> dict[str, Any]:
    shown: dict[str, Any] = {"tablet": tablet.alias, "shard": f"{tablet.keyspace}/{tablet.shard}"}
    try:
        with connect(Endpoint(tablet.conninfo, tablet.secret), purpose="doctor") as connection:
            facts = server_facts(connection)
            kept = slots.own_slots(connection)
    except TidegateError as error:
        notes = getattr(error, "__notes__", [])
        log.warning("database not reached", tablet=tablet.alias, error=error.message, notes=notes)
        return {**shown, "reachable": False, "error": error.message}
    except psycopg.Error as error:
        return {**shown, "reachable": False, "error": redacted(str(error)).strip()}
    return {
        **shown,
        "reachable": True,
        "system_identifier": facts.system_identifier,
        "server_version_num": facts.version_num,
        "wal_level": facts.wal_level,
        "free_slots": facts.free_slots,
        "slots": [
            {
                "slot": slot.name,
                "tablet": tablet.alias,
                "retained_bytes": slot.retained_bytes,
                "active": slot.active_pid is not None,
                "lost": slot.lost,
            }
            for slot in kept
        ],
    }


def _findings(
    databases: list[dict[str, Any]], ranked: list[dict[str, Any]], spans: list[dict[str, Any]]
) -> list[dict[str, str]]:
    found = [
        *map(_of_database, databases),
        *map(_of_slot, ranked),
        *map(_of_span, spans),
    ]
    return [finding for finding in found if finding is not None]


def _of_database(database: dict[str, Any]) -> dict[str, str] | None:
    alias = database["tablet"]
    if not database["reachable"]:
        return _finding(
            "error",
            f"tablet {alias} cannot be reached: {database['error']}",
            f"tidegate tablet show {alias}",
        )
    if not log_decodes(database["server_version_num"] // 10000, database["wal_level"]):
        return _finding(
            "warning",
            f"the server of tablet {alias} has wal_level {database['wal_level']}: nothing can be"
            " moved out of it",
            "set wal_level = logical there and restart it",
        )
    return None


def _of_slot(slot: dict[str, Any]) -> dict[str, str] | None:
    name, retained = slot["slot"], slot["retained_bytes"]
    if slot["lost"]:
        return _finding(
            "error",
            f"slot {name} has lost log that its stream still needs",
            "cancel the workflow and create it again",
        )
    if slot["workflow"] is None:
        return _finding(
            "warning",
            f"slot {name} at {slot['tablet']} belongs to no workflow of this node and retains"
            f" {retained} bytes of log",
            f"if no other node needs it: {slots.TO_DROP} there",
        )
    if retained > RETAINED_LARGE_BYTES:
        return _finding(
            "warning",
            f"slot {name} of workflow {slot['workflow']} retains {retained} bytes of log",
            "let its stream catch up, or cancel the workflow",
        )
    return None


def _of_span(span: dict[str, Any]) -> dict[str, str] | None:
    reason = span["error"] or span["last_event"].get("message") or "see its log"
    if span["held"]:
        return _finding(
            "error",
            f"span {span['span']} stopped for good: {reason}",
            "mend the cause, then `tidegate workflow start`",
        )
    if span["failures"]:
        return _finding(
            "warning",
            f"span {span['span']} failed {span['failures']} times in a row: {reason}",
            "tidegate workflow status",
        )
    return None


def _unready(services: Services) -> list[dict[str, str]]:
    """Why the node cannot take work: its disk, its log, its lease, what is not taken up yet."""
    why, unlogged = services.ready(), logs.problem()
    found = [] if why is None else [_finding("error", f"the node is not ready: {why}", UNREADY)]
    if unlogged is not None:
        found.append(_finding("error", unlogged, "make room where the node's standard error goes"))
    return found


def _alarms(services: Services) -> list[dict[str, str]]:
    """Slots that keep too much log, as the watch saw them last."""
    return [
        _finding(
            "error",
            f"slot {each.slot.slot} of workflow {each.workflow}: {each.slot.alarm}",
            NEXT_STEP,
        )
        for each in services.slots.observed()
        if each.slot.alarm
    ]


def _unfinished(workflows: list[Workflow]) -> list[dict[str, str]]:
    return [
        _finding(
            "warning",
            f"workflow {workflow.key}: operation {workflow.operation.kind} has not ended:"
            f" {workflow.operation.error}",
            f"tidegate workflow show -w {workflow.name} -t {workflow.target_keyspace}",
        )
        for workflow in workflows
        if workflow.operation is not None and workflow.operation.error
    ]


def _finding(severity: str, what: str, next_step: str) -> dict[str, str]:
    return {"severity": severity, "what": what, "next_step": next_step}
