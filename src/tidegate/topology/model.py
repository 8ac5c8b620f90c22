"""The whole topology as one frozen value, at one revision.

Decides what belongs to the topology, how its objects are named and written, and which shards and
tablets serve. It never changes: each ``with_…`` returns another snapshot at the *same* revision,
and whoever keeps topologies commits the difference of the two by compare-and-swap on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from tidegate.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tidegate.topology.records import READ_TYPES, Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.rules import KeyspaceRoutingRules, RoutingRules, ShardRoutingRules
from tidegate.topology.shardspec import tiling_findings
from tidegate.topology.vschema import VSchema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "KINDS",
    "READ_TYPES",
    "Cell",
    "Keyspace",
    "ObjectKey",
    "Shard",
    "Snapshot",
    "Tablet",
    "TabletType",
]

type ObjectKey = tuple[str, str]
"""Kind and name of a stored object, as in ``("shard", "commerce/-80")``."""


@dataclass(frozen=True)
class Snapshot:
    """All cells, keyspaces, shards, tablets, vschemas and routing rules."""

    revision: int = 0
    cells: Mapping[str, Cell] = field(default_factory=dict)
    keyspaces: Mapping[str, Keyspace] = field(default_factory=dict)
    shards: Mapping[tuple[str, str], Shard] = field(default_factory=dict)
    tablets: Mapping[str, Tablet] = field(default_factory=dict)
    vschemas: Mapping[str, VSchema] = field(default_factory=dict)
    routing_rules: RoutingRules = field(default_factory=RoutingRules)
    shard_routing_rules: ShardRoutingRules = field(default_factory=ShardRoutingRules)
    keyspace_routing_rules: KeyspaceRoutingRules = field(default_factory=KeyspaceRoutingRules)

    @cached_property
    def _by_keyspace(self) -> dict[str, tuple[Shard, ...]]:
        """Shards of each keyspace in order; like all caches here, a snapshot never outgrows it."""
        found: dict[str, list[Shard]] = {}
        for shard in sorted(self.shards.values(), key=lambda each: (each.key_range, each.name)):
            found.setdefault(shard.keyspace, []).append(shard)
        return {keyspace: tuple(shards) for keyspace, shards in found.items()}

    @cached_property
    def _by_shard(self) -> dict[tuple[str, str], tuple[Tablet, ...]]:
        found: dict[tuple[str, str], list[Tablet]] = {}
        for _, tablet in sorted(self.tablets.items()):
            found.setdefault((tablet.keyspace, tablet.shard), []).append(tablet)
        return {shard: tuple(tablets) for shard, tablets in found.items()}

    @cached_property
    def _partitions(self) -> dict[tuple[str, TabletType, str], tuple[Shard, ...]]:
        return {}

    def keyspace(self, name: str) -> Keyspace:
        """The keyspace of that name, else NotFoundError."""
        found = self.keyspaces.get(name)
        if found is None:
            raise NotFoundError(
                f"keyspace {name!r} does not exist",
                next_step="tidegate keyspace list",
                keyspace=name,
            )
        return found

    def shard(self, keyspace: str, name: str) -> Shard:
        """The shard of that name, else NotFoundError."""
        found = self.shards.get((keyspace, name))
        if found is None:
            self.keyspace(keyspace)
            raise NotFoundError(
                f"shard {keyspace}/{name} does not exist",
                next_step=f"tidegate shard list {keyspace}",
                keyspace=keyspace,
                shard=name,
            )
        return found

    def tablet(self, alias: str) -> Tablet:
        """The tablet of that alias, else NotFoundError."""
        found = self.tablets.get(alias)
        if found is None:
            raise NotFoundError(
                f"tablet {alias} does not exist", next_step="tidegate tablet list", alias=alias
            )
        return found

    def vschema(self, keyspace: str) -> VSchema:
        """The vschema of a keyspace; an unsharded, empty one when none has been given."""
        self.keyspace(keyspace)
        return self.vschemas.get(keyspace, VSchema())

    def shards_of(self, keyspace: str) -> tuple[Shard, ...]:
        """All shards of a keyspace, serving or not, by key range and name."""
        self.keyspace(keyspace)
        return self._by_keyspace.get(keyspace, ())

    def serving_shards(
        self, keyspace: str, tablet_type: TabletType = TabletType.PRIMARY, cell: str = ""
    ) -> tuple[Shard, ...]:
        """The partition that serves a type in a cell; for PRIMARY the cell does not matter."""
        asked = (keyspace, tablet_type, cell)
        found = self._partitions.get(asked)
        if found is None:
            found = tuple(
                shard for shard in self.shards_of(keyspace) if shard.serves(tablet_type, cell)
            )
            self._partitions[asked] = found
        return found

    def tablets_of(
        self, keyspace: str, shard: str, tablet_type: TabletType | None = None
    ) -> tuple[Tablet, ...]:
        """The tablets of a shard, of one type or of all, by alias."""
        self.shard(keyspace, shard)
        return tuple(
            tablet
            for tablet in self._by_shard.get((keyspace, shard), ())
            if tablet_type is None or tablet_type in tablet.types
        )

    def primary_of(self, keyspace: str, shard: str) -> Tablet:
        """The one primary tablet of a shard.

        Raises:
            NotFoundError: the shard does not exist.
            FailedPreconditionError: it has no primary, or more than one.
        """
        found = self.tablets_of(keyspace, shard, TabletType.PRIMARY)
        if len(found) != 1:
            named = ", ".join(tablet.alias for tablet in found) or "none"
            raise FailedPreconditionError(
                f"shard {keyspace}/{shard} needs exactly one primary tablet, found {named}",
                next_step="tidegate tablet list",
                keyspace=keyspace,
                shard=shard,
            )
        return found[0]

    def with_cell(self, cell: Cell) -> Snapshot:
        """With a cell added or replaced."""
        return replace(self, cells={**self.cells, cell.name: cell})

    def with_keyspace(self, keyspace: Keyspace) -> Snapshot:
        """With a keyspace added or replaced."""
        return replace(self, keyspaces={**self.keyspaces, keyspace.name: keyspace})

    def with_shard(self, *shards: Shard) -> Snapshot:
        """With shards added or replaced."""
        for shard in shards:
            self.keyspace(shard.keyspace)
        added = {(shard.keyspace, shard.name): shard for shard in shards}
        return replace(self, shards={**self.shards, **added})

    def with_tablet(self, tablet: Tablet) -> Snapshot:
        """With a tablet added or replaced; its shard must exist."""
        self.shard(tablet.keyspace, tablet.shard)
        return replace(self, tablets={**self.tablets, tablet.alias: tablet})

    def with_vschema(self, keyspace: str, vschema: VSchema) -> Snapshot:
        """With the vschema of a keyspace replaced."""
        self.keyspace(keyspace)
        return replace(self, vschemas={**self.vschemas, keyspace: vschema})

    def with_routing_rules(self, rules: RoutingRules) -> Snapshot:
        """With all table routing rules replaced."""
        return replace(self, routing_rules=rules)

    def with_shard_routing_rules(self, rules: ShardRoutingRules) -> Snapshot:
        """With all shard routing rules replaced."""
        return replace(self, shard_routing_rules=rules)

    def with_keyspace_routing_rules(self, rules: KeyspaceRoutingRules) -> Snapshot:
        """With all keyspace routing rules replaced."""
        return replace(self, keyspace_routing_rules=rules)

    def without_cell(self, name: str) -> Snapshot:
        """Without a cell; an absent one is no error."""
        return replace(self, cells={k: v for k, v in self.cells.items() if k != name})

    def without_tablet(self, alias: str) -> Snapshot:
        """Without a tablet; an absent one is no error."""
        return replace(self, tablets={k: v for k, v in self.tablets.items() if k != alias})

    def without_shard(self, keyspace: str, name: str) -> Snapshot:
        """Without a shard and its tablets; an absent one is no error."""
        gone = (keyspace, name)
        return replace(
            self,
            shards={k: v for k, v in self.shards.items() if k != gone},
            tablets={k: v for k, v in self.tablets.items() if (v.keyspace, v.shard) != gone},
        )

    def without_keyspace(self, name: str) -> Snapshot:
        """Without a keyspace, its shards, tablets and vschema; an absent one is no error."""
        return replace(
            self,
            keyspaces={k: v for k, v in self.keyspaces.items() if k != name},
            shards={k: v for k, v in self.shards.items() if v.keyspace != name},
            tablets={k: v for k, v in self.tablets.items() if v.keyspace != name},
            vschemas={k: v for k, v in self.vschemas.items() if k != name},
        )

    def with_denied_tables(
        self, keyspace: str, shards: Iterable[str], tables: Iterable[str]
    ) -> Snapshot:
        """With tables denied on some shards of a keyspace."""
        names = tuple(tables)
        changed = [self.shard(keyspace, name).with_denied(names) for name in shards]
        return self.with_shard(*changed)

    def without_denied_tables(
        self, keyspace: str, shards: Iterable[str], tables: Iterable[str]
    ) -> Snapshot:
        """With tables no longer denied on some shards of a keyspace."""
        names = tuple(tables)
        changed = [self.shard(keyspace, name).without_denied(names) for name in shards]
        return self.with_shard(*changed)

    def with_reads_switched(
        self,
        keyspace: str,
        tablet_type: TabletType,
        cells: Iterable[str],
        *,
        away_from: Iterable[str],
        to: Iterable[str],
    ) -> Snapshot:
        """With reads of a type, in some cells, moved from shards to others.

        Raises:
            InvalidArgumentError: the type is not one of reads, or the shards that would serve then
                do not tile the key space.
        """
        if tablet_type not in READ_TYPES:
            raise InvalidArgumentError(
                f"{tablet_type} is not switched by cell", next_step="switch writes instead"
            )
        chosen = tuple(cells)
        changed = [
            self.shard(keyspace, name).with_reads(tablet_type, chosen, enabled=enabled)
            for names, enabled in ((away_from, False), (to, True))
            for name in names
        ]
        after = self.with_shard(*changed)
        for cell in chosen:
            after.check_partition(keyspace, tablet_type, cell)
        return after

    def with_writes_switched(
        self, keyspace: str, *, away_from: Iterable[str], to: Iterable[str]
    ) -> Snapshot:
        """With writes moved from shards to others, and reads left in every cell as they are.

        Raises:
            InvalidArgumentError: the shards that would serve then do not tile the key space.
        """
        changed = [
            self.shard(keyspace, name).with_serving(serving=serving, cells=self.cells)
            for names, serving in ((away_from, False), (to, True))
            for name in names
        ]
        after = self.with_shard(*changed)
        after.check_partition(keyspace, TabletType.PRIMARY, "")
        return after

    def check_partition(self, keyspace: str, tablet_type: TabletType, cell: str) -> None:
        """Make sure that the shards serving a type in a cell tile the key space.

        Raises:
            InvalidArgumentError: naming each gap and overlap.
        """
        findings = self.partition_findings(keyspace, tablet_type, cell)
        if findings:
            where = f"{keyspace} ({tablet_type.lower()}{f' in {cell}' if cell else ''})"
            raise InvalidArgumentError(
                f"the shards serving {where} do not cover the key space exactly once:"
                f" {'; '.join(findings)}",
                next_step=f"tidegate shard list {keyspace}",
                findings=findings,
            )

    def partition_findings(self, keyspace: str, tablet_type: TabletType, cell: str) -> list[str]:
        """Gaps and overlaps among the shards that serve a type in a cell."""
        serving = self.serving_shards(keyspace, tablet_type, cell)
        return tiling_findings({shard.name: shard.key_range for shard in serving})

    def objects(self) -> dict[ObjectKey, dict[str, Any]]:
        """Every object under its kind and name, in the written form; rules are one object each."""
        found: dict[ObjectKey, dict[str, Any]] = {}
        for name, cell in self.cells.items():
            found["cell", name] = cell.to_json()
        for name, keyspace in self.keyspaces.items():
            found["keyspace", name] = keyspace.to_json()
        for shard in self.shards.values():
            found["shard", f"{shard.keyspace}/{shard.name}"] = shard.to_json()
        for alias, tablet in self.tablets.items():
            found["tablet", alias] = tablet.to_json()
        for name, vschema in self.vschemas.items():
            found["vschema", name] = vschema.to_json()
        for entry in self.routing_rules.to_json()["rules"]:
            found["routing_rule", entry["from_table"]] = entry
        for entry in self.shard_routing_rules.to_json()["rules"]:
            found["shard_routing_rule", f"{entry['from_keyspace']}/{entry['shard']}"] = entry
        for entry in self.keyspace_routing_rules.to_json()["rules"]:
            found["keyspace_routing_rule", entry["from_keyspace"]] = entry
        return found

    @classmethod
    def from_objects(cls, revision: int, objects: Mapping[ObjectKey, Mapping[str, Any]]) -> Self:
        """Rebuild a snapshot from what :meth:`objects` gave; the order does not matter.

        Raises:
            InvalidArgumentError: an object of an unknown kind, such as a newer version writes.
        """
        by_kind: dict[str, dict[str, Mapping[str, Any]]] = {kind: {} for kind in KINDS}
        for (kind, name), data in objects.items():
            if kind not in by_kind:
                raise InvalidArgumentError(
                    f"the topology holds an object of unknown kind {kind!r}: {name}",
                    next_step="run the version of tidegate that wrote it, or a newer one",
                )
            by_kind[kind][name] = data
        shards = map(Shard.from_json, by_kind["shard"].values())
        return cls(
            revision=revision,
            cells={k: Cell.from_json(v) for k, v in by_kind["cell"].items()},
            keyspaces={k: Keyspace.from_json(v) for k, v in by_kind["keyspace"].items()},
            shards={(shard.keyspace, shard.name): shard for shard in shards},
            tablets={k: Tablet.from_json(v) for k, v in by_kind["tablet"].items()},
            vschemas={k: VSchema.from_json(v) for k, v in by_kind["vschema"].items()},
            routing_rules=RoutingRules.from_json({"rules": by_kind["routing_rule"].values()}),
            shard_routing_rules=ShardRoutingRules.from_json(
                {"rules": by_kind["shard_routing_rule"].values()}
            ),
            keyspace_routing_rules=KeyspaceRoutingRules.from_json(
                {"rules": by_kind["keyspace_routing_rule"].values()}
            ),
        )


KINDS: tuple[str, ...] = (
    "cell",
    "keyspace",
    "shard",
    "tablet",
    "vschema",
    "routing_rule",
    "shard_routing_rule",
    "keyspace_routing_rule",
)
"""Every kind of object a topology is stored as."""
