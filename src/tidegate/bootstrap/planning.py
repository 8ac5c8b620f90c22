"""What a program that starts does about the upgrades that the cluster has seen: a table.

It looks at the latest row (the highest sequence that was not superseded) and at itself. Exactly one
row of the table holds in each case, which a test compares with the code:

| latest row | this program | decision |
|---|---|---|
| none | any | found the table first, then decide again |
| not ready | the same version and offset | join what is under way |
| not ready | newer, told to supersede | supersede, then plan |
| not ready | newer, not told to supersede | refuse |
| not ready | older | refuse |
| ready, finalised | of an older version | refuse |
| ready, not finalised | of an older version | nothing: the way back is still open |
| ready | of the same version, not newer | nothing |
| ready | newer, recorded before | nothing |
| ready, not finalised, older members live | newer, not recorded before | refuse, naming them |
| ready, finalised or without older members | newer, not recorded before | plan; finalises the row |

A refusal is a value: who calls decides how it is said, and nothing ends the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.bootstrap.model import UpgradeState, Version, VersionRow
from tidegate.errors import UpgradeRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tidegate.bootstrap.model import Member
    from tidegate.bootstrap.versions import Number


@dataclass(frozen=True, slots=True)
class Found:
    """There is no table of versions yet: record the founder's oldest source."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to plan."""

    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Record the program's version and the steps to it; ``finalises`` the row before."""

    finalises: bool


@dataclass(frozen=True, slots=True)
class Supersede:
    """Set the upgrade that is stuck aside, then plan from the newest ready version."""

    row: VersionRow


@dataclass(frozen=True, slots=True)
class Refuse:
    """The program may not upgrade this cluster; ``why`` is a sentence."""

    why: str
    next_step: str

    def error(self) -> UpgradeRefusedError:
        """The refusal as an error."""
        return UpgradeRefusedError(self.why, next_step=self.next_step)


type Decision = Found | Nothing | Plan | Supersede | Refuse


def decide(
    latest: VersionRow | None,
    binary: Version,
    recorded: Collection[tuple[Number, int]] = (),
    *,
    members: Sequence[Member] = (),
    supersede: bool = False,
) -> Decision:
    """What to do; see the table above.

    Args:
        latest: the latest row.
        binary: the newest version of this program.
        recorded: version and offset of every row, superseded ones too.
        members: the programs that live now.
        supersede: whether a stuck upgrade may be set aside.
    """
    if latest is None:
        return Found()
    if latest.state is not UpgradeState.READY:
        return _beside_unfinished(latest, binary, supersede=supersede)
    if latest.identity[0] > binary.number:
        return _older_than(latest, binary)
    if latest.identity >= binary.identity:
        return Nothing(f"the cluster is at {latest}")
    if binary.identity in recorded:
        return Nothing(f"{binary.version} (offset {binary.offset}) was recorded before")
    return _newer_than(latest, members)


def _newer_than(latest: VersionRow, members: Sequence[Member]) -> Decision:
    older = sorted(member.name for member in members if member.identity < latest.identity)
    if older and not latest.is_finalised:
        return Refuse(
            f"the upgrade to {latest} is not finalised, and members older than it still run:"
            f" {', '.join(older)}",
            "bring them to that version, or remove them, then start this program again",
        )
    return Plan(finalises=not latest.is_finalised)


def _beside_unfinished(latest: VersionRow, binary: Version, *, supersede: bool) -> Decision:
    if latest.identity == binary.identity:
        return Nothing(f"the upgrade to {latest} is under way")
    mine = f"{binary.version} (offset {binary.offset})"
    if latest.identity > binary.identity:
        return Refuse(
            f"the cluster is being upgraded to {latest}, which is newer than {mine}",
            f"run the program of version {latest.version}",
        )
    if supersede:
        return Supersede(latest)
    return Refuse(
        f"the upgrade to {latest} has not ended, so that to {mine} cannot begin",
        "let it end: tidegate upgrade status; if it cannot, `tidegate upgrade supersede`",
    )


def _older_than(latest: VersionRow, binary: Version) -> Decision:
    if not latest.is_finalised:
        return Nothing(f"the upgrade to {latest} is not finalised: {binary.version} may still run")
    return Refuse(
        f"the cluster is at {latest}, this program knows {binary.version}",
        f"run the program of version {latest.version}, or a newer one",
    )
