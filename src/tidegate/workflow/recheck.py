"""Looks at the catalogue of both sides again before a verb of a running workflow does anything.

Decides what ``switchtraffic``, ``reversetraffic``, ``start``, ``complete`` and ``cancel`` find and
refuse: what ``create`` would refuse of the present, by the same checks, and what has drifted apart
since. It is one function for all verbs and for their dry runs, and reads a few bulk queries a
server. It must not change anything.

What keeps only the verb in question: a completion ends the streams and keeps the target, so it
looks at what goes with the source; a cancellation the other way round; and DDL that the streams
were told to ignore does not refuse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tidegate.dataplane.model import Direction, OnDDL
from tidegate.engines.checks import Severity
from tidegate.errors import ConnectError
from tidegate.topology.names import TableName
from tidegate.workflow import traffic
from tidegate.workflow.catalogue import (
    Catalogue,
    around_features,
    expected_support,
    support_features,
    tables_features,
    with_later,
)
from tidegate.workflow.preflight.check import Verb, in_order, refuse_errors
from tidegate.workflow.preflight.checks import (
    foreign_keys_cross,
    rules_apart,
    shards_differ,
    table_gone,
    target_shape,
)
from tidegate.workflow.preflight.facts import PreflightRequest, Since
from tidegate.workflow.preflight.gather import gather_again
from tidegate.workflow.preflight.registry import WAIVABLE, run_again

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.postgres.facts import DatabaseFacts
    from tidegate.engines.postgres.survey import Need
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.preflight.check import Finding
    from tidegate.workflow.preflight.facts import Facts
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.target_tables import TargetPlan
    from tidegate.workflow.work import Work

#: What is refused, in words.
_REFUSED: Final = {
    Verb.SWITCH: "traffic of workflow {} cannot be switched",
    Verb.REVERSE: "traffic of workflow {} cannot be switched back",
    Verb.JOIN: "reads of workflow {} cannot be switched",
    Verb.START: "streams of workflow {} cannot start",
    Verb.COMPLETE: "workflow {} cannot be completed",
    Verb.CANCEL: "workflow {} cannot be cancelled",
}

#: What refuses reads that follow writes as well; streams have no part in that.
_ALWAYS: Final = frozenset({table_gone.CHECK.id, rules_apart.CHECK.id})


def require_unchanged(
    work: Work,
    verb: Verb,
    direction: Direction = Direction.FORWARD,
    *,
    keeps_data: bool = False,
) -> tuple[Finding, ...]:
    """Refuse what the present catalogue does not allow; returns what is worth saying besides.

    Args:
        work: the workflow, its topology and sessions.
        verb: what is about to be done.
        direction: where traffic goes; for a start, which streams.
        keeps_data: a completion or cancellation leaves the tables where they are.

    Raises:
        PreflightError: at least one finding refuses.
        ConnectError: a server cannot be reached; a start leaves that to the streams.
    """
    try:
        found = look(
            work.snapshot, work.workflow, work.sessions, verb, direction, keeps_data=keeps_data
        )
    except ConnectError:
        if verb is not Verb.START:
            raise
        return ()
    refuse_errors(found, _REFUSED[verb].format(work.workflow.key), cannot="")
    return tuple(found)


def verb_of(direction: Direction) -> Verb:
    """Which verb moves traffic in a direction, over streams."""
    return Verb.SWITCH if direction is Direction.FORWARD else Verb.REVERSE


def look(
    snapshot: Snapshot,
    workflow: Workflow,
    sessions: Sessions,
    verb: Verb,
    direction: Direction,
    *,
    keeps_data: bool = False,
) -> list[Finding]:
    """Everything a verb has to know of the catalogue of now, and of what has changed in it."""
    request = as_request(workflow)
    then = Catalogue.decode(workflow.catalogue)
    leaned_on = then.leaned_on() if then is not None else ()
    facts = gather_again(request, snapshot, sessions, leaned_on)
    unfinished = sessions.each(
        workflow.target_keyspace,
        workflow.target_shards,
        lambda _s, session: session.actions.are_unfinished(workflow.uuid),
    )
    since = Since(
        verb=verb,
        direction=Direction.REVERSE if verb is Verb.CANCEL else direction,
        then=then,
        now=Catalogue(
            dict(map(_features, facts.databases, [request] * len(facts.databases))),
            support={database.label: _support(database, leaned_on) for database in facts.databases},
            around=_around(facts, then.extensions() if then is not None else ()),
        ),
        apart=traffic.tables_apart(snapshot, workflow),
        unfinished=frozenset(
            f"{workflow.target_keyspace}/{shard}" for shard, waits in unfinished.items() if waits
        ),
        keeps_source=verb is Verb.COMPLETE and keeps_data,
        keeps_target=verb is Verb.CANCEL and keeps_data,
        sources=tuple(database.label for database in facts.sources),
        targets=tuple(database.label for database in facts.targets),
    )
    found = run_again(request, replace(facts, since=since), verb)
    return in_order(_weighed(finding, workflow, since) for finding in found)


def as_request(workflow: Workflow) -> PreflightRequest:
    """What was asked for when the workflow was created, as far as it is looked at again."""
    return PreflightRequest(
        workflow=workflow.name,
        workflow_type=workflow.type,
        source_keyspace=workflow.source_keyspace,
        target_keyspace=workflow.target_keyspace,
        source_shards=workflow.source_shards,
        target_shards=workflow.target_shards,
        tables=tuple(map(TableName.parse, workflow.tables)),
        skip_schema_copy=workflow.options.skip_schema_copy,
        accepted=WAIVABLE & set(workflow.options.allow),
        log_budget_bytes=workflow.options.log_budget_bytes,
    )


def _weighed(finding: Finding, workflow: Workflow, since: Since) -> Finding:
    """As a warning where the verb is not concerned, or the user has said that it is not."""
    reading = since.sources if since.direction is Direction.FORWARD else since.targets
    shapes = {target_shape.CHECK.id, shards_differ.CHECK.id}
    ignored = finding.id in shapes and workflow.options.on_ddl == OnDDL.IGNORE
    elsewhere = (
        since.verb is Verb.START
        and finding.id == foreign_keys_cross.CHECK.id
        and finding.object.partition(" ")[0] in reading
    )
    follows = since.verb is Verb.JOIN and finding.id not in _ALWAYS
    if finding.severity is Severity.ERROR and (ignored or elsewhere or follows):
        return replace(finding, severity=Severity.WARNING)
    return finding


def _features(
    database: DatabaseFacts, request: PreflightRequest
) -> tuple[str, dict[str, dict[str, str]]]:
    found = tables_features(database.tables, database.survey.publications, request.tables)
    return database.label, found


def _support(database: DatabaseFacts, leaned_on: Iterable[Need]) -> dict[str, str]:
    return support_features(leaned_on, database.survey.functions, database.survey.types)


def _around(facts: Facts, extensions: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of each database the given extensions, and the settings."""
    return {
        each.label: around_features(extensions, each.survey.extensions, each.survey.settings)
        for each in facts.databases
    }


def at_create(work: Work, facts: Facts, target_plan: TargetPlan) -> Catalogue:
    """What a workflow's record keeps of the catalogue.

    Args:
        work: the workflow; its tables are made.
        facts: of its preflight: the sources as the tables were made from them.
        target_plan: what was made at the targets, and what waits for the rows.
    """
    request = as_request(work.workflow)
    shards = dict(_features(database, request) for database in facts.sources)
    model: dict[str, dict[str, str]] = {}
    for tables in shards.values():
        model |= {table: found for table, found in tables.items() if table not in model}
    schema = target_plan.schema
    actions = (*schema.after_copy, *schema.after_catchup) if schema is not None else ()
    others = {}
    versions = {each.server.version_num // 10000 for each in facts.databases}
    again = gather_again(request, work.snapshot, work.sessions)
    for database in again.targets:
        label, found = _features(database, request)
        shards[label] = with_later(found, model, actions, alike=len(versions) == 1)
        if request.reshards:
            others[label] = tuple(sorted(map(str, set(database.tables) - set(request.tables))))
    support = {database.label: _support(database, facts.needs()) for database in facts.sources}
    made_from = support[facts.sources[0].label]
    support |= {
        t.label: expected_support(made_from, _support(t, facts.needs()), alike=len(versions) == 1)
        for t in facts.targets
    }
    return Catalogue(shards, others, support, _around(again, facts.needed_extensions()))
