"""How a tenant differs from what its migration sources make: object by object.

Decides from two catalogues, as :func:`tidegate.engines.postgres.tenant_catalog.objects` reads them.
Where a whole table is missing or not expected, its columns, constraints, triggers, policies and
rules are not told one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFINITION_MAX: Final = 1000
#: Kinds whose objects belong to a table, which their names begin with.
_PARTS: Final = frozenset({"column", "constraint", "trigger", "policy", "rule"})


class Kind(StrEnum):
    """How an object differs."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that is not as expected."""

    kind: Kind
    object: str
    """``table orders``, ``column orders.total``."""
    expected: str = ""
    found: str = ""

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "kind": self.kind.value,
            "object": self.object,
            "expected": self.expected[:DEFINITION_MAX],
            "found": self.found[:DEFINITION_MAX],
        }


def compare(
    expected: Mapping[tuple[str, str], str], found: Mapping[tuple[str, str], str]
) -> tuple[Difference, ...]:
    """The differences, by object."""
    differences = []
    whole = {key for key in set(expected) ^ set(found) if key[0] == "table"}
    tables = {name for _, name in whole}
    for key in sorted(set(expected) | set(found)):
        kind, name = key
        if kind in _PARTS and name.rpartition(".")[0] in tables:
            continue
        shown = f"{kind} {name}".strip()
        if key not in found:
            differences.append(Difference(Kind.MISSING, shown, expected[key]))
        elif key not in expected:
            differences.append(Difference(Kind.UNEXPECTED, shown, "", found[key]))
        elif expected[key] != found[key]:
            differences.append(Difference(Kind.DIFFERENT, shown, expected[key], found[key]))
    return tuple(differences)
