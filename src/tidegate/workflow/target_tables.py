"""The tables of a workflow at its targets: planned, made together with their fence, removed.

Decides which tables are made, which are expected to be there, and what may be removed again: only
tables that the workflow made and that still carry its fence, and what was made beside them. How a
schema is copied is :mod:`tidegate.engines.postgres.schema_copy`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from psycopg import sql

from tidegate.engines.postgres import (
    fence,
    schema_copy,
    schema_make,
    support_removal,
    table_removal,
)
from tidegate.engines.postgres.sidecar import copy_state
from tidegate.topology.names import TableName
from tidegate.workflow import cleanup
from tidegate.workflow.objects import at_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.engines.postgres.schema_copy import SchemaPlan
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.postgres.surroundings import Change
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.preflight.facts import Facts
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.work import Work

type Made = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TargetPlan:
    """What is made at every target; ``support``: beside the tables, by shard.

    ``changes``: settings and grants around the tables, by shard.
    """

    schema: SchemaPlan | None = None
    created: tuple[str, ...] = ()
    support: Mapping[str, Made] = field(default_factory=dict)
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        """For plans that are only taken back."""
        return cls()

    def lines(self, workflow: Workflow) -> tuple[str, ...]:
        """What a dry run prints."""
        listing = [] if self.schema is None else self.schema.listing()
        left_out = [] if self.schema is None else self.schema.left_out
        expected = sorted(set(workflow.tables) - set(self.created)) if self.schema else []
        return (
            *(
                f"create on {workflow.target_keyspace}/{shard}: {line}"
                for shard in workflow.target_shards
                for line in listing
            ),
            *(
                f"run on {workflow.target_keyspace}/{shard}: {change.statement}"
                for shard, changes in sorted(self.changes.items())
                for change in changes
            ),
            *(f"do not carry {what}" for what in left_out),
            *(f"expect table {table} to be there, empty" for table in expected),
            *(
                f"fence {', '.join(workflow.tables)} on {workflow.target_keyspace}/{shard}"
                for shard in workflow.target_shards
            ),
        )


def plan(sessions: Sessions, workflow: Workflow, facts: Facts) -> TargetPlan:
    """Read how to make the tables that the targets lack; nothing is changed."""
    there = {name for target in facts.targets for name in target.tables}
    missing = [name for name in facts.wanted if name not in there]
    if workflow.options.skip_schema_copy or not missing:
        return TargetPlan()
    source = sessions.endpoint(workflow.source_keyspace, workflow.source_shards[0])
    chosen = {choice.name: choice for choice in workflow.identities}
    schema = schema_copy.plan_schema(source, missing, facts.reached, chosen)
    support = sessions.each(
        workflow.target_keyspace,
        workflow.target_shards,
        lambda _s, session: tuple(support_removal.absent(session, schema)),
    )
    changes = {
        shard: tuple(each for each in found if not each.held_back)
        for shard, found in facts.changes.items()
    }
    made = {
        shard: (*found, *((support_removal.UNDO, c.undo) for c in changes.get(shard, ())))
        for shard, found in support.items()
    }
    return TargetPlan(schema, tuple(sorted(map(str, missing))), made, changes)


def make(work: Work, target_plan: TargetPlan) -> None:
    """Make the missing tables with their fence, fence those that are there, plan what comes later.

    Raises:
        FailedPreconditionError, AlreadyExistsError: the target does not allow it.
    """

    def make_one(shard: str, session: PostgresSession) -> None:
        workflow, schema = work.workflow, target_plan.schema
        if schema is not None:
            schema_make.create_tables(
                session, schema, workflow_uuid=workflow.uuid, workflow=workflow.name
            )
        everything = tuple(map(TableName.parse, workflow.tables))
        if schema is None or set(schema.tables) != set(everything):
            fence.arm(
                session,
                workflow.uuid,
                "target",
                everything,
                workflow=workflow.name,
                denying=True,
            )
        if schema is not None:
            _plan_actions(session, workflow, schema)
        for change in target_plan.changes.get(shard, ()):
            session.execute(sql.SQL(change.statement))

    at_target(work, make_one)


def _plan_actions(session: PostgresSession, workflow: Workflow, schema: SchemaPlan) -> None:
    """What waits for the rows is recorded where they will be; indexes may be made at once."""
    actions = [(table, "after_catchup", ddl) for table, ddl in schema.after_catchup]
    if workflow.options.defer_secondary_keys:
        actions = [(t, "after_copy", ddl) for t, ddl in schema.after_copy] + actions
    else:
        for _, ddl in schema.after_copy:
            session.execute(sql.SQL(ddl))
    copy_state.plan_actions(session, workflow.uuid, actions)


def remove(work: Work) -> None:
    """Drop what the workflow made and empty what it only filled; repeatable."""

    def remove_one(shard: str, session: PostgresSession) -> None:
        if fence.state(session, work.workflow.uuid, "target") is None:
            return
        made = set(map(TableName.parse, work.workflow.created_tables))
        mine = cleanup.fenced_tables(work, session, "target")
        support = work.workflow.created_support.get(shard, ())
        support_removal.remove(session, support)  # views, and functions of row types, come first
        table_removal.drop(session, [table for table in mine if table in made])
        table_removal.empty(session, [table for table in mine if table not in made])
        support_removal.remove(session, support)

    at_target(work, remove_one)
