"""Destinations: what a value, a range or a request maps to, and which shards that means.

Decides, for each kind of destination, the shards of a layout it stands for. It must not know
tables or tablets; "any shard" takes its choice as an argument.

Kinds, order and error sentences are those of Vitess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.errors import FailedPreconditionError, InvalidArgumentError
from tidegate.topology.keyrange import KeyRange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class KeyspaceId:
    """The shard that holds one keyspace id."""

    id: bytes

    def __str__(self) -> str:
        return f"DestinationKeyspaceID({self.id.hex()})"


@dataclass(frozen=True, slots=True)
class KeyspaceIds:
    """The shards that hold several ids, in that order and with repetitions."""

    ids: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"DestinationKeyspaceIDs({','.join(each.hex() for each in self.ids)})"


@dataclass(frozen=True, slots=True)
class KeyRangeDestination:
    """Every shard that a range touches."""

    key_range: KeyRange = field(default_factory=KeyRange)

    def __str__(self) -> str:
        return f"DestinationKeyRange({self.key_range})"


@dataclass(frozen=True, slots=True)
class ExactKeyRange:
    """The shards that make up a range exactly."""

    key_range: KeyRange = field(default_factory=KeyRange)

    def __str__(self) -> str:
        return f"DestinationExactKeyRange({self.key_range})"


@dataclass(frozen=True, slots=True)
class AllShards:
    """Every shard."""

    def __str__(self) -> str:
        return "DestinationAllShards()"


@dataclass(frozen=True, slots=True)
class AnyShard:
    """Any one shard, whichever."""

    def __str__(self) -> str:
        return "DestinationAnyShard()"


@dataclass(frozen=True, slots=True)
class Nowhere:
    """No shard: the value cannot be mapped."""

    def __str__(self) -> str:
        return "DestinationNone()"


@dataclass(frozen=True, slots=True)
class NamedShard:
    """A shard by name, whether it exists or not."""

    shard: str

    def __str__(self) -> str:
        return f"DestinationShard({self.shard})"


@dataclass(frozen=True, slots=True)
class NamedShards:
    """Several shards by name, whether they exist or not."""

    shards: tuple[str, ...]

    def __str__(self) -> str:
        return f"DestinationShards({','.join(self.shards)})"


type Destination = (
    KeyspaceId
    | KeyspaceIds
    | KeyRangeDestination
    | ExactKeyRange
    | AllShards
    | AnyShard
    | Nowhere
    | NamedShard
    | NamedShards
)


def resolve_destination(
    destination: Destination,
    shards: Mapping[str, KeyRange],
    choose: Callable[[Sequence[str]], str] = min,
) -> tuple[str, ...]:
    """The shards of a layout that a destination stands for.

    Args:
        destination: what to resolve.
        shards: key ranges by name, in the layout's order.
        choose: picks one shard for :class:`AnyShard`.

    Raises:
        InvalidArgumentError: an id lies in no shard, or an exact range is not made up of shards.
        FailedPreconditionError: one shard is needed and the layout has none.
    """
    match destination:
        case KeyspaceId(keyspace_id):
            return (_holding(keyspace_id, shards),)
        case KeyspaceIds(ids):
            return tuple(_holding(each, shards) for each in ids)
        case ExactKeyRange(key_range):
            return _exactly(key_range, shards)
        case AnyShard():
            if not shards:
                raise _no_shard()
            return (choose(list(shards)),)
        case _:
            return _plain(destination, shards)


def _plain(
    destination: KeyRangeDestination | AllShards | Nowhere | NamedShard | NamedShards,
    shards: Mapping[str, KeyRange],
) -> tuple[str, ...]:
    """The kinds that cannot fail."""
    match destination:
        case KeyRangeDestination(key_range):
            return tuple(name for name, held in shards.items() if held.intersects(key_range))
        case AllShards():
            return tuple(shards)
        case Nowhere():
            return ()
        case NamedShard(name):
            return (name,)
        case NamedShards(names):
            return names


def _no_shard() -> FailedPreconditionError:
    return FailedPreconditionError(
        "no shard in keyspace", next_step="add shards to the keyspace: tidegate shard create"
    )


def _holding(keyspace_id: bytes, shards: Mapping[str, KeyRange]) -> str:
    """The first shard, in the layout's order, whose range contains the id."""
    if not shards:
        raise _no_shard()
    for name, key_range in shards.items():
        if key_range.contains(keyspace_id):
            return name
    raise InvalidArgumentError(
        f"KeyspaceId {keyspace_id.hex()} didn't match any shards",
        next_step="the serving shards leave a gap: tidegate shard list",
        keyspace_id=keyspace_id.hex(),
    )


def _exactly(key_range: KeyRange, shards: Mapping[str, KeyRange]) -> tuple[str, ...]:
    """Neighbouring shards from the range's start to its end, all or none."""
    ordered = sorted(shards.items(), key=lambda item: item[1])
    found: list[str] = []
    reached: KeyRange | None = None
    for name, held in ordered:
        if reached is None and held.start_equals(key_range):
            reached = held
        elif reached is None or not reached.is_contiguous_with(held):
            continue
        else:
            reached = held
        found.append(name)
        if held.end_equals(key_range):
            return tuple(found)
    raise InvalidArgumentError(
        f"keyrange {key_range} does not exactly match shards",
        next_step="name a range whose limits are limits of shards: tidegate shard list",
        key_range=str(key_range),
    )
