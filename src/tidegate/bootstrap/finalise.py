"""When the way back from an upgrade may be closed.

Until then programs of the version before may run and be started. It may be closed when the upgrade
is ready, every living member runs it (or something newer), and no tenant is older than it except
those that somebody skipped by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.model import UpgradeState, VersionRow
from tidegate.errors import UpgradeRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.model import Member

NAMED_MAX: Final = 5
"""So many blockers are named; of others the number is given."""


@dataclass(frozen=True, slots=True)
class MayFinalise:
    """Nothing stands in the way."""


@dataclass(frozen=True, slots=True)
class AlreadyFinalised:
    """It has been done."""


@dataclass(frozen=True, slots=True)
class MayNot:
    """Why not yet; ``blockers`` are members or tenants."""

    why: str
    next_step: str
    blockers: tuple[str, ...] = ()

    def error(self) -> UpgradeRefusedError:
        """The refusal as an error."""
        return UpgradeRefusedError(self.why, next_step=self.next_step, blockers=list(self.blockers))


type Verdict = MayFinalise | AlreadyFinalised | MayNot


def may_finalise(
    row: VersionRow, members: Sequence[Member], tenants_behind: Sequence[str]
) -> Verdict:
    """Whether the upgrade may be finalised.

    Args:
        row: the latest upgrade.
        members: the programs that live now.
        tenants_behind: tenants older than the upgrade that nobody skipped, by name.
    """
    if row.is_finalised:
        return AlreadyFinalised()
    if row.state is not UpgradeState.READY:
        return MayNot(
            f"the upgrade to {row} is not ready", "see what it waits for: tidegate upgrade status"
        )
    older = tuple(sorted(member.name for member in members if member.identity < row.identity))
    if older:
        return MayNot(
            f"members older than {row} still run: {_named(older)}",
            "bring them to that version, or remove them from the cluster",
            older,
        )
    if tenants_behind:
        behind = tuple(tenants_behind)
        return MayNot(
            f"tenants are older than {row}: {_named(behind)}",
            "upgrade them with `tidegate upgrade retry`, or `tidegate upgrade skip` them",
            behind,
        )
    return MayFinalise()


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    more = len(names) - NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
