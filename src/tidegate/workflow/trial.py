"""Tries a creation at its targets before it is admitted, and gives things other owners if asked to.

Decides what is tried again after ownership was changed. How it is tried is decided in
:mod:`tidegate.engines.postgres.rehearsal`; what the outcome means, by the checks of the preflight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.engines.postgres import rehearsal, schema_owners
from tidegate.engines.postgres.checks import foreign_owner
from tidegate.engines.postgres.facts import HandedOver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidegate.engines.postgres.rehearsal import Rehearsal
    from tidegate.engines.postgres.schema_copy import SchemaPlan
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.target_tables import TargetPlan


def tried(
    sessions: Sessions,
    workflow: Workflow,
    request: PreflightRequest,
    facts: Facts,
    plan: TargetPlan,
) -> tuple[Facts, TargetPlan]:
    """The facts with what a trial at each target showed, and the plan that was tried last.

    Raises:
        ConnectError: a target cannot be reached.
    """
    facts = _shown_to_event_triggers(sessions, facts)
    if plan.schema is None:
        return facts, plan

    def rehearse(schema: SchemaPlan) -> Mapping[str, Rehearsal]:
        return sessions.each(
            workflow.target_keyspace,
            workflow.target_shards,
            lambda _shard, session: rehearsal.rehearse(
                session, schema, workflow_uuid=workflow.uuid, workflow=workflow.name
            ),
        )

    facts, schema = tried_schema(request, facts, plan.schema, rehearse)
    return facts, replace(plan, schema=schema)


def _shown_to_event_triggers(sessions: Sessions, facts: Facts) -> Facts:
    """The facts with what event triggers of the sources say about what a creation makes there."""
    sources = (
        replace(each, rehearsal=rehearsal.rehearse_source(sessions.get(each.keyspace, each.shard)))
        if each.survey.event_triggers
        else each
        for each in facts.sources
    )
    return replace(facts, sources=tuple(sources))


def tried_schema(
    request: PreflightRequest,
    facts: Facts,
    schema: SchemaPlan,
    rehearse: Callable[[SchemaPlan], Mapping[str, Rehearsal]],
) -> tuple[Facts, SchemaPlan]:
    """The facts with what a trial showed, and the schema that was tried last.

    Args:
        request: what is accepted.
        facts: of the preflight.
        schema: what is to be made.
        rehearse: tries it at each target shard.
    """
    facts = _with(facts, rehearse(schema))
    given = _to_hand_over(facts) if foreign_owner.ID in request.accepted else ()
    if given:
        schema = schema_owners.handed_over(schema, {each.owner: each.new_owner for each in given})
        facts = replace(_with(facts, rehearse(schema)), handed_over=given)
    return facts, schema


def _with(facts: Facts, rehearsals: Mapping[str, Rehearsal]) -> Facts:
    targets = (replace(each, rehearsal=rehearsals.get(each.shard)) for each in facts.targets)
    return replace(facts, targets=tuple(targets))


def _to_hand_over(facts: Facts) -> tuple[HandedOver, ...]:
    return tuple(
        HandedOver(target.label, refused.what, refused.owner, facts.tables_owner)
        for target in facts.targets
        if target.rehearsal is not None
        for refused in target.rehearsal.refused
        if refused.owner is not None and facts.is_foreign_owner(refused)
    )
