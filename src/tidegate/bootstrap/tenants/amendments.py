"""What baseline, stamp and repair change in a tenant's record of versions; nothing is run.

Decides from values: the rows that a tenant has of a source, and the source's versions.

* *baseline*: a tenant that has no record of the source starts at a version.
* *stamp*: the record says that version, whatever it said before.
* *repair*: the record has the hashes and names of the files as they are now, and no file that was
  begun outside a transaction and not completed. What the source does not know stays, and is named.

None of them touches what is recorded of repeatable files: they run when they have to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.tenants.versions import Chain, Version
    from tidegate.bootstrap.tenants.worker.tidegate_records import Row


class Verb(StrEnum):
    """What is asked for."""

    BASELINE = "baseline"
    STAMP = "stamp"
    REPAIR = "repair"


@dataclass(frozen=True, slots=True)
class Amendment:
    """What changes in one tenant's record."""

    add: tuple[Version, ...] = ()
    rewrite: tuple[Version, ...] = ()
    """Present, but with another hash or name, or incomplete though it is to count as complete."""
    remove: tuple[str, ...] = ()
    current: str = ""
    """The version that the tenant has by the record afterwards."""
    unknown: tuple[str, ...] = ()
    """Versions in the record that the source does not have; they stay."""
    refusal: str = ""
    """Why nothing may be changed; empty when it may."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.add or self.rewrite or self.remove)


def amend(verb: Verb, chain: Chain, rows: Sequence[Row], version: str) -> Amendment:
    """What a verb changes.

    Args:
        verb: asked for.
        chain: of the source.
        rows: of the source in the tenant's version table.
        version: of the chain; for a repair, it is not looked at.
    """
    if verb is Verb.REPAIR:
        return _repair(chain, rows)
    place = chain.position(version)
    assert place is not None, f"{version} is not of the chain"
    wanted = chain.versions[: place + 1]
    there = {row.version: row for row in rows}
    if verb is Verb.BASELINE:
        if not rows:
            return Amendment(add=wanted, current=version)
        is_whole = all(row.begun is None for row in rows)
        if is_whole and set(there) == {each.id for each in wanted}:
            return Amendment(current=version)
        has = max(there, key=lambda each: (chain.position(each) or -1, each))
        return Amendment(
            refusal=f"the tenant has version {has} of the source already; a baseline is for"
            " tenants without a version, a stamp for others"
        )
    ids = {each.id for each in wanted}
    return Amendment(
        add=tuple(each for each in wanted if each.id not in there),
        rewrite=tuple(each for each in wanted if each.id in there and _differs(each, there)),
        remove=tuple(sorted(set(there) - ids)),
        current=version,
    )


def _repair(chain: Chain, rows: Sequence[Row]) -> Amendment:
    there = {row.version: row for row in rows if row.begun is None}
    known = set(chain.ids)
    return Amendment(
        rewrite=tuple(v for v in chain.versions if v.id in there and _differs(v, there)),
        remove=tuple(sorted(row.version for row in rows if row.begun is not None)),
        current=next((v.id for v in reversed(chain.versions) if v.id in there), ""),
        unknown=tuple(sorted(set(there) - known)),
    )


def _differs(version: Version, there: dict[str, Row]) -> bool:
    row = there[version.id]
    return (row.sha256, row.name, row.begun) != (version.sha256, version.name, None)
