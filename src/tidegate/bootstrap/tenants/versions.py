"""How the version of a tenant stands to a target, and what is still to be run.

Decides from values: the ordered versions of a source, and what a tenant says it has. A tenant is
not taken back by an upgrade: one ahead of the target, or with a version that the source does not
know, is refused. So is one that has a version in another wording than the source, or lacks one in
between.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD: Final = "head"


@dataclass(frozen=True, slots=True)
class Version:
    """One step of a source: its id, a name for people, and the hash of its text, if it has one."""

    id: str
    name: str = ""
    sha256: str = ""
    is_transactional: bool = True
    """False: its statements run one by one, outside a transaction."""
    parents: tuple[str, ...] = ()
    """The versions it builds on, where the order is no line (Alembic); empty where it is."""

    @property
    def with_hash(self) -> str:
        """What stands for exactly this text of it."""
        return f"{self.id} {self.sha256}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The versions of a source in their order, as they were found at one time."""

    versions: tuple[Version, ...]
    heads: tuple[str, ...] = ()
    """Ids of the last versions, when there may be several; empty when the order is a line."""
    repeatable: tuple[Version, ...] = ()
    """What runs after the last version whenever its text has changed, in order; of SQL files."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids in order."""
        return tuple(version.id for version in self.versions)

    def upto(self, version: str) -> tuple[str, ...]:
        """What a tenant at a version has, if nothing is missing: all ids up to it.

        Of versions whose order is no line, the version stands for all before it.
        """
        place = self.position(version)
        if self.heads or place is None:
            return (version,)
        return self.ids[: place + 1]

    def is_last(self, version: str) -> bool:
        """Whether no version comes after it."""
        return bool(self.versions) and self.versions[-1].id == version

    def contents_at(self, version: str) -> tuple[str, ...]:
        """The same, and with their hashes the repeatable files that belong to the last version."""
        again = self.repeatable if self.is_last(version) else ()
        return (*self.upto(version), *(each.with_hash for each in again))

    def digest_at(self, version: str) -> str:
        """What stands for exactly what a tenant at a version has, and the texts of it."""
        hashes = {each.id: each.sha256 for each in self.versions}
        upto = self.upto(version)
        lines = [f"{each} {hashes.get(each, '')}\n" for each in upto]
        lines += [f"{each}\n" for each in self.contents_at(version)[len(upto) :]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def position(self, version: str) -> int | None:
        """The place of a version in the order, or None."""
        return next((n for n, each in enumerate(self.versions) if each.id == version), None)

    def is_ahead(self, version: str, target: str) -> bool:
        """Whether a version comes after the target; unknown versions do not."""
        have, want = self.position(version), self.position(target)
        if have is None or want is None or have <= want:
            return False
        parents = {each.id: each.parents for each in self.versions}
        if not any(parents.values()):
            return True
        waiting, seen = [version], {version}
        while waiting:
            for parent in parents.get(waiting.pop(), ()):
                if parent == target:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return False


class Standing(StrEnum):
    """How a tenant stands to a target."""

    AT_TARGET = "at_target"
    BEHIND = "behind"
    AHEAD = "ahead"
    UNKNOWN = "unknown"
    """Its version is not of this source."""
    EDITED = "edited"
    """It has a version in another wording."""
    GAP = "gap"
    """It lacks a version that comes before one it has."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found about one tenant."""

    standing: Standing
    current: str
    """Its version; empty when it has none yet."""
    pending: tuple[Version, ...] = ()
    offender: str = ""
    """The version that is ahead, unknown, edited or missing."""


def target_of(chain: Chain, wanted: str) -> str:
    """The version that ``wanted`` means: ``head``, an id, or an unambiguous beginning of one.

    Raises:
        InvalidArgumentError: there is none, or more than one.
    """
    if not chain.versions:
        raise InvalidArgumentError(
            "the migration source has no versions", next_step="add one and try again"
        )
    if wanted == HEAD:
        if len(chain.heads) > 1:
            raise InvalidArgumentError(
                f"the migration source has {len(chain.heads)} heads: {', '.join(chain.heads)}",
                next_step="merge them (alembic merge heads), or name one of them with --to",
            )
        return chain.heads[0] if chain.heads else chain.versions[-1].id
    if chain.position(wanted) is not None:
        return wanted
    found = [each for each in chain.ids if each.startswith(wanted)] if wanted else []
    if len(found) != 1:
        what = "names no version" if not found else f"may be {', '.join(found[:5])}"
        last = ", ".join(chain.ids[-3:])
        raise InvalidArgumentError(
            f"{wanted!r} {what} of the migration source",
            next_step=f"use head or one of its versions; the last are {last}",
        )
    return found[0]


def standing_of(chain: Chain, current: str, target: str) -> Standing:
    """How a stored version stands to a target; an empty one is that of a new tenant."""
    if current == target:
        return Standing.AT_TARGET
    if not current:
        return Standing.BEHIND
    have, want = chain.position(current), chain.position(target)
    assert want is not None, f"the target {target} is not of the chain"
    if have is None:
        return Standing.UNKNOWN
    return Standing.BEHIND if have < want else Standing.AHEAD


def look_at(
    chain: Chain, applied: Sequence[tuple[str, str]], target: str, *, out_of_order: bool = False
) -> Look:
    """How the versions recorded inside a tenant stand to a target.

    Args:
        chain: of the source.
        applied: id and hash of each version the tenant has, in any order; hashes may be empty.
        target: an id of the chain.
        out_of_order: whether what it lacks before one that it has may still be run.
    """
    want = chain.position(target)
    assert want is not None, f"the target {target} is not of the chain"
    hashes = dict(applied)
    known = set(chain.ids)
    current = next((v.id for v in reversed(chain.versions) if v.id in hashes), "")
    stranger = next((each for each in hashes if each not in known), None)
    if stranger is not None:
        is_beyond = stranger > chain.versions[-1].id
        standing = Standing.AHEAD if is_beyond else Standing.UNKNOWN
        return Look(standing, stranger, offender=stranger)
    for version in chain.versions:
        recorded = hashes.get(version.id, "")
        if recorded and version.sha256 and recorded != version.sha256:
            return Look(Standing.EDITED, current, offender=version.id)
    have = chain.position(current) if current else None
    upto = -1 if have is None else have
    late = tuple(each for each in chain.versions[: upto + 1] if each.id not in hashes)
    if late and not out_of_order:
        return Look(Standing.GAP, current, offender=late[0].id)
    if upto > want:
        return Look(Standing.AHEAD, current, offender=current)
    pending = late + chain.versions[upto + 1 : want + 1]
    return Look(Standing.BEHIND if pending else Standing.AT_TARGET, current, pending)


def groups(pending: Sequence[Version], *, single: bool = False) -> list[tuple[Version, ...]]:
    """What runs in one transaction: each version by itself, or neighbours together.

    Args:
        pending: versions in order.
        single: put neighbours that can run in a transaction into one.
    """
    found: list[list[Version]] = []
    for version in pending:
        joins = single and version.is_transactional
        if found and joins and found[-1][-1].is_transactional:
            found[-1].append(version)
        else:
            found.append([version])
    return [tuple(group) for group in found]
