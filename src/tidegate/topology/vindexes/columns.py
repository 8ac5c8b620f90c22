"""Vindexes on several columns: multicol and the two region vindexes.

Decides how the ids of single columns are joined. Rules and results are those of Vitess:

* ``multicol``: of each column's hash the leading bytes, joined to at most 8 bytes;
* ``region_experimental``: the low one or two bytes of a number, then the hash of a second column;
* ``region_json``: the same, with the number looked up by a name in the *second* column.

A row with fewer columns than a partial vindex has gives the range of all ids that start with what
is known. Numbers of regions are cut to their low bytes without an error: 256 in one byte is 00.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, override

from tidegate.errors import InvalidArgumentError, NotFoundError, ShardKeyError
from tidegate.topology.destinations import KeyRangeDestination, KeyspaceId, Nowhere
from tidegate.topology.keyrange import KeyRange
from tidegate.topology.vindexes.base import SqlColumn, Value, Vindex, null_key
from tidegate.topology.vindexes.numbers import Hash, json_param
from tidegate.topology.vindexes.param_files import is_inline, unread_file
from tidegate.topology.vindexes.values import text_of, uint_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.topology.destinations import Destination

COLUMNS_MAX: Final = 8
ID_BYTES_MAX: Final = 8

type Row = Sequence[Value]


class _MultiColumn(Vindex):
    """A vindex whose values are rows of columns."""

    multi_column: ClassVar[bool] = True
    hashing: ClassVar[bool] = False

    def prefix(self, row: Row) -> bytes:
        """The joined bytes of the leading columns given; ShardKeyError where one is bad."""
        raise NotImplementedError

    def hash(self, value: Row) -> bytes:
        if len(value) != self.columns_max:
            raise ShardKeyError(
                f"vindex {self.name} ({self.type}) needs {self.columns_max} columns,"
                f" found {len(value)}",
                next_step="give every sharding column",
            )
        return self.prefix(value)

    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        for index, row in enumerate(values):
            if None in row:
                raise null_key(self, index)
        if set(map(len, values)) == {self.columns_max}:
            try:
                return self.join_columns(list(zip(*values, strict=True)))
            except ShardKeyError:
                pass  # row by row, so that the error names the row
        return super().map_many(values)

    def join_columns(self, columns: list[tuple[Value, ...]]) -> list[bytes]:
        """The ids of many whole rows, given column by column; ShardKeyError where one is bad."""
        raise NotImplementedError

    def verify(self, values: Sequence[Any], keyspace_ids: Sequence[bytes]) -> list[bool]:
        mapped = self.map(values)
        pairs = zip(mapped, keyspace_ids, strict=True)
        return [destination == KeyspaceId(keyspace_id) for destination, keyspace_id in pairs]

    def _map_one(self, value: Row) -> Destination:
        if not self.columns_min <= len(value) <= self.columns_max:
            return Nowhere()
        try:
            prefix = self.prefix(value)
        except ShardKeyError:
            return Nowhere()
        if len(value) == self.columns_max:
            return KeyspaceId(prefix)
        return KeyRangeDestination(KeyRange.from_prefix(prefix))


class MultiCol(_MultiColumn):
    """Leading bytes of each column's own hash, joined."""

    type: ClassVar[str] = "multicol"
    known_params: ClassVar[tuple[str, ...]] = ("column_count", "column_bytes", "column_vindex")
    validates_params: ClassVar[bool] = False
    partial: ClassVar[bool] = True

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        super().__init__(name, params)
        count = _column_count(params)
        self.widths = _column_bytes(params, count)
        self.vindexes = _column_vindexes(name, params, count)
        self.columns_max = count
        self.cost = sum(vindex.cost for vindex in self.vindexes)

    @override
    def prefix(self, row: Row) -> bytes:
        joined = b""
        filled = 0
        for value, vindex, width in zip(row, self.vindexes, self.widths, strict=False):
            # A hash shorter than its share is filled up only when a later column follows.
            joined = joined.ljust(filled, b"\0") + vindex.hash(value)[:width]
            filled += width
        return joined

    @override
    def join_columns(self, columns: list[tuple[Value, ...]]) -> list[bytes]:
        pieces = []
        for place, (column, width) in enumerate(zip(columns, self.widths, strict=True)):
            hashed = [each[:width] for each in self.vindexes[place].map_many(column)]
            if place < len(columns) - 1:
                hashed = [each.ljust(width, b"\0") for each in hashed]
            pieces.append(hashed)
        return list(map(b"".join, zip(*pieces, strict=True)))

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        if len(columns) != self.columns_max:
            return None
        pieces = []
        for place, column in enumerate(columns):
            expression = self.vindexes[place].sql_keyspace_id([column])
            if expression is None:
                return None
            if place < len(columns) - 1:
                expression = f"({expression}) || '\\x{'00' * ID_BYTES_MAX}'::bytea"
            pieces.append(f"substring({expression} from 1 for {self.widths[place]})")
        return f"({' || '.join(pieces)})"


def _multicol_error(reason: str, param: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{reason} in the parameter '{param}'",
        next_step=f"mend {param} in the vschema",
        param=param,
    )


def _column_count(params: Mapping[str, str]) -> int:
    text = params.get("column_count")
    if text is None:
        raise _multicol_error("number of columns not provided", "column_count")
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= COLUMNS_MAX:
        raise _multicol_error(
            f"number of columns should be between 1 and {COLUMNS_MAX}", "column_count"
        )
    return int(text)


def _column_bytes(params: Mapping[str, str], count: int) -> tuple[int, ...]:
    """Bytes for each column: those given, and the rest dealt out from left to right."""
    given = [part.strip() for part in params.get("column_bytes", "").split(",")]
    if len(given) > count:
        raise _multicol_error(
            "number of column bytes provided are more than column count", "column_bytes"
        )
    if any(part and (not part.isdecimal() or len(part) > 3) for part in given):
        raise _multicol_error("column bytes should be whole numbers", "column_bytes")
    widths = [int(part) if part else 0 for part in given] + [0] * (count - len(given))
    pending = widths.count(0)
    left = ID_BYTES_MAX - sum(widths)
    if pending > left:
        raise _multicol_error(
            "column bytes count exceeds the keyspace id length"
            f" (total bytes count cannot exceed {ID_BYTES_MAX} bytes)",
            "column_bytes",
        )
    for place, width in enumerate(widths):
        if width == 0:
            widths[place] = -(-left // pending)
            left -= widths[place]
            pending -= 1
    return tuple(widths)


def _column_vindexes(name: str, params: Mapping[str, str], count: int) -> tuple[Vindex, ...]:
    from tidegate.topology.vindexes import create  # noqa: PLC0415  # the registry holds this class

    given = [part.strip() for part in params.get("column_vindex", "").split(",")]
    if len(given) > count:
        raise _multicol_error(
            "number of vindex function provided are more than column count", "column_vindex"
        )
    types = given + [""] * (count - len(given))
    found = []
    for place, type_name in enumerate(types):
        try:
            vindex = create(type_name or Hash.type, f"{name}_{place}")
        except (NotFoundError, InvalidArgumentError):
            vindex = None  # reported below, in the words for all unfit types
        if vindex is None or not vindex.hashing or not vindex.unique or vindex.needs_cursor:
            raise InvalidArgumentError(
                "multicol vindex supports vindexes that exports hashing function, are unique and"
                f" are non-lookup vindex, passed vindex '{type_name}' is invalid",
                next_step="use types such as hash, xxhash, binary_md5 or numeric",
                param="column_vindex",
            )
        found.append(vindex)
    return tuple(found)


def _region_bytes(vindex: Vindex, params: Mapping[str, str]) -> int:
    text = params.get("region_bytes")
    if text is None:
        raise InvalidArgumentError(
            f"{vindex.type} missing region_bytes param", next_step="set region_bytes to 1 or 2"
        )
    if text not in {"1", "2"}:
        raise InvalidArgumentError(
            f"region_bytes must be 1 or 2: {text}", next_step="set region_bytes to 1 or 2"
        )
    return int(text)


def _region_prefix(number: int, width: int) -> bytes:
    return (number & 0xFFFF).to_bytes(2, "big")[-width:]


class RegionExperimental(_MultiColumn):
    """The low bytes of column one, then the hash of column two; neither may be negative."""

    type: ClassVar[str] = "region_experimental"
    known_params: ClassVar[tuple[str, ...]] = ("region_bytes",)
    partial: ClassVar[bool] = True
    columns_max = 2

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        super().__init__(name, params)
        self.width = _region_bytes(self, params)
        self._hash = Hash(f"{name}_hash", {})

    @override
    def prefix(self, row: Row) -> bytes:
        region = _region_prefix(uint_of(row[0]), self.width)
        return region + self._hash.map_unsigned([row[1]])[0] if len(row) > 1 else region

    @override
    def join_columns(self, columns: list[tuple[Value, ...]]) -> list[bytes]:
        regions = [_region_prefix(uint_of(value), self.width) for value in columns[0]]
        hashed = self._hash.map_unsigned(columns[1])
        return [region + each for region, each in zip(regions, hashed, strict=True)]


class RegionJson(_MultiColumn):
    """The low bytes of the number that column two names, then the hash of column one.

    ``region_map`` is a JSON object from names to numbers. A file that it names is read when the
    vschema is applied (``param_files``), not here. Column one may not be negative.
    """

    type: ClassVar[str] = "region_json"
    known_params: ClassVar[tuple[str, ...]] = ("region_map", "region_bytes")
    columns_min = 2
    columns_max = 2

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        super().__init__(name, params)
        self.width = _region_bytes(self, params)
        if not params.get("region_map"):
            raise InvalidArgumentError(
                "region_json missing region_map param",
                next_step="set region_map to a JSON object, or to the name of a file with one",
            )
        if not is_inline(params["region_map"]):
            raise unread_file(name, "region_map")
        self.regions = json_param(self, params["region_map"])
        self._hash = Hash(f"{name}_hash", {})

    @override
    def prefix(self, row: Row) -> bytes:
        return self._region(row[1]) + self._hash.map_unsigned([row[0]])[0]

    @override
    def join_columns(self, columns: list[tuple[Value, ...]]) -> list[bytes]:
        hashed = self._hash.map_unsigned(columns[0])
        pairs = zip(map(self._region, columns[1]), hashed, strict=True)
        return [region + each for region, each in pairs]

    def _region(self, name: Value) -> bytes:
        number = self.regions.get(text_of(name).decode(errors="replace"))
        if type(number) is not int:
            raise ShardKeyError(
                f"vindex {self.name}: {name!r} is not in its region_map",
                next_step="add it to the region_map",
            )
        return _region_prefix(number, self.width)
