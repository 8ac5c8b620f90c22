"""All sides of one table inside the snapshots of a moment, ready to be compared.

Decides which tables a VDiff compares, whether the sides can be compared at all, and by which
expressions. Sides are looked at all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.dataplane import compare, source_tables
from tidegate.engines.postgres import bounds, compared, hashing, split
from tidegate.errors import FailedPreconditionError
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.links import targets_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tidegate.dataplane.model import SpanSpec, TableRule
    from tidegate.workflow.vdiff.consistency import Moment
    from tidegate.workflow.vdiff.model import VDiffOptions


def canonical(rule: TableRule) -> str:
    """The table's name as it is shown and stored."""
    return str(TableName.parse(rule.table))


def spans_with(spans: Sequence[SpanSpec], table: str) -> list[SpanSpec]:
    """The spans that carry a table; a reference table has one, whatever the number of sources."""
    return [span for span in spans if any(canonical(rule) == table for rule in span.tables)]


def compared_tables(spans: Sequence[SpanSpec], options: VDiffOptions) -> list[str]:
    """The tables to compare, in a stable order."""
    known = {canonical(rule) for span in spans for rule in span.tables}
    asked = {str(TableName.parse(name)) for name in options.tables}
    return sorted(known & asked) if asked else sorted(known)


@dataclass(frozen=True)
class TableAtMoment:
    """The sides of one table, and what was found about it on the way."""

    name: str
    sides: compare.TableSides
    shards: tuple[str, ...]  # of the targets, by their number
    rows_at_sources: int  # estimates
    rows_at_targets: tuple[int, ...]
    sorted_alike: bool  # every side sorts the key in the same way
    positions: tuple[dict[int, str], ...]  # of the streams into each target, at this moment
    taken_at: tuple[datetime, ...]  # the moment by each target's clock
    sources: tuple[str, ...]  # names of the source shards

    def estimated_rows(self, place: int) -> int:
        """How many rows a target may have."""
        share = 1 if self.sides.broadcast else len(self.shards)
        return self.rows_at_targets[place] or self.rows_at_sources // share

    def separators(self, *, slice_bytes: int, limit: int | None) -> list[bounds.Key]:
        """Where slices after the first begin; with a limit, where the rows after it begin."""
        if not self.sorted_alike:
            return []
        source = max(
            self.sides.sources, key=lambda s: bounds.table_bytes(s.connection, s.space.table)[0]
        )
        if limit:
            last = bounds.key_at(source.connection, source.space, limit)
            return [] if last is None else [last]
        return bounds.separators(source.connection, source.space, chunk_bytes=slice_bytes)


class TableRewrittenError(Exception):
    """Snapshots do not show a table: it was truncated or rewritten after they were taken."""

    def __init__(self, table: str, where: Sequence[str]) -> None:
        super().__init__(f"table {table} at {', '.join(where)}")
        self.table, self.where = table, tuple(where)


def table_at(moment: Moment, spans: Sequence[SpanSpec], table: str) -> TableAtMoment:
    """All sides of one table inside their snapshots, which show it until they are given up.

    Raises:
        TableRewrittenError: a snapshot does not show it; a new one would.
        NotFoundError: a side lacks the table.
        FailedPreconditionError: it has other columns or another key on some side, or none.
    """
    name = TableName.parse(table)
    names = tuple(targets_of(spans))
    rules = [next(r for r in span.tables if canonical(r) == table) for span in spans]
    sessions = [*moment.sources, *(moment.targets[shard] for shard in names)]
    kept = moment.links.pool.map(lambda session: compared.keep(session, name), sessions)
    places = [f"source {span.source_keyspace}/{span.source_shard}" for span in spans]
    places += [f"target {spans[0].target_keyspace}/{shard}" for shard in names]
    if lost := [place for place, is_shown in zip(places, kept, strict=True) if not is_shown]:
        raise TableRewrittenError(table, lost)
    found = list(moment.links.pool.map(lambda session: compared.read(session, name), sessions))
    if len({each.key for each in found}) != 1:
        raise FailedPreconditionError(
            f"table {table} has no key, or not the same key on all sides",
            next_step="give it the same primary key everywhere, then compare again",
        )
    columns = _common_columns(name, found, spans)
    left_out = tuple(sorted(moment.left_out.get(table, ())))
    sides = [
        compare.Side(
            session, each.space, columns.at(session.info.server_version), left_out=left_out
        )
        for session, each in zip(sessions, found, strict=True)
    ]
    sources = sides[: len(spans)]
    for span, rule, side in zip(spans, rules, sources, strict=True):
        side.routing = split.plan_routing(
            side.connection,
            name,
            columns.key,
            {
                names.index(target.shard): target.key_range
                for target in span.targets
                if rule.feeds(target.shard)
            },
            shard_columns=rule.shard_columns,
            vindex_type=rule.vindex_type,
            vindex_params=rule.vindex_params,
        )
    orders = {each.order for each in found}
    return TableAtMoment(
        table,
        compare.TableSides(
            sources,
            dict(enumerate(sides[len(spans) :])),
            broadcast=not rules[0].shard_columns,
            left_out=left_out,
        ),
        names,
        sum(each.est_rows for each in found[: len(spans)]),
        tuple(each.est_rows for each in found[len(spans) :]),
        sorted_alike=len(orders) == 1 and None not in orders,
        positions=tuple(moment.positions[shard] for shard in names),
        taken_at=tuple(moment.taken_at[shard] for shard in names),
        sources=tuple(f"{span.source_keyspace}/{span.source_shard}" for span in spans),
    )


def _common_columns(
    name: TableName, found: Sequence[compared.ComparedTable], spans: Sequence[SpanSpec]
) -> hashing.HashColumns:
    recode = len({each.encoding for each in found}) > 1
    key = found[0].key
    targets = [each.forms for each in found[len(spans) :]]
    sources = [source_tables.carried(spans[0], e.forms, targets)[0] for e in found[: len(spans)]]
    forms = [*sources, *targets]
    columns = hashing.hash_columns(name, forms[0], forms[1], key, recode=recode)
    for other in forms[2:]:
        columns = columns.merged(hashing.hash_columns(name, forms[0], other, key, recode=recode))
    return columns
