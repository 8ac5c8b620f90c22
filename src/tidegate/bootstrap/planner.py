"""Plans an upgrade: reads the table of versions, decides, and writes the row and its steps.

One transaction, so that of several nodes that start together one plans and the others find its row.
A route that does not lead to the newest version is refused inside it, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import IntegrityError

from tidegate import steps
from tidegate.bootstrap.model import UpgradeState, Version
from tidegate.bootstrap.planning import (
    Decision,
    Found,
    Nothing,
    Plan,
    Refuse,
    Supersede,
    decide,
)
from tidegate.bootstrap.route import plan_route
from tidegate.bootstrap.work import log
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from tidegate.bootstrap.model import Member, VersionRow
    from tidegate.bootstrap.work import Work

PLANNED = steps.declare(
    "bootstrap.planned",
    runs_in="node",
    plan="bootstrap",
    description="the upgrade's row and all of its steps are recorded",
)


@dataclass(frozen=True)
class Planner[C]:
    """Plans the upgrades of a service."""

    work: Work[C]

    def plan(self, *, supersede: bool = False, dry_run: bool = False) -> Decision:
        """Plan the upgrade to this program's version, if there is one to plan.

        Args:
            supersede: an upgrade that is stuck may be set aside.
            dry_run: decide and write all of it, and roll it back.

        Returns:
            :class:`Plan` or :class:`Nothing`.

        Raises:
            UpgradeRefusedError: this program may not upgrade the cluster; nothing was written.
            ConflictError: another node planned at the same time; try again.
        """
        members = self.work.members()
        try:
            with self.work.database.transaction() as connection:
                decision = self._decide(connection, members, supersede=supersede)
                if dry_run:
                    connection.rollback()
                    return decision
        except IntegrityError as error:
            raise ConflictError(
                "another node recorded a version at the same time", next_step="try again"
            ) from error
        if isinstance(decision, Plan):
            steps.reached(PLANNED)
            log.info("upgrade planned", version=self.work.final.version)
        return decision

    def _decide(
        self, connection: Connection, members: Sequence[Member], *, supersede: bool
    ) -> Decision:
        store, final = self.work.store, self.work.final
        # Founding and superseding each make the next look find something else.
        for _ in range(3):
            latest = store.latest(connection, lock=True)
            recorded = {row.identity for row in store.versions(connection)}
            decision = decide(
                latest,
                final,
                recorded,
                members=members,
                supersede=supersede,
            )
            match decision:
                case Refuse():
                    raise decision.error()
                case Nothing():
                    return decision
                case Plan():
                    self._write(connection, latest, decision)
                    return decision
                case Found():
                    self._found(connection)
                case Supersede(row):
                    now = self.work.database.now(connection)
                    store.move_version(connection, row, UpgradeState.SUPERSEDED, now)
                    log.warning("upgrade superseded", version=row.version, offset=row.offset)
        raise AssertionError("planning did not end")

    def _found(self, connection: Connection) -> None:
        """Record the version that a cluster had before versions were recorded."""
        founder = self.work.versions[0]
        self.work.handles[founder.version].create_framework_dependencies(connection)
        self.work.store.add_version(
            connection,
            Version(founder.min_source, founder.min_source),
            UpgradeState.READY,
            finalised=True,
            now=self.work.database.now(connection),
        )

    def _write(self, connection: Connection, latest: VersionRow | None, plan: Plan) -> None:
        store, now = self.work.store, self.work.database.now(connection)
        source = store.newest_ready(connection)
        assert source is not None, "a ready row was there a moment ago"
        legs = plan_route(source.version, self.work.versions)
        if plan.finalises:
            assert latest is not None
            store.finalise(connection, latest, now)
        sequence = store.add_version(
            connection, self.work.final, UpgradeState.CREATED, finalised=False, now=now
        )
        store.add_steps(connection, sequence, legs)
