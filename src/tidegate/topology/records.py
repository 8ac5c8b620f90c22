"""The records of the topology: cells, keyspaces, shards and tablets.

Decides the shape and the written (JSON) form of each record, and which state of a shard means that
it serves. It must not read or write anything, and it never holds a password: a tablet names where
its secret is kept.

Which shards serve is kept in the shard records alone, so that no second record can contradict them.
Writes (``PRIMARY``) follow ``Shard.serving`` everywhere at once. Reads follow it too, unless the
shard says otherwise for a tablet type in a cell: ``reads_disabled`` is what a switch of reads
leaves on the shards it leaves, ``reads_enabled`` what it leaves on those it goes to. From that,
:class:`tidegate.topology.model.Snapshot` derives the partition that serves any
(keyspace, cell, tablet type).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.errors import InvalidArgumentError
from tidegate.topology.rules import READ_TYPES, TabletType
from tidegate.topology.shardspec import shard_key_range
from tidegate.topology.vschema import canonical_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.topology.keyrange import KeyRange

__all__ = ["READ_TYPES", "Cell", "Keyspace", "Shard", "Tablet", "TabletType"]

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_SHARD_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_ALIAS: Final = re.compile(r"(?P<cell>[A-Za-z0-9_][A-Za-z0-9_-]*)-(?P<number>[0-9]+)")
_SECRET: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+")
_PASSWORD: Final = re.compile(
    r"(?:^|[\s?&])(?:ssl)?password\s*=|^[a-z]+://[^/?@]*:[^/?@]*@", re.IGNORECASE
)

type CellsByType = Mapping[TabletType, frozenset[str]]


def _checked_name(name: str, what: str, form: re.Pattern[str] = _NAME) -> None:
    if not form.fullmatch(name):
        raise InvalidArgumentError(
            f"{name!r} is not a name for a {what}",
            next_step="use letters, digits, _ and -",
            name=name,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """A place whose readers are served together: a region, a zone, a data centre."""

    name: str

    def __post_init__(self) -> None:
        _checked_name(self.name, "cell")

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {"name": self.name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        return cls(data["name"])


@dataclass(frozen=True, slots=True)
class Keyspace:
    """A logical database: one shard, or several that share its tables' rows by keyspace id."""

    name: str

    def __post_init__(self) -> None:
        _checked_name(self.name, "keyspace")

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {"name": self.name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        return cls(data["name"])


@dataclass(frozen=True, slots=True)
class Tablet:
    """One database endpoint.

    Attributes:
        alias: ``cell-number``, unique in the topology.
        types: what the endpoint serves; a lone server may be primary, replica and rdonly at once.
        conninfo: libpq's connection string, never with a password in it.
        secret: where the password is kept: ``env:NAME`` or ``file:/path``.
    """

    alias: str
    keyspace: str
    shard: str
    types: frozenset[TabletType]
    conninfo: str
    secret: str | None = None
    engine: str = "postgres"

    def __post_init__(self) -> None:
        if not _ALIAS.fullmatch(self.alias):
            raise InvalidArgumentError(
                f"{self.alias!r} is not a tablet alias",
                next_step="write CELL-NUMBER, as in zone1-100",
            )
        if not self.types:
            raise InvalidArgumentError(
                f"tablet {self.alias} has no type", next_step="give primary, replica or rdonly"
            )
        if _PASSWORD.search(self.conninfo):
            raise InvalidArgumentError(
                f"the connection string of tablet {self.alias} holds a password",
                next_step="leave it out and name its place with secret env:NAME or file:/path",
            )
        if self.secret is not None and not _SECRET.fullmatch(self.secret):
            raise InvalidArgumentError(
                f"the secret of tablet {self.alias} is no reference",
                next_step="write env:NAME or file:/path; never the secret itself",
            )

    @property
    def cell(self) -> str:
        """The cell, as the alias says."""
        return self.alias.rpartition("-")[0]

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {
            "alias": self.alias,
            "keyspace": self.keyspace,
            "shard": self.shard,
            "types": sorted(map(str, self.types)),
            "conninfo": self.conninfo,
            "secret": self.secret,
            "engine": self.engine,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        types = frozenset(map(TabletType.parse, data["types"]))
        return cls(**{**data, "types": types})


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a keyspace: the rows whose keyspace id lies in its key range.

    Attributes:
        serving: whether it takes writes, and reads wherever nothing else is said.
        denied_tables: tables whose rows may not be written here, because they live elsewhere.
        reads_disabled: cells, by tablet type, where reads have been switched away from it.
        reads_enabled: cells, by tablet type, where reads have been switched to it.
    """

    keyspace: str
    name: str
    serving: bool = True
    denied_tables: tuple[str, ...] = ()
    reads_disabled: CellsByType = field(default_factory=dict)
    reads_enabled: CellsByType = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked_name(self.name, "shard", _SHARD_NAME)

    @property
    def key_range(self) -> KeyRange:
        """The range its name stands for; the whole space when the name is no range."""
        return shard_key_range(self.name)

    def serves(self, tablet_type: TabletType, cell: str) -> bool:
        """Whether traffic of a type, from a cell, belongs to this shard."""
        if tablet_type is TabletType.PRIMARY:
            return self.serving
        if cell in self.reads_disabled.get(tablet_type, ()):
            return False
        return self.serving or cell in self.reads_enabled.get(tablet_type, ())

    def denies(self, table: str) -> bool:
        """Whether writes to a table are refused here; a name that no rule can hold is never."""
        return "@" not in table and canonical_table(table) in self.denied_tables

    def with_denied(self, tables: Iterable[str]) -> Shard:
        """The same shard denying these tables too."""
        added = map(canonical_table, tables)
        return replace(self, denied_tables=tuple(sorted({*self.denied_tables, *added})))

    def without_denied(self, tables: Iterable[str]) -> Shard:
        """The same shard no longer denying these tables; absent ones are no error."""
        gone = set(map(canonical_table, tables))
        kept = tuple(table for table in self.denied_tables if table not in gone)
        return replace(self, denied_tables=kept)

    def with_reads(self, tablet_type: TabletType, cells: Iterable[str], *, enabled: bool) -> Shard:
        """The same shard with reads of a type switched on or off in some cells."""
        chosen = frozenset(cells)
        wanted, other = (
            (self.reads_enabled, self.reads_disabled)
            if enabled
            else (self.reads_disabled, self.reads_enabled)
        )
        more = {**wanted, tablet_type: wanted.get(tablet_type, frozenset()) | chosen}
        less = {**other, tablet_type: other.get(tablet_type, frozenset()) - chosen}
        more = {key: value for key, value in more.items() if value}
        left = {key: value for key, value in less.items() if value}
        if enabled:
            return replace(self, reads_enabled=more, reads_disabled=left)
        return replace(self, reads_enabled=left, reads_disabled=more)

    def with_serving(self, *, serving: bool, cells: Iterable[str]) -> Shard:
        """The same shard taking writes or not, while reads in ``cells`` stay as they are."""
        changed = replace(self, serving=serving)
        for tablet_type in READ_TYPES:
            for cell in cells:
                served = self.serves(tablet_type, cell)
                if changed.serves(tablet_type, cell) != served:
                    changed = changed.with_reads(tablet_type, [cell], enabled=served)
        return changed

    def without_read_state(self) -> Shard:
        """The same shard whose reads follow ``serving`` in every cell."""
        return replace(self, reads_disabled={}, reads_enabled={})

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {
            "keyspace": self.keyspace,
            "name": self.name,
            "serving": self.serving,
            "denied_tables": list(self.denied_tables),
            "reads_disabled": _cells_to_json(self.reads_disabled),
            "reads_enabled": _cells_to_json(self.reads_enabled),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        return cls(
            keyspace=data["keyspace"],
            name=data["name"],
            serving=bool(data.get("serving", True)),
            denied_tables=tuple(data.get("denied_tables", ())),
            reads_disabled=_cells_from_json(data.get("reads_disabled", {})),
            reads_enabled=_cells_from_json(data.get("reads_enabled", {})),
        )


def _cells_to_json(cells: CellsByType) -> dict[str, list[str]]:
    return {str(key): sorted(names) for key, names in sorted(cells.items()) if names}


def _cells_from_json(data: Mapping[str, Iterable[str]]) -> dict[TabletType, frozenset[str]]:
    return {TabletType.parse(key): frozenset(names) for key, names in data.items()}
