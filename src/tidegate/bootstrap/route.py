"""Which version handles lead from one version to another, and whether any do.

The newest handle alone, if it upgrades from the source directly. Otherwise a chain: handles in
their order, each taken that is newer than what was reached so far and upgrades from it. A chain
that does not end at the wanted version is refused before anything is written, and the refusal
names the oldest version from which there is a way.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tidegate.bootstrap.model import Leg, Version
from tidegate.bootstrap.versions import Number, parse
from tidegate.errors import InvalidArgumentError, UpgradeRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_handles(handles: Sequence[Version]) -> None:
    """A program's list of versions: at least one, each newer than the one before.

    Raises:
        InvalidArgumentError: it is not so.
    """
    if not handles:
        raise InvalidArgumentError(
            "no version handles were given", next_step="register at least the founder's"
        )
    for before, after in itertools.pairwise(handles):
        if after.number <= before.number:
            raise InvalidArgumentError(
                f"version {after.version} is registered after {before.version}, which is not older",
                next_step="register version handles oldest first, each version once",
            )


def plan_route(source: str, handles: Sequence[Version], target: str | None = None) -> list[Leg]:
    """The legs from ``source`` to ``target``, by default the newest version there is.

    A source that is the target already gives one leg from the version to itself.

    Args:
        source: the version that is there.
        handles: what the program knows, oldest first.
        target: the version of one of the handles.

    Raises:
        UpgradeRefusedError: there is no way; names the oldest version from which there is one.
        InvalidArgumentError: the source is no version.
    """
    known = _up_to(handles, target)
    start = parse(source)
    legs = _legs(start, known)
    if legs is None:
        raise _unreachable(start, known)
    return legs


def oldest_source(handles: Sequence[Version], target: str | None = None) -> str:
    """The oldest version from which there is a way to ``target``."""
    return str(_oldest(_up_to(handles, target)))


def _oldest(known: Sequence[Version]) -> Number:
    starts = {parse(handle.min_source) for handle in known}
    return min(start for start in starts if _legs(start, known) is not None)


def _legs(start: Number, known: Sequence[Version]) -> list[Leg] | None:
    final = known[-1]
    if start > final.number:
        return None
    if parse(final.min_source) <= start:
        return [_leg(start, final)]
    legs: list[Leg] = []
    reached = start
    for handle in known:
        if handle.number > reached and parse(handle.min_source) <= reached:
            legs.append(_leg(reached, handle))
            reached = handle.number
    return legs if legs and reached == final.number else None


def _up_to(handles: Sequence[Version], target: str | None) -> Sequence[Version]:
    assert handles
    if target is None:
        return handles
    wanted = parse(target)
    known = [handle for handle in handles if handle.number <= wanted]
    if not known or known[-1].number != wanted:
        raise UpgradeRefusedError(
            f"this program does not know version {target}",
            next_step="run the program that started the upgrade to it, or a newer one",
        )
    return known


def _leg(source: Number, handle: Version) -> Leg:
    return Leg(str(source), handle.version, handle.needs_cluster, handle.needs_tenant)


def _unreachable(start: Number, known: Sequence[Version]) -> UpgradeRefusedError:
    final = known[-1]
    if start > final.number:
        return UpgradeRefusedError(
            f"version {start} is newer than {final.version}, the newest that this program knows",
            next_step=f"run the program of version {start}, or a newer one",
            found=str(start),
            known=final.version,
        )
    oldest = _oldest(known)
    return UpgradeRefusedError(
        f"there is no way from version {start} to {final.version}:"
        f" the oldest version that it can be reached from is {oldest}",
        next_step=f"upgrade to version {oldest} with an earlier program first",
        found=str(start),
        oldest=str(oldest),
        target=final.version,
    )
