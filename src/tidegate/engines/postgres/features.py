"""The features of a table: a name for each part of it, with a digest of its definition.

Decides what the parts are called ("index orders_mark") and when two are the same, so that a change
can be named without keeping definitions. Nothing of Tidegate's is a feature.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tidegate.engines.postgres.catalog import Table

DIGEST_BYTES: Final = 4


def features(table: Table, publications: Iterable[str]) -> dict[str, str]:
    """The features of one table, without anything of Tidegate's."""
    found = {
        **dict(_column_features(table)),
        **dict(_constraint_features(table)),
        **{f"sequence {s.name}": f"{s.kind} {s.column}" for s in table.sequences},
        **{f"trigger {t.name}": f"{t.enabled} {t.ddl}" for t in table.triggers if not t.own},
        **{f"partition {name}": "" for name in table.children},
        **{f"rule {rule}": "" for rule in table.rules},
        **{f"publication {name}": "" for name in publications},
        **_rights(table),
    }
    return {name: digest_of(definition) for name, definition in found.items()}


def _constraint_features(table: Table) -> Iterator[tuple[str, str]]:
    for constraint in table.constraints:
        yield f"constraint {constraint.name}", constraint.ddl
    for index in table.indexes:
        if not index.is_constraint:
            yield f"index {index.name}", index.ddl
    for check in table.checks:
        yield f"check {check.name}", _whether_valid_or_not(check.ddl)
    for key in table.foreign_keys:
        yield f"foreign key {key.name}", _whether_valid_or_not(key.ddl)
    for key in table.referenced_by:
        yield f"reference {key.name} of {key.table}", key.ddl


def _whether_valid_or_not(ddl: str) -> str:
    """A target gets what old rows do not meet without a look at them; it is the same constraint."""
    return ddl.removesuffix(" NOT VALID")


def _column_features(table: Table) -> Iterator[tuple[str, str]]:
    for column in table.columns:
        yield f"column {column.name}", f"{column.type_name} {column.not_null} {column.generated}"
        if column.default is not None and not column.generated:
            yield f"default of {column.name}", column.default
        if column.identity:
            yield f"identity of {column.name}", column.identity


def _rights(table: Table) -> dict[str, str]:
    """Owner and grants; what the owner may do follows from being the owner."""
    found = {"owner": table.owner, "row security": f"{table.row_security}"}
    for item in table.acl:
        grantee, _, rest = item.rpartition("=")
        if _unquoted(grantee) != table.owner:
            found[f"grant to {_unquoted(grantee) or 'PUBLIC'}"] = rest.partition("/")[0]
    return found


def roles_of(tables: Sequence[Table]) -> set[str]:
    """The owners of tables, and who has rights on them."""
    found = {table.owner for table in tables}
    found |= {_unquoted(item.rpartition("=")[0]) for table in tables for item in table.acl}
    return found - {""}


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def digest_of(definition: str) -> str:
    """A definition in short."""
    return hashlib.blake2b(definition.encode(), digest_size=DIGEST_BYTES).hexdigest()
