"""Chunks of a table as values: how separators become chunks, and what is left to copy.

Pure. A chunk's number is its identity in ``copy_state``; chunks of one plan tile the key space.
Several targets of one span share one plan, so that a chunk is read once for all of them; each
target remembers for itself which chunks it has, because each commits by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tidegate.errors import InvalidWorkflowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Key = tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """One key range of a table: ``lower <= key < upper``, None for open."""

    number: int
    lower: Key | None
    upper: Key | None

    def to_row(self) -> tuple[int, list[str] | None, list[str] | None]:
        """As ``copy_state`` holds it."""
        return (
            self.number,
            None if self.lower is None else list(self.lower),
            None if self.upper is None else list(self.upper),
        )

    @classmethod
    def from_row(
        cls, number: int, lower: Sequence[str] | None, upper: Sequence[str] | None
    ) -> Self:
        """Inverse of :meth:`to_row`."""
        return cls(
            number,
            None if lower is None else tuple(lower),
            None if upper is None else tuple(upper),
        )


@dataclass(frozen=True)
class KeySlice:
    """Single keys of a table, which a comparison looks at apart from the ranges they lie in."""

    number: int
    keys: tuple[Key, ...]


type Slice = Chunk | KeySlice
"""A part of a table that is compared at a time."""


def tile(separators: Sequence[Key]) -> tuple[Chunk, ...]:
    """One chunk more than separators, from open to open."""
    lowers = [None, *separators]
    uppers = [*separators, None]
    return tuple(
        Chunk(number, lower, upper)
        for number, (lower, upper) in enumerate(zip(lowers, uppers, strict=True))
    )


def agreed_plan(table: str, plans: Mapping[int, Sequence[Chunk]]) -> tuple[Chunk, ...] | None:
    """The one plan that some of a span's targets hold already, or None when none does.

    Args:
        table: for the message.
        plans: target to its planned chunks, empty where not planned.

    Raises:
        InvalidWorkflowError: two targets hold different plans.
    """
    found = {place: tuple(sorted(p, key=lambda c: c.number)) for place, p in plans.items() if p}
    if not found:
        return None
    first, *others = found.values()
    if any(other != first for other in others):
        raise InvalidWorkflowError(
            f"the targets of the span have different chunks of table {table}",
            next_step="cancel the workflow and create it again",
        )
    check_tiling(table, first)
    return first


def check_tiling(table: str, chunks: Sequence[Chunk]) -> None:
    """Make sure that chunks leave no hole and have no overlap.

    Raises:
        InvalidWorkflowError: a chunk is missing, or does not begin where the one before ends.
    """
    edges = [None, *(chunk.lower for chunk in chunks[1:])]
    whole = (
        [chunk.number for chunk in chunks] == list(range(len(chunks)))
        and [chunk.lower for chunk in chunks] == edges
        and [chunk.upper for chunk in chunks] == [*edges[1:], None]
        and None not in edges[1:]
    )
    if not whole:
        raise InvalidWorkflowError(
            f"the recorded chunks of table {table} do not cover its key space exactly once",
            next_step="cancel the workflow and create it again",
        )


@dataclass(frozen=True)
class ChunkTask:
    """One chunk to read once and write to those targets that do not have it yet."""

    table: str
    chunk: Chunk
    targets: tuple[int, ...]  # places in the span's list of targets


def pending(
    table: str, chunks: Iterable[Chunk], done: Mapping[int, frozenset[int]]
) -> list[ChunkTask]:
    """The chunks some targets still need, in key order.

    Args:
        table: the table.
        chunks: the whole plan.
        done: target to the numbers of the chunks it holds; names every target of the span.
    """
    tasks = []
    for chunk in chunks:
        missing = tuple(sorted(s for s, numbers in done.items() if chunk.number not in numbers))
        if missing:
            tasks.append(ChunkTask(table, chunk, missing))
    return tasks
