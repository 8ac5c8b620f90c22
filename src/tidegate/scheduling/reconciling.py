"""Which spans shall exist, from the tables that are wanted and the spans that do.

A table that nobody has seen yet is split once, and what came out is remembered until its sets
exist. A table with sets keeps their bounds; what is missing between them (an owner that died while
it placed them) becomes one span for each hole. Nothing is split or merged again later.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tidegate.scheduling.model import Span, TableID
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
    """

    def __init__(self, split: Callable[[TableID], Sequence[Span]] = whole) -> None:
        self._split = split
        self._fresh: dict[TableID, list[Span]] = {}

    def wanted(self, tables: Iterable[TableID], existing: Iterable[Span]) -> list[Span]:
        """The spans that shall exist, in the order of the tables."""
        wanted = list(dict.fromkeys(tables))
        of: defaultdict[TableID, list[Span]] = defaultdict(list)
        for span in existing:
            of[span.table].append(span)
        for table in self._fresh.keys() - set(wanted):
            del self._fresh[table]
        found: list[Span] = []
        for table in wanted:
            found += self._of_table(table, sorted(of[table], key=lambda span: span.start))
        return found

    def _of_table(self, table: TableID, existing: list[Span]) -> list[Span]:
        if is_covered(existing):
            return existing
        if table in self._fresh:
            fresh = self._fresh[table]
            if set(existing) <= set(fresh):
                return fresh
            del self._fresh[table]
        if not existing:
            self._fresh[table] = list(self._split(table))
            assert is_covered(self._fresh[table]), f"{table} was split with holes"
            return self._fresh[table]
        return sorted([*existing, *holes(table, existing)], key=lambda span: span.start)


def holes(table: TableID, spans: Sequence[Span]) -> list[Span]:
    """What is missing between spans of one table, in their order; neighbours are one hole."""
    found: list[Span] = []
    at = ""
    for span in spans:
        assert span.start >= at, f"spans of {table} overlap at {span.start}"
        if span.start > at:
            found.append(Span(table, at, span.start))
        at = span.end
        if not at:
            assert span is spans[-1], f"spans of {table} overlap after {span.start}"
            return found
    return [*found, Span(table, at)]
