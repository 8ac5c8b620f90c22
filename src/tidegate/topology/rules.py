"""Routing rules as values: of tables, of shards, of whole keyspaces; and their written forms.

Decides how rules are written, found, set, merged and removed. What a rule leads to is decided in
:mod:`tidegate.topology.routing`; whether a set of rules makes sense, in
:mod:`tidegate.topology.validation`.

Written forms: ``t``, ``keyspace.t``, either with ``@replica``, ``@rdonly`` or ``@primary``, and for
reads of one cell ``@replica:zone1``. What stands before the first dot is always a keyspace:
``ks.sales.t`` is the table ``sales.t`` of ``ks``, and an unqualified table outside the schema
``public`` has a leading dot, ``.sales.t``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.errors import InvalidArgumentError
from tidegate.topology.vschema import canonical_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


#: Names are read again with every topology; a workflow of a thousand tables has nine thousand.
PARSED_MAX: Final = 1 << 16


class TabletType(StrEnum):
    """What a tablet is used for; one tablet may serve several."""

    PRIMARY = "PRIMARY"
    REPLICA = "REPLICA"
    RDONLY = "RDONLY"

    @classmethod
    def parse(cls, text: str) -> TabletType:
        """Read a tablet type in any case.

        Raises:
            InvalidArgumentError: there is no such type.
        """
        try:
            return cls(text.upper())
        except ValueError:
            raise InvalidArgumentError(
                f"unknown tablet type {text!r}", next_step="use primary, replica or rdonly"
            ) from None


READ_TYPES: tuple[TabletType, ...] = (TabletType.REPLICA, TabletType.RDONLY)
"""The types whose traffic is switched cell by cell, apart from writes."""


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table of a keyspace; ``keyspace`` is None when the name does not say which."""

    keyspace: str | None
    table: str

    def __str__(self) -> str:
        if self.keyspace is not None:
            return f"{self.keyspace}.{self.table}"
        return f".{self.table}" if "." in self.table else self.table

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``t``, ``keyspace.t``, ``keyspace.schema.t`` or ``.schema.t``."""
        return _table_name(text)


@dataclass(frozen=True, slots=True)
class RuleSource:
    """What a routing rule applies to; without a tablet type, to all that have no rule of theirs.

    A rule for reads may be for one cell only; writes are the same in every cell.
    """

    table: str
    keyspace: str | None = None
    tablet_type: TabletType | None = None
    cell: str | None = None

    def __post_init__(self) -> None:
        if self.cell is not None and self.tablet_type not in READ_TYPES:
            raise InvalidArgumentError(
                f"a routing rule for cell {self.cell} needs the type of reads it is for",
                next_step=f"write {self.table}@replica:{self.cell} or @rdonly:{self.cell}",
            )

    def __str__(self) -> str:
        name = str(TableName(self.keyspace, self.table))
        if self.tablet_type is None:
            return name
        typed = f"{name}@{self.tablet_type.lower()}"
        return typed if self.cell is None else f"{typed}:{self.cell}"

    def is_shared_by(self, targets: Sequence[str]) -> bool:
        """Whether a rule says that several keyspaces serve a bare name, each by its own table."""
        places = [TableName.parse(target) for target in targets]
        keyspaces = {place.keyspace for place in places}
        return (
            self.keyspace is None
            and len(keyspaces) == len(places) > 1
            and None not in keyspaces
            and {place.table for place in places} == {self.table}
        )

    @classmethod
    def parse(cls, text: str) -> RuleSource:
        """Read ``t``, ``ks.t``, ``ks.t@replica``, ``ks.t@replica:cell`` and so on."""
        return _rule_source(text)


@lru_cache(maxsize=PARSED_MAX)
def _table_name(text: str) -> TableName:
    keyspace, dot, table = text.partition(".")
    return TableName(keyspace or None, canonical_table(table)) if dot else TableName(None, keyspace)


@lru_cache(maxsize=PARSED_MAX)
def _rule_source(text: str) -> RuleSource:
    text, at, tablet_type = text.partition("@")
    name = TableName.parse(text)
    canonical_table(name.table)
    tablet_type, colon, cell = tablet_type.partition(":")
    if not at:
        return RuleSource(name.table, name.keyspace)
    found = TabletType.parse(tablet_type)
    return RuleSource(name.table, name.keyspace, found, cell if colon else None)


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """Table routing rules: from a written source to its targets.

    One target is a redirection, none means that the table is disabled. Several tables of the same
    name are what a bare name stands for that several keyspaces serve: it is ambiguous. More targets
    of another kind are an error of that entry alone, reported when it is used and by validation.
    """

    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rules)

    def find(
        self, keyspace: str | None, table: str, tablet_type: TabletType, cell: str = ""
    ) -> tuple[RuleSource, tuple[str, ...]] | None:
        """The rule for a table as a statement names it: the cell's, the type's, then any."""
        wanted = [RuleSource(table, keyspace, tablet_type), RuleSource(table, keyspace)]
        if cell and tablet_type in READ_TYPES:
            wanted.insert(0, RuleSource(table, keyspace, tablet_type, cell))
        for source in wanted:
            targets = self.rules.get(str(source))
            if targets is not None:
                return source, targets
        return None

    def with_rule(self, source: str | RuleSource, *targets: str | TableName) -> RoutingRules:
        """The same rules with one set; no targets at all disables the table."""
        key = str(RuleSource.parse(source) if isinstance(source, str) else source)
        written = tuple(
            str(TableName.parse(to)) if isinstance(to, str) else str(to) for to in targets
        )
        return RoutingRules({**self.rules, key: written})

    def with_redirections(
        self, redirections: Iterable[tuple[RuleSource, TableName]]
    ) -> RoutingRules:
        """The same rules with many set at once; one by one, each would copy all rules."""
        added = {str(source): (str(target),) for source, target in redirections}
        return RoutingRules({**self.rules, **added})

    def merged(self, other: RoutingRules) -> RoutingRules:
        """These rules and those of ``other``, whose entries win."""
        return RoutingRules({**self.rules, **other.rules})

    def without(self, sources: Iterable[str | RuleSource]) -> RoutingRules:
        """The same rules without these; absent ones are no error."""
        gone = {str(RuleSource.parse(s) if isinstance(s, str) else s) for s in sources}
        return RoutingRules({key: to for key, to in self.rules.items() if key not in gone})

    def by_target(self) -> dict[str, tuple[RuleSource, ...]]:
        """The sources of the rules that lead to each target; both by their written forms."""
        found: dict[str, list[RuleSource]] = {}
        for key, targets in sorted(self.rules.items()):
            for target in dict.fromkeys(targets):
                found.setdefault(target, []).append(RuleSource.parse(key))
        return {target: tuple(sources) for target, sources in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The written form: a list of ``from_table`` and ``to_tables``."""
        return {
            "rules": [
                {"from_table": key, "to_tables": list(targets)}
                for key, targets in sorted(self.rules.items())
            ]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form.

        Raises:
            InvalidArgumentError: a source has two entries, or a name cannot be read.
        """
        rules: dict[str, tuple[str, ...]] = {}
        for entry in data.get("rules") or ():
            key = str(RuleSource.parse(entry["from_table"]))
            if key in rules:
                raise InvalidArgumentError(
                    f"duplicate routing rule for {key}", next_step="keep one rule for each source"
                )
            rules[key] = tuple(str(TableName.parse(to)) for to in entry.get("to_tables") or ())
        return cls(rules)


@dataclass(frozen=True, slots=True)
class ShardRoutingRules:
    """Shards whose traffic goes to the shard of the same name in another keyspace."""

    rules: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, keyspace: str, shard: str) -> str | None:
        """The keyspace that serves the shard, or None when it serves itself."""
        return self.rules.get((keyspace, shard))

    def with_rule(self, keyspace: str, shard: str, to_keyspace: str) -> ShardRoutingRules:
        """The same rules with one set."""
        return ShardRoutingRules({**self.rules, (keyspace, shard): to_keyspace})

    def merged(self, other: ShardRoutingRules) -> ShardRoutingRules:
        """These rules and those of ``other``, whose entries win."""
        return ShardRoutingRules({**self.rules, **other.rules})

    def without(self, sources: Iterable[tuple[str, str]]) -> ShardRoutingRules:
        """The same rules without these (keyspace, shard); absent ones are no error."""
        gone = set(sources)
        return ShardRoutingRules({key: to for key, to in self.rules.items() if key not in gone})

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {
            "rules": [
                {"from_keyspace": keyspace, "shard": shard, "to_keyspace": to}
                for (keyspace, shard), to in sorted(self.rules.items())
            ]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        entries = data.get("rules") or ()
        return cls({(e["from_keyspace"], e["shard"]): e["to_keyspace"] for e in entries})


@dataclass(frozen=True, slots=True)
class KeyspaceRoutingRules:
    """Keyspaces whose traffic goes to another keyspace, by tablet type.

    The entry without a type is the one for writes; a type that has none of its own follows it.
    """

    rules: Mapping[tuple[str, TabletType | None], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, keyspace: str, tablet_type: TabletType) -> str | None:
        """The keyspace that serves this one for a type, or None when there is no rule."""
        own = self.rules.get((keyspace, tablet_type))
        return self.rules.get((keyspace, None)) if own is None else own

    def with_rule(self, source: str, to_keyspace: str) -> KeyspaceRoutingRules:
        """The same rules with one set; the source is ``ks`` or ``ks@replica``."""
        return KeyspaceRoutingRules({**self.rules, self._key(source): to_keyspace})

    def merged(self, other: KeyspaceRoutingRules) -> KeyspaceRoutingRules:
        """These rules and those of ``other``, whose entries win."""
        return KeyspaceRoutingRules({**self.rules, **other.rules})

    def without(self, sources: Iterable[str]) -> KeyspaceRoutingRules:
        """The same rules without these sources; absent ones are no error."""
        gone = {self._key(source) for source in sources}
        return KeyspaceRoutingRules({key: to for key, to in self.rules.items() if key not in gone})

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        written = {self.written(key): to for key, to in self.rules.items()}
        return {
            "rules": [
                {"from_keyspace": key, "to_keyspace": to} for key, to in sorted(written.items())
            ]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        entries = data.get("rules") or ()
        return cls({cls._key(entry["from_keyspace"]): entry["to_keyspace"] for entry in entries})

    @staticmethod
    def written(key: tuple[str, TabletType | None]) -> str:
        """The written form of a rule's source."""
        keyspace, tablet_type = key
        return keyspace if tablet_type is None else f"{keyspace}@{tablet_type.lower()}"

    @staticmethod
    def _key(source: str) -> tuple[str, TabletType | None]:
        keyspace, at, tablet_type = source.partition("@")
        if not at:
            return keyspace, None
        parsed = TabletType.parse(tablet_type)
        return keyspace, None if parsed is TabletType.PRIMARY else parsed
