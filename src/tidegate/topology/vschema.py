"""The vschema of a keyspace: which table is sharded how, and by which vindex.

Decides the shape and the written (JSON) form of vschemas, whose keys are those of Vitess vschema
files. Whether the content makes sense is decided in :mod:`tidegate.topology.validation`, so that a
broken vschema can be read, shown and mended.

A table is named as its database names it: ``accounts`` lies in the schema ``public``,
``sales.accounts`` in the schema ``sales``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from tidegate.errors import InvalidArgumentError, NotFoundError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class TableKind(StrEnum):
    """What a table is to its keyspace; ``PLAIN`` is written as an empty type."""

    PLAIN = ""
    REFERENCE = "reference"
    SEQUENCE = "sequence"


class ForeignKeyMode(StrEnum):
    """Who looks after foreign keys of a keyspace."""

    UNSPECIFIED = "unspecified"
    DISALLOW = "disallow"
    UNMANAGED = "unmanaged"
    MANAGED = "managed"


def canonical_table(name: str) -> str:
    """A table's one written form: ``public.accounts`` becomes ``accounts``.

    Raises:
        InvalidArgumentError: the name is empty, or holds more than a schema and a table.
    """
    if "@" in name:
        raise InvalidArgumentError(
            f"{name!r} is not a table name: @ separates a tablet type from it",
            next_step="rename the table",
            table=name,
        )
    return str(TableName.parse(name))


def known_keys(data: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse keys that mean nothing, so that a misspelt one is not lost in silence."""
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InvalidArgumentError(
            f"{what} has unknown keys: {', '.join(unknown)}",
            next_step=f"known keys are {', '.join(sorted(known))}",
            unknown_keys=unknown,
        )


@dataclass(frozen=True, slots=True)
class VindexSpec:
    """A vindex as the vschema names it; ``owner`` is the table whose rows write its entries."""

    type: str
    params: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The written form, without what is empty."""
        data: dict[str, Any] = {"type": self.type}
        if self.params:
            data["params"] = dict(self.params)
        if self.owner:
            data["owner"] = self.owner
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        known_keys(data, ("type", "params", "owner"), "a vindex")
        params = {str(key): str(value) for key, value in (data.get("params") or {}).items()}
        return cls(str(data.get("type", "")), params, data.get("owner") or None)


@dataclass(frozen=True, slots=True)
class ColumnVindex:
    """The columns of a table that feed a vindex, in order."""

    columns: tuple[str, ...]
    name: str

    def to_json(self) -> dict[str, Any]:
        """The written form: ``column`` for one, ``columns`` for several."""
        if len(self.columns) == 1:
            return {"column": self.columns[0], "name": self.name}
        return {"columns": list(self.columns), "name": self.name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form; naming both ``column`` and ``columns`` is refused."""
        known_keys(data, ("column", "columns", "name"), "a column vindex")
        if data.get("column") and data.get("columns"):
            raise InvalidArgumentError(
                f"the column vindex {data.get('name')!r} names both column and columns",
                next_step="keep one of the two",
            )
        columns = data.get("columns") or ([data["column"]] if data.get("column") else [])
        return cls(tuple(columns), str(data.get("name", "")))


@dataclass(frozen=True, slots=True)
class AutoIncrement:
    """The column that a sequence fills, and the sequence table, optionally with its keyspace."""

    column: str
    sequence: str

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {"column": self.column, "sequence": self.sequence}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        known_keys(data, ("column", "sequence"), "auto_increment")
        return cls(str(data.get("column", "")), str(data.get("sequence", "")))


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A column whose type the vschema states; ``type`` is the database's name for it."""

    name: str
    type: str = ""
    collation: str = ""
    default: str = ""
    invisible: bool = False
    size: int | None = None
    scale: int | None = None
    nullable: bool = True
    values: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The written form, without what is at its default."""
        optional: dict[str, Any] = {
            "type": self.type or None,
            "collation": self.collation or None,
            "default": self.default or None,
            "invisible": self.invisible or None,
            "size": self.size,
            "scale": self.scale,
            "nullable": None if self.nullable else False,
            "values": list(self.values) or None,
        }
        given = {key: value for key, value in optional.items() if value is not None}
        return {"name": self.name, **given}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        known_keys(data, cls.__slots__, "a column")
        values = tuple(data.get("values", ()))
        return cls(**{**data, "values": values})


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of a keyspace.

    Attributes:
        column_vindexes: the first one decides the shard of a row.
        pinned: the keyspace id, in hex, where the whole table lives.
        source: for a reference table, the ``keyspace.table`` it is a copy of.
        column_list_authoritative: ``columns`` names all columns there are.
    """

    kind: TableKind = TableKind.PLAIN
    column_vindexes: tuple[ColumnVindex, ...] = ()
    auto_increment: AutoIncrement | None = None
    pinned: str | None = None
    source: str | None = None
    columns: tuple[ColumnSpec, ...] = ()
    column_list_authoritative: bool = False

    @property
    def primary_vindex(self) -> ColumnVindex | None:
        """The column vindex that decides the shard of a row."""
        return self.column_vindexes[0] if self.column_vindexes else None

    def to_json(self) -> dict[str, Any]:
        """The written form, without what is empty."""
        data: dict[str, Any] = {}
        if self.kind is not TableKind.PLAIN:
            data["type"] = self.kind.value
        if self.column_vindexes:
            data["column_vindexes"] = [entry.to_json() for entry in self.column_vindexes]
        if self.auto_increment:
            data["auto_increment"] = self.auto_increment.to_json()
        if self.pinned is not None:
            data["pinned"] = self.pinned
        if self.source is not None:
            data["source"] = self.source
        if self.columns:
            data["columns"] = [column.to_json() for column in self.columns]
        if self.column_list_authoritative:
            data["column_list_authoritative"] = True
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        keys = [name for name in cls.__slots__ if name != "kind"]
        known_keys(data, ["type", *keys], "a table")
        try:
            kind = TableKind(data.get("type") or "")
        except ValueError:
            raise InvalidArgumentError(
                f"unknown table type {data['type']!r}",
                next_step="use reference or sequence, or leave it out",
            ) from None
        increment = data.get("auto_increment")
        return cls(
            kind=kind,
            column_vindexes=tuple(map(ColumnVindex.from_json, data.get("column_vindexes") or ())),
            auto_increment=AutoIncrement.from_json(increment) if increment else None,
            pinned=data.get("pinned"),
            source=data.get("source") or None,
            columns=tuple(map(ColumnSpec.from_json, data.get("columns") or ())),
            column_list_authoritative=bool(data.get("column_list_authoritative", False)),
        )


@dataclass(frozen=True, slots=True)
class MultiTenantSpec:
    """The column that names the tenant of a row, in every table of the keyspace."""

    tenant_id_column_name: str
    tenant_id_column_type: str

    def to_json(self) -> dict[str, Any]:
        """The written form."""
        return {
            "tenant_id_column_name": self.tenant_id_column_name,
            "tenant_id_column_type": self.tenant_id_column_type,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form."""
        known_keys(data, cls.__slots__, "multi_tenant_spec")
        return cls(
            str(data.get("tenant_id_column_name", "")), str(data.get("tenant_id_column_type", ""))
        )


@dataclass(frozen=True, slots=True)
class VSchema:
    """All that is declared about the tables of one keyspace; ``VSchema()`` is unsharded."""

    sharded: bool = False
    vindexes: Mapping[str, VindexSpec] = field(default_factory=dict)
    tables: Mapping[str, TableSpec] = field(default_factory=dict)
    require_explicit_routing: bool = False
    foreign_key_mode: ForeignKeyMode = ForeignKeyMode.UNSPECIFIED
    multi_tenant_spec: MultiTenantSpec | None = None

    def table(self, name: str) -> TableSpec:
        """The declaration of a table.

        Raises:
            NotFoundError: the vschema does not declare it.
        """
        spec = self.tables.get(canonical_table(name))
        if spec is None:
            raise NotFoundError(
                f"the vschema does not declare a table {name!r}",
                next_step="add the table to the vschema of its keyspace",
                table=name,
            )
        return spec

    def with_table(self, name: str, spec: TableSpec) -> VSchema:
        """The same vschema with one table added or replaced."""
        return self.with_tables({name: spec})

    def with_tables(self, specs: Mapping[str, TableSpec]) -> VSchema:
        """The same vschema with many tables added or replaced."""
        added = {canonical_table(name): spec for name, spec in specs.items()}
        return replace(self, tables={**self.tables, **added})

    def without_tables(self, names: Iterable[str]) -> VSchema:
        """The same vschema without these tables; absent ones are no error."""
        gone = {canonical_table(name) for name in names}
        kept = {name: spec for name, spec in self.tables.items() if name not in gone}
        return replace(self, tables=kept)

    def to_json(self) -> dict[str, Any]:
        """The written form, without what is empty."""
        data: dict[str, Any] = {"sharded": self.sharded}
        if self.vindexes:
            data["vindexes"] = {name: spec.to_json() for name, spec in self.vindexes.items()}
        if self.tables:
            data["tables"] = {name: spec.to_json() for name, spec in self.tables.items()}
        if self.require_explicit_routing:
            data["require_explicit_routing"] = True
        if self.foreign_key_mode is not ForeignKeyMode.UNSPECIFIED:
            data["foreign_key_mode"] = self.foreign_key_mode.value
        if self.multi_tenant_spec:
            data["multi_tenant_spec"] = self.multi_tenant_spec.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the written form.

        Raises:
            InvalidArgumentError: an unknown key, a value of another form, or a table named twice.
        """
        known_keys(data, cls.__slots__, "a vschema")
        tables: dict[str, TableSpec] = {}
        for name, spec in (data.get("tables") or {}).items():
            table = canonical_table(name)
            if table in tables:
                raise InvalidArgumentError(
                    f"the vschema declares {table!r} twice", next_step="keep one of the two"
                )
            tables[table] = TableSpec.from_json(spec or {})
        vindexes = (data.get("vindexes") or {}).items()
        tenants = data.get("multi_tenant_spec")
        try:
            mode = ForeignKeyMode(data.get("foreign_key_mode") or ForeignKeyMode.UNSPECIFIED)
        except ValueError:
            raise InvalidArgumentError(
                f"unknown foreign_key_mode {data['foreign_key_mode']!r}",
                next_step=f"use one of {', '.join(ForeignKeyMode)}",
            ) from None
        return cls(
            sharded=bool(data.get("sharded", False)),
            vindexes={name: VindexSpec.from_json(spec or {}) for name, spec in vindexes},
            tables=tables,
            require_explicit_routing=bool(data.get("require_explicit_routing", False)),
            foreign_key_mode=mode,
            multi_tenant_spec=MultiTenantSpec.from_json(tenants) if tenants else None,
        )
