"""What people do to a topology: add, remove and set its objects, each by name.

Decides what each verb requires and what it says when it refuses: unknown and taken names, parts
that are still in use, a shard layout with gaps. The change itself is a pure function handed to
:meth:`tidegate.topology.store.TopologyStore.update`, which validates the whole and commits it; so
each verb either happens or changes nothing. It must not switch traffic: that is what workflows do,
under their leases.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.routing import ambiguous_tables
from tidegate.topology.rules import KeyspaceRoutingRules, RoutingRules, ShardRoutingRules
from tidegate.topology.shardspec import tiling_findings
from tidegate.topology.validation import vschema_findings
from tidegate.topology.vindexes.param_files import with_files_inlined
from tidegate.topology.vschema import VSchema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore


class TopologyService:
    """The verbs of cells, keyspaces, shards, tablets, vschemas and routing rules."""

    def __init__(self, store: TopologyStore, *, files: Path | None = None) -> None:
        """Serve ``store``; ``files`` is the folder of files that vschemas may name, if any."""
        self.store = store
        self._files = files

    def snapshot(self) -> Snapshot:
        """The whole topology now."""
        return self.store.read()

    def add_cell(self, name: str) -> Cell:
        """Add a cell.

        Raises:
            AlreadyExistsError: there is one of that name.
        """
        cell = Cell(name)

        def change(snapshot: Snapshot) -> Snapshot:
            _refuse_taken(name in snapshot.cells, f"cell {name!r}")
            return snapshot.with_cell(cell)

        self.store.update(change)
        return cell

    def remove_cell(self, name: str) -> None:
        """Remove a cell that no tablet is in.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: tablets are in it.
        """

        def change(snapshot: Snapshot) -> Snapshot:
            if name not in snapshot.cells:
                raise NotFoundError(f"cell {name!r} does not exist", next_step="tidegate cell list")
            _refuse_used(
                f"cell {name!r}", (t.alias for t in snapshot.tablets.values() if t.cell == name)
            )
            return snapshot.without_cell(name)

        self.store.update(change)

    def add_keyspace(self, name: str, *, shards: Iterable[str] = ()) -> Keyspace:
        """Add a keyspace, with shards that tile the key space, or without any yet.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidArgumentError: the name is none, or the shards leave gaps or overlap.
        """
        keyspace = Keyspace(name)
        added = _tiling(name, shards)

        def change(snapshot: Snapshot) -> Snapshot:
            _refuse_taken(name in snapshot.keyspaces, f"keyspace {name!r}")
            return snapshot.with_keyspace(keyspace).with_shard(*added)

        self.store.update(change)
        return keyspace

    def remove_keyspace(self, name: str, *, recursive: bool = False) -> None:
        """Remove a keyspace: with all its shards and tablets when ``recursive``, else without any.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: it has shards, or rules lead to it.
        """

        def change(snapshot: Snapshot) -> Snapshot:
            shards = snapshot.shards_of(name)
            if shards and not recursive:
                _refuse_used(f"keyspace {name!r}", (f"shard {name}/{s.name}" for s in shards))
            _refuse_used(f"keyspace {name!r}", _rules_leading_to(snapshot, name))
            return snapshot.without_keyspace(name)

        self.store.update(change)

    def add_shards(
        self, keyspace: str, names: Iterable[str], *, serving: bool = False
    ) -> tuple[Shard, ...]:
        """Add shards to a keyspace: those of a reshard that is to come, not serving yet.

        The first shards of a keyspace have to tile the key space and serve at once. Later ones have
        to tile it among themselves and those that serve and are outside of their range.

        Raises:
            NotFoundError: no such keyspace.
            AlreadyExistsError: a shard of that name is there.
            InvalidArgumentError: the shards leave gaps or overlap.
        """
        wanted = tuple(names)
        added: tuple[Shard, ...] = ()

        def change(snapshot: Snapshot) -> Snapshot:
            nonlocal added
            present = snapshot.shards_of(keyspace)
            for shard in present:
                _refuse_taken(shard.name in wanted, f"shard {keyspace}/{shard.name}")
            if not present:
                added = _tiling(keyspace, wanted)
            else:
                added = tuple(Shard(keyspace, name, serving=serving) for name in wanted)
                _check_replaces(keyspace, present, added)
            return snapshot.with_shard(*added)

        self.store.update(change)
        return added

    def remove_shard(self, keyspace: str, name: str, *, recursive: bool = False) -> None:
        """Remove a shard that does not serve: with its tablets when ``recursive``.

        Raises:
            NotFoundError: no such keyspace or shard.
            FailedPreconditionError: it serves, or has tablets and ``recursive`` is not given.
        """

        def change(snapshot: Snapshot) -> Snapshot:
            shard = snapshot.shard(keyspace, name)
            place = f"shard {keyspace}/{name}"
            if any(shard.serves(kind, cell) for kind in TabletType for cell in snapshot.cells):
                raise FailedPreconditionError(
                    f"{place} serves traffic",
                    next_step="reshard to other shards first, or remove the keyspace",
                    keyspace=keyspace,
                    shard=name,
                )
            if not recursive:
                _refuse_used(place, (t.alias for t in snapshot.tablets_of(keyspace, name)))
            rules = snapshot.shard_routing_rules.rules.items()
            leading = (
                f"shard routing rule {k}/{s}"
                for (k, s), to in rules
                if s == name and keyspace in {k, to}
            )
            _refuse_used(place, leading)
            return snapshot.without_shard(keyspace, name)

        self.store.update(change)

    def add_tablet(
        self,
        alias: str,
        keyspace: str,
        shard: str,
        *,
        types: Iterable[str],
        conninfo: str,
        secret: str | None = None,
    ) -> Tablet:
        """Add an endpoint to a shard; its cell is the one its alias begins with.

        Raises:
            AlreadyExistsError: the alias is taken.
            NotFoundError: no such keyspace, shard or cell.
            InvalidArgumentError: the alias, the types, the connection string or the reference of
                the secret cannot be right, or the shard has a primary already.
        """
        tablet = Tablet(
            alias=alias,
            keyspace=keyspace,
            shard=shard,
            types=frozenset(map(TabletType.parse, types)),
            conninfo=conninfo,
            secret=secret,
        )

        def change(snapshot: Snapshot) -> Snapshot:
            _refuse_taken(alias in snapshot.tablets, f"tablet {alias}")
            _require_cell(snapshot, tablet.cell)
            return snapshot.with_tablet(tablet)

        self.store.update(change)
        return tablet

    def change_tablet(
        self,
        alias: str,
        *,
        types: Iterable[str] | None = None,
        conninfo: str | None = None,
        secret: str | None = None,
    ) -> Tablet:
        """Change what a tablet serves, or where it is; what is None stays.

        Raises:
            NotFoundError: no such tablet.
            InvalidArgumentError: as :meth:`add_tablet`.
        """
        kinds = None if types is None else frozenset(map(TabletType.parse, types))

        def change(snapshot: Snapshot) -> Snapshot:
            tablet = snapshot.tablet(alias)
            return snapshot.with_tablet(
                replace(
                    tablet,
                    types=tablet.types if kinds is None else kinds,
                    conninfo=tablet.conninfo if conninfo is None else conninfo,
                    secret=tablet.secret if secret is None else secret,
                )
            )

        return self.store.update(change).tablet(alias)

    def remove_tablet(self, alias: str) -> None:
        """Remove an endpoint.

        Raises:
            NotFoundError: no such tablet.
        """

        def change(snapshot: Snapshot) -> Snapshot:
            snapshot.tablet(alias)
            return snapshot.without_tablet(alias)

        self.store.update(change)

    def apply_vschema(
        self, keyspace: str, vschema: VSchema | Mapping[str, Any], *, dry_run: bool = False
    ) -> tuple[VSchema, list[str]]:
        """Replace the vschema of a keyspace; returns it, with what deserves a look.

        Files that vindexes name are read now; the stored vschema holds their content.

        Args:
            keyspace: whose.
            vschema: the value, or its written form.
            dry_run: check it and change nothing.

        Raises:
            NotFoundError: no such keyspace, or no such file in the folder of vindexes' files.
            InvalidArgumentError: it cannot be read, or is wrong; names every error.
        """
        read = vschema if isinstance(vschema, VSchema) else VSchema.from_json(vschema)
        wanted = read if self._files is None else with_files_inlined(read, self._files)

        def change(snapshot: Snapshot) -> Snapshot:
            return snapshot.with_vschema(keyspace, wanted)

        after = self.store.check(change) if dry_run else self.store.update(change)
        warnings = [str(f) for f in vschema_findings(keyspace, wanted) if f.severity == "warning"]
        warnings += [
            f"table {keyspace}.{table}: another keyspace declares it, too; routers that name no"
            " keyspace are refused until a routing rule, or require_explicit_routing, decides"
            for table in ambiguous_tables(after, keyspace)
        ]
        return wanted, warnings

    def apply_routing_rules(self, rules: RoutingRules | Mapping[str, Any]) -> RoutingRules:
        """Replace all table routing rules.

        Raises:
            InvalidArgumentError: they cannot be read, or lead to nothing.
        """
        wanted = rules if isinstance(rules, RoutingRules) else RoutingRules.from_json(rules)
        self.store.update(lambda snapshot: snapshot.with_routing_rules(wanted))
        return wanted

    def apply_shard_routing_rules(
        self, rules: ShardRoutingRules | Mapping[str, Any]
    ) -> ShardRoutingRules:
        """Replace all shard routing rules; errors as :meth:`apply_routing_rules`."""
        wanted = rules
        if not isinstance(wanted, ShardRoutingRules):
            wanted = ShardRoutingRules.from_json(wanted)
        self.store.update(lambda snapshot: snapshot.with_shard_routing_rules(wanted))
        return wanted

    def apply_keyspace_routing_rules(
        self, rules: KeyspaceRoutingRules | Mapping[str, Any]
    ) -> KeyspaceRoutingRules:
        """Replace all keyspace routing rules; errors as :meth:`apply_routing_rules`."""
        wanted = (
            rules
            if isinstance(rules, KeyspaceRoutingRules)
            else KeyspaceRoutingRules.from_json(rules)
        )
        self.store.update(lambda snapshot: snapshot.with_keyspace_routing_rules(wanted))
        return wanted

    def set_denied_tables(
        self, keyspace: str, shard: str, tables: Iterable[str], *, remove: bool = False
    ) -> Shard:
        """Deny writes to tables on a shard, or allow them again with ``remove``.

        Raises:
            NotFoundError: no such keyspace or shard.
            InvalidArgumentError: a name is no table's.
        """
        names = tuple(tables)

        def change(snapshot: Snapshot) -> Snapshot:
            if remove:
                return snapshot.without_denied_tables(keyspace, [shard], names)
            return snapshot.with_denied_tables(keyspace, [shard], names)

        return self.store.update(change).shard(keyspace, shard)


def _refuse_taken(is_taken: bool, what: str) -> None:
    if is_taken:
        raise AlreadyExistsError(f"{what} already exists", next_step="choose another name")


def _refuse_used(what: str, by: Iterable[str]) -> None:
    users = sorted(by)
    if users:
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if users[5:] else "")
        raise FailedPreconditionError(
            f"{what} is still used by {shown}",
            next_step="remove those first, or use --recursive where the command has it",
            used_by=users,
        )


def _require_cell(snapshot: Snapshot, cell: str) -> None:
    if cell not in snapshot.cells:
        raise NotFoundError(
            f"cell {cell!r} does not exist", next_step=f"tidegate cell add {cell}", cell=cell
        )


def _tiling(keyspace: str, names: Iterable[str]) -> tuple[Shard, ...]:
    """Serving shards that cover the key space exactly once; none when there are no names."""
    shards = tuple(Shard(keyspace, name) for name in names)
    findings = _findings(shards) if shards else []
    if findings:
        raise InvalidArgumentError(
            f"the shards of {keyspace} would not cover the key space exactly once:"
            f" {'; '.join(findings)}",
            next_step="name shards that tile it, such as -80,80-",
            findings=findings,
        )
    return shards


def _check_replaces(keyspace: str, present: tuple[Shard, ...], added: tuple[Shard, ...]) -> None:
    """New shards, and the serving ones they leave alone, cover the key space exactly once."""
    apart = [
        shard
        for shard in present
        if shard.serving and not any(shard.key_range.intersects(a.key_range) for a in added)
    ]
    findings = _findings((*apart, *added))
    if findings:
        raise InvalidArgumentError(
            f"the new shards of {keyspace} cannot take the place of serving ones:"
            f" {'; '.join(findings)}",
            next_step=f"compare with tidegate shard list {keyspace}",
            findings=findings,
        )


def _findings(shards: Iterable[Shard]) -> list[str]:
    named = tuple(shards)
    names = [shard.name for shard in named]
    repeated = sorted({name for name in names if names.count(name) > 1})
    ranges = {shard.name: shard.key_range for shard in named}
    return [f"{name} is named twice" for name in repeated] + tiling_findings(ranges)


def _rules_leading_to(snapshot: Snapshot, keyspace: str) -> list[str]:
    """Written forms of the rules that would lead nowhere without this keyspace."""
    found = [
        f"routing rule {source}"
        for source, targets in snapshot.routing_rules.rules.items()
        if any(target.partition(".")[0] == keyspace for target in targets)
    ]
    for (source, shard), to in snapshot.shard_routing_rules.rules.items():
        if keyspace in {source, to}:
            found.append(f"shard routing rule {source}/{shard}")
    for key, to in snapshot.keyspace_routing_rules.rules.items():
        if keyspace == to:
            found.append(f"keyspace routing rule {KeyspaceRoutingRules.written(key)}")
    return found
