"""Repeatable SQL files, ``R__name.sql``: which of them a tenant lacks, or has in an older wording.

Decides from values: the repeatable files of a source, and what a tenant has recorded of them, or is
known to have. They run after the last version, in the order of their names, whenever their content
differs from what is recorded. At an older version nothing is run of them: they are written for the
last one. The record of a file that is gone is forgotten, so that the file runs if it comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.tenants.versions import Standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.bootstrap.tenants.model import Tenant
    from tidegate.bootstrap.tenants.versions import Chain, Look, Version
    from tidegate.bootstrap.tenants.worker.tidegate_records import Row

PREFIX: Final = "R__"
"""What their ids begin with; those of versions of SQL files begin with a digit."""


def is_repeatable(version: str) -> bool:
    """Whether an id is that of a repeatable file; for sources of SQL files."""
    return version.startswith(PREFIX)


def split(rows: Iterable[Row]) -> tuple[list[Row], dict[str, str]]:
    """The rows of versions, and by id the hashes of repeatable files."""
    found = list(rows)
    versions = [row for row in found if not is_repeatable(row.version)]
    return versions, {row.version: row.sha256 for row in found if is_repeatable(row.version)}


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is to be done about repeatable files in one tenant."""

    pending: tuple[Version, ...] = ()
    gone: tuple[str, ...] = ()
    """Recorded, but no longer in the source."""

    def after(self, look: Look) -> Look:
        """What is to be run in all: what a look at the versions found, then these."""
        if not self.pending or look.standing not in {Standing.AT_TARGET, Standing.BEHIND}:
            return look
        return replace(look, standing=Standing.BEHIND, pending=(*look.pending, *self.pending))


def repeats(chain: Chain, recorded: Mapping[str, str], target: str) -> Repeats:
    """What is to be done in a tenant that is brought to a target.

    Args:
        chain: of the source.
        recorded: by id, the hash of what the tenant got of each.
        target: an id of the chain.
    """
    if not chain.is_last(target):
        return Repeats()
    known = {each.id for each in chain.repeatable}
    return Repeats(
        tuple(each for each in chain.repeatable if recorded.get(each.id) != each.sha256),
        tuple(sorted(set(recorded) - known)),
    )


def lacking(
    tenants: Iterable[Tenant],
    source: str,
    chain: Chain,
    sets: Mapping[str, frozenset[str]],
) -> dict[str, tuple[str, ...]]:
    """By tenant's id, what it would be given at the last version, by what is stored of it.

    Args:
        tenants: with what is stored of them.
        source: whose files.
        chain: of the source.
        sets: by digest, what it stands for. A tenant without one may lack all.
    """
    found: dict[str, tuple[str, ...]] = {}
    nothing: frozenset[str] = frozenset()
    for tenant in tenants:
        has = sets.get(tenant.digests.get(source, ""), nothing)
        found[tenant.id] = tuple(each.id for each in chain.repeatable if each.with_hash not in has)
    return found


def outdated(chain: Chain, recorded: Mapping[str, str]) -> tuple[str, ...]:
    """The files that a tenant has in another wording than the source."""
    return tuple(
        each.id
        for each in chain.repeatable
        if each.id in recorded and recorded[each.id] != each.sha256
    )


def last_version(applied: Sequence[str]) -> str:
    """The last version among what was applied; empty when there is none."""
    return next((each for each in reversed(applied) if not is_repeatable(each)), "")
