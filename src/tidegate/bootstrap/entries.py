"""Entries of a version handle: single changes, each with a check, run in order and once.

An entry whose check finds its change done is passed over. Otherwise the *protocol gate* is first:
an entry that writes what older members cannot read waits until every member speaks the protocol it
needs. An answer that is missing or makes no sense counts as *no*. Then pre, main and post run, in
this order; whatever fails ends the handler, and its transaction is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.errors import TidegateError, UpgradePendingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class UpgradeEntry[C]:
    """One change of a version.

    Attributes:
        name: for people.
        check: whether the change is there already.
        main: makes it.
        pre: what must happen before.
        post: what must happen after; the check should become true by it at the latest.
        required_protocol: every member must speak at least this before anything is written.
    """

    name: str
    check: Callable[[C], bool]
    main: Callable[[C], None]
    pre: Callable[[C], None] | None = None
    post: Callable[[C], None] | None = None
    required_protocol: int | None = None


type Protocols = Callable[[], Mapping[str, object]]
"""The protocol that each member speaks, by the member's name, as it answered."""


def run_entry[C](entry: UpgradeEntry[C], connection: C, protocols: Protocols) -> bool:
    """Run one entry; False when its change was there already.

    Raises:
        UpgradePendingError: a member does not speak the protocol yet, or nobody knows; nothing of
            the entry has run.
    """
    if entry.check(connection):
        return False
    if entry.required_protocol is not None:
        _require(entry.name, entry.required_protocol, protocols)
    for part in (entry.pre, entry.main, entry.post):
        if part is not None:
            part(connection)
    return True


def lagging(required: int, answers: Mapping[str, object]) -> list[str]:
    """The members that do not speak a protocol, by name; whoever answers nonsense is one."""
    return sorted(
        name
        for name, answer in answers.items()
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < required
    )


def _require(name: str, required: int, protocols: Protocols) -> None:
    try:
        answers = protocols()
    except (TidegateError, OSError) as error:
        raise UpgradePendingError(
            f"entry {name} needs protocol {required} of every member, and they could not be asked:"
            f" {error}",
            next_step="see that all members answer; the upgrade tries again by itself",
        ) from error
    behind = lagging(required, answers)
    if behind or not answers:
        who = ", ".join(behind) or "nobody answers"
        raise UpgradePendingError(
            f"entry {name} needs protocol {required} of every member; not there yet: {who}",
            next_step="bring these members to the new version; the upgrade tries again by itself",
            members=behind,
        )
