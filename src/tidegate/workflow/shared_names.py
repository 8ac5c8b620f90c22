"""Bare table names that keyspaces outside a workflow serve as well, and the rules that say so.

Decides whose part of a bare name's rule is whose. Two databases that have nothing to do with each
other may both have a table ``users``. While the name leads to one place, a router that gives no
keyspace gets that; as soon as two serve it, its rule lists both, and such a router is refused with
their names, rather than sent to whichever came first. A name with a keyspace is never shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.topology.records import TabletType
from tidegate.topology.rules import RuleSource, TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.topology.rules import RoutingRules
    from tidegate.workflow.model import Workflow


def others(rules: RoutingRules, workflow: Workflow, source: RuleSource) -> tuple[TableName, ...]:
    """Where a rule for a bare name leads outside the workflow's keyspaces, sorted.

    A type or cell without a rule of its own is served where the plain name is.
    """
    if source.keyspace is not None:
        return ()
    found = rules.find(
        None, source.table, source.tablet_type or TabletType.PRIMARY, source.cell or ""
    )
    own = {workflow.source_keyspace, workflow.target_keyspace}
    targets = map(TableName.parse, () if found is None else found[1])
    return tuple(sorted(t for t in targets if t.keyspace is not None and t.keyspace not in own))


def shared(
    rules: RoutingRules, sources: Iterable[RuleSource], workflow: Workflow
) -> dict[RuleSource, tuple[TableName, ...]]:
    """Which of a workflow's rules others share, and where they lead outside its keyspaces."""
    found = {source: others(rules, workflow, source) for source in sources}
    return {source: elsewhere for source, elsewhere in found.items() if elsewhere}


def kept(
    rules: RoutingRules, shared: Mapping[RuleSource, tuple[TableName, ...]], workflow: Workflow
) -> RoutingRules:
    """Rules with others' part of the names that they shared with a workflow which is gone.

    A rule for a type or cell that only says what the more general one says is not needed, unless it
    was there before the workflow.
    """
    for source in sorted(shared, key=lambda s: (s.tablet_type is not None, s.cell is not None)):
        asked = source.tablet_type or TabletType.PRIMARY
        general = rules.find(None, source.table, asked)
        written = tuple(map(str, shared[source]))
        was_there = str(source) in workflow.prior_rules
        if source.tablet_type and general and general[1] == written and not was_there:
            continue
        rules = rules.with_rule(source, *written)
    return rules


def prior(rules: RoutingRules, workflow: Workflow) -> dict[str, tuple[str, ...]]:
    """The rules from before the workflow, without what others have changed of them since.

    Others' part of a bare name is what ``rules`` say now; the record knows only how it was.
    """
    own = {workflow.source_keyspace, workflow.target_keyspace}
    found: dict[str, tuple[str, ...]] = {}
    for key, targets in workflow.prior_rules.items():
        elsewhere = others(rules, workflow, RuleSource.parse(key))
        mine = [t for t in map(TableName.parse, targets) if t.keyspace in own]
        merged = tuple(map(str, sorted({*elsewhere, *mine})))
        found[key] = merged if elsewhere else tuple(targets)
    return found
