"""Which spans shall exist, from the tables that are wanted and the spans that do.

A table that nobody has seen yet is split once, and what came out is remembered until its sets
exist. A table with sets keeps their bounds; what is missing between them (an owner that died while
it placed them) becomes one span for each hole. Nothing is split or merged again later.

Nothing that is found here stops an owner. Where spans overlap (two owners split a table in
different ways, a capture reports nonsense) one of them is not wanted any more, so it is stopped,
and nothing that shares keys with it is placed before it is gone. A split that fails, or does not
tile its table, leaves the table whole. ``faults`` names both.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tidegate.errors import TidegateError
from tidegate.scheduling.model import Span, SpansDoNotTileError, TableID
from tidegate.scheduling.watermark import is_covered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def whole(table: TableID) -> list[Span]:
    """A table as one span."""
    return [Span(table)]


class Reconciler:
    """The wanted spans, from tick to tick.

    Args:
        split: the spans of a table that is new; they must tile it.

    Attributes:
        faults: what is wrong with a table's spans, while it is.
        blocked: wanted spans that share keys with one that has to stop first.
    """

    def __init__(self, split: Callable[[TableID], Sequence[Span]] = whole) -> None:
        self._split = split
        self._fresh: dict[TableID, list[Span]] = {}
        self.faults: dict[TableID, TidegateError] = {}
        self.blocked: frozenset[Span] = frozenset()

    def wanted(self, tables: Iterable[TableID], existing: Iterable[Span]) -> list[Span]:
        """The spans that shall exist, in the order of the tables."""
        wanted = list(dict.fromkeys(tables))
        of: defaultdict[TableID, list[Span]] = defaultdict(list)
        for span in existing:
            of[span.table].append(span)
        gone = (self._fresh.keys() | self.faults.keys()) - set(wanted)
        for table in gone:
            self._fresh.pop(table, None)
            self.faults.pop(table, None)
        self.blocked = frozenset()
        found: list[Span] = []
        for table in wanted:
            found += self._of_table(table, sorted(of[table], key=_by_keys))
        return found

    def _of_table(self, table: TableID, existing: list[Span]) -> list[Span]:
        if is_covered(existing):
            if self.faults:
                self.faults.pop(table, None)
            return existing
        if table in self._fresh:
            fresh = self._fresh[table]
            if set(existing) <= set(fresh):
                return fresh
            del self._fresh[table]
        if not existing:
            self._fresh[table] = self._split_of(table)
            return self._fresh[table]
        return self._repaired(table, existing)

    def _split_of(self, table: TableID) -> list[Span]:
        """The spans of a new table; the whole of it when it cannot be split."""
        try:
            found = sorted(self._split(table), key=_by_keys)
        except TidegateError as error:
            self.faults[table] = error
            return whole(table)
        if is_covered(found) and {span.table for span in found} == {table}:
            return found
        listed = ", ".join(str(span) for span in found) or "nothing"
        self.faults[table] = SpansDoNotTileError(
            f"the split of {table} does not tile it: {listed}",
            next_step="nothing: the table stays one span",
        )
        return whole(table)

    def _repaired(self, table: TableID, existing: list[Span]) -> list[Span]:
        """What is kept of spans that do not tile their table, and what is missing between them."""
        kept, left_out = without_overlaps(existing)
        missing = holes(table, kept)
        if not left_out:
            self.faults.pop(table, None)
            return sorted([*kept, *missing], key=_by_keys)
        listed = ", ".join(str(span) for span in left_out)
        self.faults[table] = SpansDoNotTileError(
            f"spans of {table} overlap: {listed} must stop", spans=[str(s) for s in left_out]
        )
        blocked = {s for s in (*kept, *missing) if any(overlap(s, other) for other in left_out)}
        self.blocked |= blocked
        return sorted([*kept, *missing], key=_by_keys)


def _by_keys(span: Span) -> tuple[str, bool, str]:
    """The order within a table; of two that begin together the shorter one first."""
    return span.start, not span.end, span.end


def is_empty(span: Span) -> bool:
    """Whether no key can be in it."""
    return bool(span.end) and span.end <= span.start


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans of one table share keys."""
    if is_empty(one) or is_empty(other):
        return False
    return (not one.end or other.start < one.end) and (not other.end or one.start < other.end)


def without_overlaps(spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """Spans of one table, in their order, that share no key; and those left out for it."""
    kept: list[Span] = []
    left_out: list[Span] = []
    for span in spans:
        if is_empty(span) or (kept and overlap(kept[-1], span)):
            left_out.append(span)
        else:
            kept.append(span)
    return kept, left_out


def holes(table: TableID, spans: Sequence[Span]) -> list[Span]:
    """What is missing between spans of one table that share no key, in their order."""
    found: list[Span] = []
    at = ""
    for span in spans:
        if span.start > at:
            found.append(Span(table, at, span.start))
        at = span.end
        if not at:
            return found
    return [*found, Span(table, at)]
