"""A change of a row, as it comes from a log and goes to a target; values only, for any engine.

A row is a list of fields, each as its engine writes it, with ``NULL`` for null and ``None`` for a
value that the log left out because it did not change. Or it is *packed*: the message it came in,
and that message's shape, uncut until somebody needs a column; a packed row has all its values.
Nothing here interprets a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

type Field = bytes | None
type Row = list[Field]

type Packed = tuple[Shape, bytes]
type AnyRow = Row | Packed

#: One change: kind (``INSERT`` ...), relation, old tuple (of an update or delete), new tuple.
type Change = tuple[int, Relation, AnyRow | None, AnyRow | None]

INSERT, UPDATE, DELETE, TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
NULL = b"\xff\xff\xff\xff"


class Relation(Protocol):
    """A table as a log describes it."""

    columns: tuple[str, ...]
    extra: Any  # the reader's own notes
    kept: tuple[int, ...] | None  # the columns that are of interest, in order; None: all


@dataclass(eq=False, slots=True)
class Shape:
    """Messages of one length whose columns lie at the same places, and how to know them.

    Attributes:
        kind: of the change.
        relation: its relation.
        mask: of the message as a number; with it every message of this shape is ``expected``.
        expected: see ``mask``.
        tail: where the tuple starts, with its number of columns.
        cuts: each column's field; ``None`` for null.
        key: the fields by which a row is known; set when the relation's key is known.
        heads: places of the columns' kinds from ``tail``, backwards; ``None`` with nulls.
    """

    kind: int
    relation: Relation
    mask: int
    expected: int
    tail: int
    cuts: tuple[slice | None, ...]
    key: Callable[[bytes], Any] | None
    heads: tuple[int, ...] | None


def unpacked(row: AnyRow) -> Row:
    """The row as a list of fields."""
    if isinstance(row, list):
        return row
    shape, data = row
    return [NULL if cut is None else data[cut] for cut in shape.cuts]


def field_of(row: AnyRow, index: int) -> Field:
    """One column."""
    if isinstance(row, list):
        return row[index]
    cut = row[0].cuts[index]
    return NULL if cut is None else row[1][cut]
