"""What every vindex offers: its properties, and its maps in single, bulk and SQL form.

Decides the interface and the parts that follow from ``hash`` alone. The rules are those of Vitess
vindexes; ``map_many`` and ``sql_keyspace_id`` are ours, for copying rows: they must give exactly
what ``map`` gives, value by value, and refuse what must not be a sharding key.
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

from tidegate.errors import FailedPreconditionError, ShardKeyError
from tidegate.topology.destinations import KeyspaceId, Nowhere
from tidegate.topology.vindexes.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.topology.destinations import Destination, KeyRangeDestination

__all__ = ["SqlColumn", "Value", "Vindex"]

type SqlColumn = tuple[str, str]
"""An SQL expression and the name of its PostgreSQL type, as ``format_type`` gives it."""


class Vindex(ABC):
    """A function from the values of some columns to keyspace ids.

    Attributes:
        cost: the planner's price; 0 is nearly the id itself, 1 computed, 100 a last resort.
        unique: at most one id, or one range, for each value; a primary vindex must be.
        needs_cursor: asks a database; none of these does.
        multi_column: ``map``, ``map_many`` and ``verify`` take tuples of columns.
        partial: accepts fewer columns than it has, and then gives a range.
        hashing: usable inside ``multicol``.
        reversible, sequential, prefixable: has ``reverse_map``, ``range_map``, ``prefix_vindex``.
        columns_min, columns_max: how many columns a table must give it.
        unknown_params: parameters that were given and mean nothing to it.
    """

    type: ClassVar[str]
    known_params: ClassVar[tuple[str, ...]] = ()
    unique: ClassVar[bool] = True
    needs_cursor: ClassVar[bool] = False
    multi_column: ClassVar[bool] = False
    partial: ClassVar[bool] = False
    hashing: ClassVar[bool] = True
    reversible: ClassVar[bool] = False
    sequential: ClassVar[bool] = False
    prefixable: ClassVar[bool] = False
    lookup: ClassVar[bool] = False
    validates_params: ClassVar[bool] = True

    cost: int = 1
    columns_min: int = 1
    columns_max: int = 1

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        self.name = name
        self.unknown_params: tuple[str, ...] = (
            unknown_params(self.known_params, params) if self.validates_params else ()
        )

    def __repr__(self) -> str:
        return f"<{self.type} vindex {self.name}>"

    def hash(self, value: Any) -> bytes:
        """The keyspace id of one value.

        Raises:
            ShardKeyError: the value cannot be mapped.
        """
        raise NotImplementedError

    def map(self, values: Sequence[Any]) -> list[Destination]:
        """One destination for each value; :class:`Nowhere` for one that cannot be mapped."""
        return [self._map_one(value) for value in values]

    def map_row(self, row: Sequence[Any]) -> Destination:
        """The destination of one row, whose sharding columns are given in order."""
        return self._map_one(tuple(row) if self.multi_column else row[0])

    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        """The keyspace id of each value, fast, as a sharding key.

        Args:
            values: raw forms (see :mod:`tidegate.topology.vindexes.values`): ``int`` and
                ``bytes`` are fast, everything else ``map`` takes is accepted. A vindex of several
                columns takes tuples.

        Raises:
            ShardKeyError: a value is NULL or cannot be mapped; ``details["index"]`` says which.
        """
        ids = []
        for index, value in enumerate(values):
            if value is None:
                raise null_key(self, index)
            try:
                ids.append(self.hash(value))
            except ShardKeyError as error:
                error.details["index"] = index
                raise
        return ids

    def map_int64s(self, packed: bytes) -> bytes | None:
        """As :meth:`map_many` for signed 64-bit numbers, big-endian and joined, as are the ids.

        For vindexes that map every such number to 8 bytes; None where that is not so.
        """
        del packed
        return None

    def verify(self, values: Sequence[Any], keyspace_ids: Sequence[bytes]) -> list[bool]:
        """Whether each value belongs to the id beside it.

        Raises:
            ShardKeyError: a value cannot be mapped at all.
        """
        pairs = zip(values, keyspace_ids, strict=True)
        return [self.hash(value) == keyspace_id for value, keyspace_id in pairs]

    def reverse_map(self, keyspace_ids: Sequence[bytes]) -> list[Value]:
        """The value of each keyspace id; only where ``reversible``."""
        raise unsupported(self, "reverse_map", keyspace_ids)

    def range_map(self, start: Value, end: Value) -> KeyRangeDestination:
        """Where values from ``start`` up to, without, ``end`` lie; only where ``sequential``."""
        raise unsupported(self, "range_map", (start, end))

    def between(self, low: Value, high: Value) -> KeyRangeDestination:
        """Where values from ``low`` to ``high``, both included, lie; only where ``sequential``."""
        raise unsupported(self, "between", (low, high))

    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        """An SQL expression by which PostgreSQL computes the keyspace id as ``bytea``.

        For every row it equals what ``map_many`` gives for the column's raw form, and it is NULL
        where ``map_many`` refuses: a filter on it would pass over such rows in silence, so whoever
        filters must look for them (``… IS NULL``) and stop.

        Args:
            columns: SQL expressions with the PostgreSQL names of their types.

        Returns:
            None where the database has no built-in function for it, or the type is not supported.
        """
        del columns
        return None

    def _map_one(self, value: Any) -> Destination:
        try:
            return KeyspaceId(self.hash(value))
        except ShardKeyError:
            return Nowhere()


def unknown_params(known: Sequence[str], params: Mapping[str, str]) -> tuple[str, ...]:
    """Names of parameters nobody knows, in the order of the alphabet."""
    return tuple(sorted(set(params) - set(known)))


def null_key(vindex: Vindex, index: int) -> ShardKeyError:
    """The refusal of NULL as a sharding key."""
    return ShardKeyError(
        f"the sharding value of row {index} is NULL; vindex {vindex.name} ({vindex.type}) decides"
        " the shard of every row by it",
        next_step="give every row a sharding value, and make the column NOT NULL",
        index=index,
    )


def unsupported(vindex: Vindex, what: str, arguments: object) -> FailedPreconditionError:
    """The refusal of an operation that this type of vindex does not have."""
    return FailedPreconditionError(
        f"a {vindex.type} vindex has no {what}",
        next_step="use a vindex type that has it",
        vindex=vindex.name,
        arguments=str(arguments),
    )
