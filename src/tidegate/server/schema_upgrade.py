"""Keeps the shards' schema `_tidegate` at this program's release, in the background of a node.

Decides when the service of :mod:`tidegate.bootstrap` is asked, and what of its state is a reason
for the node not to be ready: that this program may not upgrade the cluster, or cannot find out.
Single shards that fail are none; `tidegate doctor` and `tidegate upgrade status` show them. Nothing
here ends the node.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import structlog

import tidegate
from tidegate.bootstrap.marker import Marker
from tidegate.bootstrap.model import Member, TenantState
from tidegate.bootstrap.service import Service
from tidegate.bootstrap.shards import TRACK, ShardDirectory, shard_handles
from tidegate.cluster import gate, ledger, member_store
from tidegate.cluster.member_store import MemberStore
from tidegate.errors import CancelledError, TidegateError, UpgradeRefusedError

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.topology.store import TopologyStore

AGAIN_S: Final = 30.0
ENDS_S: Final = 30.0
LOOKING: Final = "the version of the shards' schema is being looked at"
"""The problem of a node that has just started."""

log = structlog.get_logger("tidegate.upgrade")


class SchemaUpgrade:
    """The upgrade service of a node, and the thread that starts it."""

    def __init__(self, database: ClusterDatabase, topology: TopologyStore, *, holder: str) -> None:
        self._database = database
        self._members = MemberStore(database)
        handles = shard_handles()
        self._newest = handles[-1].metadata.version
        self._oldest = handles[0].metadata.min_source
        self.service = Service(
            database,
            handles,
            ShardDirectory(database, topology.read),
            holder=holder,
            track=TRACK,
            # A cluster from before versions were recorded has shards of the first release.
            marker=Marker(in_use=topology.was_changed),
            members=self._living,
        )
        self.problem: str | None = LOOKING
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schema upgrade", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End it; a change of a shard that is under way is waited for."""
        self._closing.set()
        self.service.close()
        if self._thread.is_alive():
            self._thread.join(ENDS_S)

    def findings(self) -> list[dict[str, str]]:
        """What a person should look at, as `tidegate doctor` lists it."""
        if self.problem == LOOKING:
            return []
        if self.problem is not None:
            return [_finding("error", self.problem)]
        status = self.service.status()
        found = [_finding("error", status.problem)] if status.problem else []
        for step in status.steps:
            found += [
                _finding(
                    "warning",
                    f"shard {each.name} was not brought to release {step.step.leg.target} of the"
                    f" schema _tidegate: {each.error}",
                )
                for each in step.trouble
                if each.state is TenantState.FAILED
            ]
        return found

    def finalise(self, *, dry_run: bool = False) -> bool:
        """Close the way back for the shards and for the cluster database; False when it was closed.

        Raises:
            UpgradeRefusedError: members or shards are older; names them.
        """
        with self._database.read() as connection:
            applied = ledger.read(connection)
            members = member_store.active(member_store.read(connection))
        newest = applied[-1].version
        older = [
            member.name
            for member in members
            if member.schema_version < newest
            and not gate.is_left_behind(member.schema_version, applied)
        ]
        if older:
            raise UpgradeRefusedError(
                f"members older than the cluster database run: {', '.join(older)}",
                next_step="upgrade them, or evict those that will not come back",
                blockers=older,
            )
        was_open = self.service.finalise(dry_run=dry_run)
        if dry_run:
            return was_open or any(row.older_works for row in applied)
        with self._database.transaction() as connection:
            return bool(ledger.close_way_back(connection)) or was_open

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.service.bootstrap()
                self.service.bootstrap_upgrade()
            except CancelledError:
                return
            except TidegateError as error:
                self._failed(error.message)
            except Exception as error:
                log.exception("schema upgrade failed")
                self._failed(str(error))
            else:
                self.problem = None
                return
            self._closing.wait(AGAIN_S)

    def _failed(self, why: str) -> None:
        if self.problem != why:
            log.error("schema upgrade not started", why=why)
        self.problem = why

    def _living(self) -> list[Member]:
        """The active members; one of another program counts as knowing the oldest release."""
        return [
            Member(
                member.name,
                self._newest if member.binary_version == tidegate.__version__ else self._oldest,
            )
            for member in self._members.active()
        ]

    def shown(self) -> dict[str, Any]:
        """The state as the API answers it."""
        status = self.service.status()
        row = status.row
        return {
            "program": status.program,
            "version": None if row is None else row.version,
            "state": None if row is None else str(row.state),
            "is_finalised": None if row is None else row.is_finalised,
            "blocked": status.blocked,
            "problem": self.problem or status.problem or None,
            "steps": [
                {
                    "from": step.step.leg.source,
                    "to": step.step.leg.target,
                    "state": str(step.step.state),
                    "ready": step.progress.ready,
                    "total": step.progress.total,
                    "failed": step.progress.failed,
                    "error": step.step.error,
                    "shards": [
                        {
                            "shard": each.name,
                            "state": str(each.state),
                            "attempts": each.attempts,
                            "next_at": each.next_at,
                            "error": each.error,
                        }
                        for each in step.trouble
                    ],
                }
                for step in status.steps
            ],
        }


def waiting(why: str) -> dict[str, Any]:
    """The state as a node answers it that waits for others to be upgraded: it upgrades nothing."""
    return {
        "program": str(shard_handles()[-1].metadata.version),
        "version": None,
        "state": "waiting",
        "is_finalised": None,
        "blocked": why,
        "problem": None,
        "steps": [],
    }


def _finding(severity: str, what: str) -> dict[str, str]:
    return {"severity": severity, "what": what, "next_step": "tidegate upgrade status"}
