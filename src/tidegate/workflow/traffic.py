"""Where a workflow's traffic goes: read from the topology, and how each switch changes it.

Decides, on snapshots alone, which routing rules, denied tables and serving flags a workflow sets,
and what they say now. It must not write them. MoveTables moves by routing rules, Reshard by the
serving state of shards; both are read back from there and never from a flag of the workflow.

Rules of MoveTables: for each table and each of the names ``t``, ``source.t``, ``target.t`` there is
one rule for all traffic that has no rule of its own (writes) and one for each type of reads. While
traffic is at the source all lead to ``source.t``. A switch of reads rewrites those of its type.
While reads are switched in some cells only, the type's rules lead to the source and each of those
cells has rules of its own, so a cell that is added meanwhile reads from the source. A switch of
writes rewrites the plain rules and moves the denied tables to the other side.

A name that resolves while a workflow exists resolves afterwards as well, to the side that has the
rows. Where the vschemas alone would not lead there (several keyspaces declare the table, none does,
or the one that does wants its name in front), one rule for the bare name stays. Rules of other
names that lead to a moved table follow it. Each verb is one change of the topology, so no router
ever sees a state in between.

A bare name may be served by keyspaces that have nothing to do with the workflow: another workflow
moves a table of the same name between other databases. Its rule then leads to all of them, which a
router that names no keyspace refuses as ambiguous; each workflow changes its own part of it
(:mod:`tidegate.workflow.shared_names`). Where traffic goes is read from the rules of names with a
keyspace, which are the workflow's alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.errors import FailedPreconditionError, TidegateError
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.routing import resolve_table
from tidegate.topology.rules import RoutingRules, RuleSource, TableName
from tidegate.topology.vschema import TableSpec, VSchema
from tidegate.workflow import shared_names
from tidegate.workflow.state import State, WorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow


def rule_sources(
    workflow: Workflow, tablet_type: TabletType | None, cell: str | None = None
) -> Iterator[RuleSource]:
    """The left sides of a workflow's rules for a type, or a type in a cell; None means writes."""
    for table in workflow.tables:
        for keyspace in (None, workflow.source_keyspace, workflow.target_keyspace):
            yield RuleSource(table, keyspace, tablet_type, cell)


def own_rules(snapshot: Snapshot, workflow: Workflow) -> list[RuleSource]:
    """Every rule there is under the names of a workflow's tables, for any type and cell."""
    names = {None, workflow.source_keyspace, workflow.target_keyspace}
    tables = set(workflow.tables)
    found = map(RuleSource.parse, snapshot.routing_rules.rules)
    return [source for source in found if source.table in tables and source.keyspace in names]


def with_rules(
    snapshot: Snapshot,
    workflow: Workflow,
    tablet_type: TabletType | None,
    cell: str | None = None,
    *,
    to_target: bool,
) -> Snapshot:
    """With all rules of a type, or of a type in a cell, leading to one side."""
    keyspace = workflow.target_keyspace if to_target else workflow.source_keyspace
    rules = snapshot.routing_rules
    shared = shared_names.shared(rules, rule_sources(workflow, tablet_type, cell), workflow)
    rules = rules.with_redirections(
        (source, TableName(keyspace, source.table))
        for source in rule_sources(workflow, tablet_type, cell)
    )
    for source, others in shared.items():
        rules = rules.with_rule(source, *sorted({*others, TableName(keyspace, source.table)}))
    return snapshot.with_routing_rules(rules)


def with_read_rules(
    snapshot: Snapshot, workflow: Workflow, tablet_type: TabletType, switched: set[str]
) -> Snapshot:
    """With reads of a type at the target in exactly these cells."""
    per_cell = [s for s in own_rules(snapshot, workflow) if s.tablet_type is tablet_type and s.cell]
    shared = shared_names.shared(snapshot.routing_rules, per_cell, workflow)
    snapshot = snapshot.with_routing_rules(snapshot.routing_rules.without(per_cell))
    everywhere = switched >= set(snapshot.cells)
    snapshot = with_rules(snapshot, workflow, tablet_type, to_target=everywhere)
    for cell in () if everywhere else sorted(switched):
        snapshot = with_rules(snapshot, workflow, tablet_type, cell, to_target=True)
    rules = snapshot.routing_rules
    for source, others in shared.items():
        there = everywhere or source.cell in switched
        keyspace = workflow.target_keyspace if there else workflow.source_keyspace
        rules = rules.with_rule(source, *sorted({*others, TableName(keyspace, source.table)}))
    return snapshot.with_routing_rules(rules)


def without_traces(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """The topology as it was before the workflow."""
    if workflow.type is WorkflowType.RESHARD:
        return snapshot
    snapshot = without_declared(without_denied(snapshot, workflow), workflow)
    return with_prior_rules(snapshot, workflow)


def without_declared(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """Without the tables the workflow added to the target's vschema; an empty vschema goes too."""
    keyspace = workflow.target_keyspace
    if keyspace not in snapshot.vschemas or not workflow.added_vschema:
        return snapshot
    vschema = snapshot.vschema(keyspace).without_tables(workflow.added_vschema)
    if vschema != VSchema():
        return snapshot.with_vschema(keyspace, vschema)
    others = {name: kept for name, kept in snapshot.vschemas.items() if name != keyspace}
    return replace(snapshot, vschemas=others)


def with_initial_rules(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """With the tables declared, led to the source by rules, and denied at the target."""
    if workflow.type is WorkflowType.RESHARD:
        return snapshot
    if workflow.added_vschema:
        vschema = snapshot.vschema(workflow.target_keyspace)
        vschema = vschema.with_tables({table: TableSpec() for table in workflow.added_vschema})
        snapshot = snapshot.with_vschema(workflow.target_keyspace, vschema)
    if not workflow.options.no_routing_rules:
        snapshot = without_rules(snapshot, workflow)
        for tablet_type in (None, *READ_TYPES):
            snapshot = with_rules(snapshot, workflow, tablet_type, to_target=False)
    return snapshot.with_denied_tables(
        workflow.target_keyspace, workflow.target_shards, workflow.tables
    )


def with_name_kept(snapshot: Snapshot, workflow: Workflow, keyspace: str) -> Snapshot:
    """With a rule for each bare name that would not lead to its table in a keyspace by itself.

    A rule that is there stays as it is.
    """
    rules = snapshot.routing_rules
    return snapshot.with_routing_rules(
        rules.with_redirections(
            (RuleSource(table), TableName(keyspace, table))
            for table in workflow.tables
            if str(RuleSource(table)) not in rules.rules
            and not _leads_by_itself(snapshot, table, keyspace)
        )
    )


def _leads_by_itself(snapshot: Snapshot, table: str, keyspace: str) -> bool:
    try:
        return resolve_table(snapshot, table, TabletType.PRIMARY) == TableName(keyspace, table)
    except TidegateError:
        return False


def with_other_names(
    snapshot: Snapshot,
    workflow: Workflow,
    types: Iterable[TabletType | None],
    *,
    to_target: bool,
) -> Snapshot:
    """With rules under other names than the workflow's that lead to its tables at one side."""
    sides = [workflow.source_keyspace, workflow.target_keyspace]
    to, away = reversed(sides) if to_target else sides
    wanted, own = set(types), set(own_rules(snapshot, workflow))
    leading = snapshot.routing_rules.by_target()
    return snapshot.with_routing_rules(
        snapshot.routing_rules.with_redirections(
            (source, TableName(to, table))
            for table in workflow.tables
            for source in leading.get(str(TableName(away, table)), ())
            if source not in own and source.tablet_type in wanted
        )
    )


def completed(
    snapshot: Snapshot, workflow: Workflow, *, keep_rules: bool, keep_data: bool
) -> Snapshot:
    """The topology after a completion: rules and vschemas know the tables at the target only."""
    snapshot = with_other_names(snapshot, workflow, (None, *TabletType), to_target=True)
    if not keep_data:
        snapshot = without_denied(snapshot, workflow)
    source = snapshot.vschema(workflow.source_keyspace).without_tables(workflow.tables)
    target = snapshot.vschema(workflow.target_keyspace)
    if not target.sharded:
        missing = set(workflow.tables) - set(target.tables)
        target = target.with_tables({table: TableSpec() for table in missing})
    snapshot = snapshot.with_vschema(workflow.source_keyspace, source)
    snapshot = snapshot.with_vschema(workflow.target_keyspace, target)
    if keep_rules:
        return snapshot
    shared = shared_names.shared(snapshot.routing_rules, own_rules(snapshot, workflow), workflow)
    snapshot = without_rules(snapshot, workflow)
    rules = snapshot.routing_rules
    for name, others in shared.items():
        here = TableName(workflow.target_keyspace, name.table)
        rules = rules.with_rule(name, *sorted({*others, here}))
    snapshot = snapshot.with_routing_rules(rules)
    return with_name_kept(snapshot, workflow, workflow.target_keyspace)


def cancelled(snapshot: Snapshot, workflow: Workflow, *, keep_rules: bool) -> Snapshot:
    """The topology after a cancellation: everything leads to the source, as before the workflow.

    A table that the workflow declared at the target is not declared there any more, whether its
    rows stay or not: declared on both sides, its bare name would be ambiguous.
    """
    if workflow.type is WorkflowType.RESHARD:
        return with_reads_following(snapshot, workflow)
    snapshot = without_denied(snapshot, workflow)
    if keep_rules:
        for tablet_type in READ_TYPES if own_rules(snapshot, workflow) else ():
            snapshot = with_read_rules(snapshot, workflow, tablet_type, set())
        return snapshot
    snapshot = without_declared(snapshot, workflow)
    snapshot = with_prior_rules(snapshot, workflow)
    if workflow.options.no_routing_rules:
        return snapshot
    return with_name_kept(snapshot, workflow, workflow.source_keyspace)


def without_rules(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """Without the workflow's rules; those of other tables, and others' part of a name, stay."""
    if workflow.type is WorkflowType.RESHARD:
        return snapshot
    rules, own = snapshot.routing_rules, own_rules(snapshot, workflow)
    shared = shared_names.shared(rules, own, workflow)
    rules = rules.without(own)
    rules = shared_names.kept(rules, shared, workflow)
    return snapshot.with_routing_rules(rules)


def prior_rules(snapshot: Snapshot, workflow: Workflow) -> dict[str, tuple[str, ...]]:
    """The rules there are under the names the workflow is going to use."""
    if workflow.type is WorkflowType.RESHARD:
        return {}
    rules = snapshot.routing_rules.rules
    return {str(source): rules[str(source)] for source in own_rules(snapshot, workflow)}


def with_prior_rules(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """With the rules as they were before the workflow."""
    rules = without_rules(snapshot, workflow).routing_rules
    prior = shared_names.prior(rules, workflow)
    return snapshot.with_routing_rules(rules.merged(RoutingRules(prior)))


def without_denied(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """Without the workflow's denied tables on either side; missing shards are no error."""
    if workflow.type is WorkflowType.RESHARD:
        return snapshot
    for keyspace, shards in (
        (workflow.source_keyspace, workflow.source_shards),
        (workflow.target_keyspace, workflow.target_shards),
    ):
        there = [shard for shard in shards if (keyspace, shard) in snapshot.shards]
        snapshot = snapshot.without_denied_tables(keyspace, there, workflow.tables)
    return snapshot


def checked_cells(snapshot: Snapshot, cells: tuple[str, ...]) -> tuple[str, ...]:
    """The cells a switch of reads concerns.

    Raises:
        FailedPreconditionError: there is no such cell.
    """
    known = sorted(snapshot.cells)
    unknown = sorted(set(cells) - set(known))
    if unknown:
        raise FailedPreconditionError(
            f"there is no cell {', '.join(unknown)}",
            next_step=f"the cells are {', '.join(known)}",
            cells=unknown,
        )
    return tuple(sorted(cells)) or tuple(known)


def with_reads_switched(
    snapshot: Snapshot,
    workflow: Workflow,
    types: Iterable[TabletType],
    cells: tuple[str, ...],
    *,
    to_target: bool,
) -> Snapshot:
    """With reads of some types, in some cells, at one side."""
    source, target = workflow.source_shards, workflow.target_shards
    sides = _sides(snapshot, workflow)
    for tablet_type in types:
        if workflow.type is not WorkflowType.RESHARD:
            there = set(_read_cells(snapshot, workflow, tablet_type, sides)[0])
            there = there | set(cells) if to_target else there - set(cells)
            snapshot = with_read_rules(snapshot, workflow, tablet_type, there)
            continue
        snapshot = snapshot.with_reads_switched(
            workflow.target_keyspace,
            tablet_type,
            cells,
            away_from=source if to_target else target,
            to=target if to_target else source,
        )
    return snapshot


def with_reads_following(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """With the reads of a resharded keyspace where its writes are, in every cell."""
    for shard in (*workflow.source_shards, *workflow.target_shards):
        if (workflow.target_keyspace, shard) in snapshot.shards:
            record = snapshot.shard(workflow.target_keyspace, shard)
            snapshot = snapshot.with_shard(record.without_read_state())
    return snapshot


def with_writes_switched(snapshot: Snapshot, workflow: Workflow, *, to_target: bool) -> Snapshot:
    """With writes at one side; doing it again changes nothing."""
    source, target = workflow.source_shards, workflow.target_shards
    if workflow.type is WorkflowType.RESHARD:
        return snapshot.with_writes_switched(
            workflow.target_keyspace,
            away_from=source if to_target else target,
            to=target if to_target else source,
        )
    sides = [(workflow.source_keyspace, source), (workflow.target_keyspace, target)]
    closing, opening = sides if to_target else reversed(sides)
    changed = with_rules(snapshot, workflow, None, to_target=to_target)
    types = (None, TabletType.PRIMARY)
    changed = with_other_names(changed, workflow, types, to_target=to_target)
    changed = changed.with_denied_tables(*closing, workflow.tables)
    return changed.without_denied_tables(*opening, workflow.tables)


def observed_state(snapshot: Snapshot, workflow: Workflow) -> State:
    """What the topology says about the workflow's traffic now."""
    sides = _sides(snapshot, workflow)
    replica, rdonly = (_read_cells(snapshot, workflow, each, sides) for each in READ_TYPES)
    return State(
        workflow=workflow.name,
        source_keyspace=workflow.source_keyspace,
        target_keyspace=workflow.target_keyspace,
        workflow_type=workflow.type,
        replica_cells_switched=replica[0],
        replica_cells_not_switched=replica[1],
        rdonly_cells_switched=rdonly[0],
        rdonly_cells_not_switched=rdonly[1],
        writes_switched=_writes_switched(snapshot, workflow, sides),
        tables_apart=tuple(_apart(workflow, sides)),
    )


def tables_apart(snapshot: Snapshot, workflow: Workflow) -> dict[str, str]:
    """Tables whose rules do not agree with the others', and in which way; empty when all agree.

    A switch moves every table in one change. What differs was changed by somebody else, and then no
    verb can know where the rows are.
    """
    return _apart(workflow, _sides(snapshot, workflow))


def _apart(workflow: Workflow, sides: Sides) -> dict[str, str]:
    found: dict[str, str] = {}
    for (tablet_type, cell), of_tables in sides.items():
        seen = set(of_tables.values())
        if len(seen) == 1 and _ELSEWHERE not in seen:
            continue
        what = "writes" if tablet_type is None else f"{str(tablet_type).lower()} reads in {cell}"
        side, common = (
            (_TARGET, workflow.target_keyspace)
            if _TARGET in seen
            else (_SOURCE, workflow.source_keyspace)
        )
        for table, its in of_tables.items():
            if its != side:
                where = f"to {workflow.source_keyspace}" if its == _SOURCE else "elsewhere"
                found.setdefault(table, f"{what} lead {where}, those of others to {common}")
    return found


def _read_cells(
    snapshot: Snapshot, workflow: Workflow, tablet_type: TabletType, sides: Sides
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    cells = sorted(snapshot.cells)
    if workflow.type is not WorkflowType.RESHARD:
        there = [c for c in cells if set(sides[tablet_type, c].values()) == {_TARGET}]
        return tuple(there), tuple(c for c in cells if c not in there)
    shards = snapshot.shards_of(workflow.target_keyspace)
    sources = [s for s in shards if s.name in workflow.source_shards]
    at_source = {c for c in cells if any(s.serves(tablet_type, c) for s in sources)}
    return (
        tuple(c for c in cells if c not in at_source),
        tuple(c for c in cells if c in at_source),
    )


def _writes_switched(snapshot: Snapshot, workflow: Workflow, sides: Sides) -> bool:
    if workflow.type is not WorkflowType.RESHARD:
        return set(sides[None, None].values()) == {_TARGET}
    return not any(
        shard.serving
        for shard in snapshot.shards_of(workflow.target_keyspace)
        if shard.name in workflow.source_shards
    )


_SOURCE, _TARGET, _ELSEWHERE = "source", "target", "elsewhere"

type Sides = dict[tuple[TabletType | None, str | None], dict[str, str]]


def _sides(snapshot: Snapshot, workflow: Workflow) -> Sides:
    """Where the rules of each table lead: writes, and reads of each type in each cell.

    A table's rules are those of its bare name and of the source's. Without a rule it is at the
    source. A bare name may belong to an equally named table of other keyspaces, too; only the part
    of it within the workflow's keyspaces counts.
    """
    if workflow.type is WorkflowType.RESHARD:
        return {}
    rules = snapshot.routing_rules.rules
    kinds: dict[tuple[TabletType | None, str | None], tuple[str, str]] = {
        (None, None): (_suffix(TabletType.PRIMARY), "")
    }
    for each in READ_TYPES:
        kinds |= {(each, c): (_suffix(each, c), _suffix(each)) for c in sorted(snapshot.cells)}
    found: Sides = {kind: {} for kind in kinds}
    for table in workflow.tables:
        bare, qualified = str(RuleSource(table)), str(RuleSource(table, workflow.source_keyspace))
        source = str(TableName(workflow.source_keyspace, table))
        target = str(TableName(workflow.target_keyspace, table))
        sides: dict[tuple[str, ...], str] = {(source,): _SOURCE, (target,): _TARGET}
        for kind, (narrow, wide) in kinds.items():
            shared = rules.get(bare + narrow, rules.get(bare + wide))
            own = rules.get(qualified + narrow, rules.get(qualified + wide))
            if shared and shared not in sides:
                shared = _own_part(workflow, shared) or None
            seen = {sides.get(rule, _ELSEWHERE) for rule in (shared, own) if rule is not None}
            found[kind][table] = seen.pop() if len(seen) == 1 else (_ELSEWHERE if seen else _SOURCE)
    return found


def _suffix(tablet_type: TabletType, cell: str | None = None) -> str:
    """What a rule's name ends in when it is for a type, or for a type in a cell."""
    return str(RuleSource("t", None, tablet_type, cell)).removeprefix("t")


def _own_part(workflow: Workflow, rule: tuple[str, ...]) -> tuple[str, ...]:
    """Where the rule of a bare name leads within the workflow's keyspaces."""
    keyspaces = tuple(f"{name}." for name in (workflow.source_keyspace, workflow.target_keyspace))
    return tuple(target for target in rule if target.startswith(keyspaces))
