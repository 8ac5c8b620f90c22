"""Whether a topology, a vschema or a set of rules makes sense: all findings at once.

Decides what is wrong (``error``) and what deserves a look (``warning``). An error is a state that
no order of steps needs: a reference to nothing, two shards that would both take writes for a key, a
vschema no row could be placed by. What may be true for a while, as a gap while shards are being
made, is a warning; one broken keyspace does not hide what is wrong with another.

The rules of vschemas are those of Vitess.
"""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from tidegate.errors import InvalidArgumentError, TidegateError
from tidegate.topology import vindexes
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.rules import KeyspaceRoutingRules, RuleSource, TableName
from tidegate.topology.vschema import TableKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tidegate.topology.model import Snapshot
    from tidegate.topology.vindexes import Vindex
    from tidegate.topology.vschema import ColumnVindex, TableSpec, VSchema

_HEX: Final = frozenset(string.hexdigits)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong, or deserves a look; ``place`` names the object it is about."""

    severity: Literal["error", "warning"]
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def validate(snapshot: Snapshot) -> None:
    """Refuse a topology that has errors.

    Raises:
        InvalidArgumentError: every error is in the message, and in ``details["findings"]``.
    """
    _refuse(snapshot_findings(snapshot), "the topology would be wrong")


def validate_vschema(keyspace: str, vschema: VSchema) -> None:
    """Refuse a vschema that has errors; as :func:`validate`."""
    _refuse(vschema_findings(keyspace, vschema), f"the vschema of {keyspace} is wrong")


def _refuse(findings: Iterable[Finding], what: str) -> None:
    errors = sorted(str(each) for each in findings if each.severity == "error")
    if errors:
        raise InvalidArgumentError(
            f"{what}: {'; '.join(errors)}",
            next_step="mend what is named and try again",
            findings=errors,
        )


def snapshot_findings(snapshot: Snapshot) -> list[Finding]:
    """Everything there is to say about a topology: errors first, then by place."""
    found = [
        *_record_findings(snapshot),
        *_partition_findings(snapshot),
        *_rule_findings(snapshot),
        *_shard_rule_findings(snapshot),
    ]
    for keyspace, vschema in snapshot.vschemas.items():
        if keyspace not in snapshot.keyspaces:
            found.append(_error(f"vschema {keyspace}", "its keyspace does not exist"))
        found += vschema_findings(keyspace, vschema)
        found += _reference_findings(snapshot, keyspace, vschema)
    return sorted(found)


def _error(place: str, message: str) -> Finding:
    return Finding("error", place, message)


def _warning(place: str, message: str) -> Finding:
    return Finding("warning", place, message)


def _record_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """References between shards, tablets and cells."""
    for shard in snapshot.shards.values():
        place = f"shard {shard.keyspace}/{shard.name}"
        if shard.keyspace not in snapshot.keyspaces:
            yield _error(place, "its keyspace does not exist")
        named = {cell for cells in shard.reads_disabled.values() for cell in cells}
        named |= {cell for cells in shard.reads_enabled.values() for cell in cells}
        for cell in sorted(named - set(snapshot.cells)):
            yield _warning(place, f"it records reads in cell {cell}, which does not exist")
    primaries: Counter[tuple[str, str]] = Counter()
    for tablet in snapshot.tablets.values():
        place = f"tablet {tablet.alias}"
        if (tablet.keyspace, tablet.shard) not in snapshot.shards:
            yield _error(place, f"its shard {tablet.keyspace}/{tablet.shard} does not exist")
        if tablet.cell not in snapshot.cells:
            yield _error(place, f"its cell {tablet.cell} does not exist")
        primaries[tablet.keyspace, tablet.shard] += TabletType.PRIMARY in tablet.types
    for (keyspace, name), count in primaries.items():
        if count > 1:
            yield _error(f"shard {keyspace}/{name}", f"it has {count} primary tablets")


def _partition_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Overlaps and gaps among the shards that serve."""
    cells = [(TabletType.PRIMARY, "")]
    cells += [(kind, cell) for kind in READ_TYPES for cell in snapshot.cells]
    for keyspace in snapshot.keyspaces:
        said: set[str] = set()
        for tablet_type, cell in cells:
            where = f" of {tablet_type.lower()}{f' in {cell}' if cell else ''}"
            for finding in snapshot.partition_findings(keyspace, tablet_type, cell):
                if finding in said:
                    continue
                said.add(finding)
                wrong = "overlap" in finding
                report = _error if wrong else _warning
                yield report(f"keyspace {keyspace}", f"serving shards{where}: {finding}")


def _rule_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Table routing rules: one qualified target each, and keyspaces and tables that exist."""
    for source, targets in snapshot.routing_rules.rules.items():
        place = f"routing rule {source}"
        ruled = RuleSource.parse(source)
        keyspace = ruled.keyspace
        if ruled.cell is not None and ruled.cell not in snapshot.cells:
            yield _warning(place, f"cell {ruled.cell} does not exist")
        if keyspace is not None and keyspace not in snapshot.keyspaces:
            yield _warning(place, f"keyspace {keyspace} does not exist")
        if RuleSource.parse(source).is_shared_by(targets):
            yield _warning(place, "a router that names no keyspace is refused: several serve it")
        elif len(targets) > 1:
            repeated = "the same target twice" if len(set(targets)) < len(targets) else "targets"
            yield _error(place, f"it has {len(targets)} {repeated}; it needs one")
        for text in targets:
            target = TableName.parse(text)
            if target.keyspace is None:
                yield _error(place, f"its target {text} names no keyspace")
            elif target.keyspace not in snapshot.keyspaces:
                yield _error(place, f"the keyspace of its target {text} does not exist")
            else:
                vschema = snapshot.vschema(target.keyspace)
                if vschema.sharded and target.table not in vschema.tables:
                    yield _warning(place, f"its target {text} is not in the vschema")


def _shard_rule_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Shard and keyspace routing rules: both ends exist."""
    for (keyspace, shard), to_keyspace in snapshot.shard_routing_rules.rules.items():
        place = f"shard routing rule {keyspace}/{shard}"
        for end in (keyspace, to_keyspace):
            if (end, shard) not in snapshot.shards:
                yield _error(place, f"shard {end}/{shard} does not exist")
    for key, to_keyspace in snapshot.keyspace_routing_rules.rules.items():
        place = f"keyspace routing rule {KeyspaceRoutingRules.written(key)}"
        if to_keyspace not in snapshot.keyspaces:
            yield _error(place, f"keyspace {to_keyspace} does not exist")
        if key[0] not in snapshot.keyspaces:
            yield _warning(place, f"keyspace {key[0]} does not exist")


def _reference_findings(snapshot: Snapshot, keyspace: str, vschema: VSchema) -> Iterator[Finding]:
    """What tables of one keyspace say about tables of others: sources and sequences."""
    sources: Counter[str] = Counter()
    for name, spec in vschema.tables.items():
        place = f"table {keyspace}.{name}"
        if spec.source is not None and spec.kind is TableKind.REFERENCE:
            sources[spec.source] += 1
            yield from _source_findings(snapshot, keyspace, place, spec.source)
        if spec.auto_increment is not None:
            sequence = TableName.parse(spec.auto_increment.sequence or "?")
            owners = [sequence.keyspace] if sequence.keyspace else list(snapshot.vschemas)
            declared = [
                owner
                for owner in owners
                if owner in snapshot.vschemas and sequence.table in snapshot.vschemas[owner].tables
            ]
            if not declared:
                yield _warning(place, f"its sequence {sequence} is in no vschema")
    for source, count in sources.items():
        if count > 1:
            yield _error(f"keyspace {keyspace}", f"{count} tables are references to {source}")


def _source_findings(
    snapshot: Snapshot, keyspace: str, place: str, source: str
) -> Iterator[Finding]:
    target = TableName.parse(source)
    if target.keyspace is None:
        yield _error(place, f"its source {source} names no keyspace")
    elif target.keyspace == keyspace:
        yield _error(place, f"its source {source} is in the same keyspace")
    elif target.keyspace not in snapshot.keyspaces:
        yield _error(place, f"the keyspace of its source {source} does not exist")
    else:
        spec = snapshot.vschema(target.keyspace).tables.get(target.table)
        if spec is not None and spec.source is not None:
            yield _error(place, f"its source {source} is itself a reference to {spec.source}")
        if spec is not None and spec.kind is TableKind.SEQUENCE:
            yield _error(place, f"its source {source} is a sequence")


def vschema_findings(keyspace: str, vschema: VSchema) -> list[Finding]:
    """Everything there is to say about one vschema by itself."""
    found: list[Finding] = []
    built: dict[str, Vindex] = {}
    for name, spec in vschema.vindexes.items():
        place = f"vindex {keyspace}.{name}"
        try:
            built[name] = vindexes.create(spec.type, name, spec.params)
        except TidegateError as error:
            found.append(_error(place, error.message))
            continue
        if built[name].unknown_params:
            listed = ", ".join(built[name].unknown_params)
            found.append(_warning(place, f"{spec.type} has no parameters {listed}"))
        if spec.owner is not None and spec.owner not in vschema.tables:
            found.append(_error(place, f"its owner {spec.owner} is not in the vschema"))
    for name, table in vschema.tables.items():
        found += _table_findings(f"table {keyspace}.{name}", name, table, vschema, built)
    tenants = vschema.multi_tenant_spec
    if tenants and not (tenants.tenant_id_column_name and tenants.tenant_id_column_type):
        found.append(_error(f"keyspace {keyspace}", "multi_tenant_spec needs column name and type"))
    return sorted(found)


def _table_findings(
    place: str, name: str, table: TableSpec, vschema: VSchema, built: dict[str, Vindex]
) -> Iterator[Finding]:
    placed = bool(table.column_vindexes) or table.pinned is not None
    if vschema.sharded and table.kind is TableKind.PLAIN and not placed:
        yield _error(place, "it needs a column vindex, or to be pinned")
    if vschema.sharded and table.kind is TableKind.SEQUENCE and table.pinned is None:
        yield _error(place, "a sequence belongs in an unsharded keyspace, or pinned")
    if table.source is not None and table.kind is not TableKind.REFERENCE:
        yield _error(place, "only a reference table has a source")
    if table.pinned is not None and (len(table.pinned) % 2 or not set(table.pinned) <= _HEX):
        yield _error(place, f"pinned {table.pinned!r} is no keyspace id in hexadecimal")
    if table.auto_increment and not (table.auto_increment.column and table.auto_increment.sequence):
        yield _error(place, "auto_increment needs a column and a sequence")
    names = Counter(column.name.lower() for column in table.columns)
    for column, count in names.items():
        if not column or count > 1:
            yield _error(place, f"column {column!r} is named {count} times")
    for position, entry in enumerate(table.column_vindexes):
        yield from _column_vindex_findings(
            place, name, position, entry, vschema=vschema, built=built
        )


def _column_vindex_findings(
    place: str,
    table: str,
    position: int,
    entry: ColumnVindex,
    *,
    vschema: VSchema,
    built: dict[str, Vindex],
) -> Iterator[Finding]:
    if entry.name not in vschema.vindexes:
        yield _error(place, f"vindex {entry.name!r} is not in the vschema")
        return
    vindex = built.get(entry.name)
    if vindex is None:
        return
    if not vindex.columns_min <= len(entry.columns) <= vindex.columns_max:
        yield _error(
            place,
            f"vindex {entry.name} takes {vindex.columns_min} to {vindex.columns_max} columns,"
            f" found {len(entry.columns)}",
        )
    lowered = [column.lower() for column in entry.columns]
    if len(set(lowered)) < len(lowered) or "" in lowered:
        yield _error(place, f"vindex {entry.name} names a column twice, or one without a name")
    if position == 0 and not vindex.unique:
        yield _error(place, f"its primary vindex {entry.name} is not unique")
    if position == 0 and vindex.lookup and vschema.vindexes[entry.name].owner == table:
        yield _error(place, f"its primary vindex {entry.name} cannot be owned")
    if position > 0 and vindex.multi_column:
        yield _error(place, f"vindex {entry.name} has several columns; it can only be primary")
