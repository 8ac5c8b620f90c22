"""The gate: whether a node may run, given what the programs of all members know.

Decides from values alone. A node runs, and applies schema updates, only when every active member's
program knows the same as its own. All members are looked at, so the answer does not depend on their
order; pending and evicted ones do not count.

What another member is to us (:func:`relation`), by its schema version and its API extensions:

========== ============ =========== =========== =============
schema     ext. equal   ext. older  ext. newer  ext. diverged
========== ============ =========== =========== =============
equal      equal        older       newer       diverged
older      older        older       diverged    older
newer      newer        diverged    newer       newer
========== ============ =========== =========== =============

The answer, by the gravest relation found: a *newer* member means that this node is behind and must
be upgraded; a *diverged* one that versions are inconsistent; an *older* one that this node waits
for it. A node that is behind records itself all the same, so that members that are ahead of it wait
and nobody ever runs beside a newer member.

A member whose program the database itself refuses does not count: it has updates that the program
does not know and does not live with, so that program cannot be running, whatever its row says.

There is one exception, the way back from an upgrade that was not finalised: the database has the
updates of the newest member, and every update that the oldest member does not know lets older
programs work. Then nothing is left to apply, and members one upgrade apart run beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.cluster.extensions import Extensions, Relation
from tidegate.cluster.ledger import tolerates
from tidegate.errors import (
    InconsistentVersionsError,
    NodeBehindError,
    SomeNodesAreBehindError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.cluster.ledger import Applied
    from tidegate.cluster.members import Member


class Verdict(StrEnum):
    """What the gate says, the gravest last."""

    READY = "ready"
    WAIT = "wait"
    INCONSISTENT = "inconsistent"
    BEHIND = "behind"


_GRAVITY: Final = tuple(Verdict)
_VERDICTS: Final = {
    Relation.EQUAL: Verdict.READY,
    Relation.OLDER: Verdict.WAIT,
    Relation.DIVERGED: Verdict.INCONSISTENT,
    Relation.NEWER: Verdict.BEHIND,
}
_RELATIONS: Final = {
    (Relation.EQUAL, Relation.EQUAL): Relation.EQUAL,
    (Relation.EQUAL, Relation.OLDER): Relation.OLDER,
    (Relation.EQUAL, Relation.NEWER): Relation.NEWER,
    (Relation.EQUAL, Relation.DIVERGED): Relation.DIVERGED,
    (Relation.OLDER, Relation.EQUAL): Relation.OLDER,
    (Relation.OLDER, Relation.OLDER): Relation.OLDER,
    (Relation.OLDER, Relation.NEWER): Relation.DIVERGED,
    (Relation.OLDER, Relation.DIVERGED): Relation.OLDER,
    (Relation.NEWER, Relation.EQUAL): Relation.NEWER,
    (Relation.NEWER, Relation.OLDER): Relation.DIVERGED,
    (Relation.NEWER, Relation.NEWER): Relation.NEWER,
    (Relation.NEWER, Relation.DIVERGED): Relation.NEWER,
}


@dataclass(frozen=True, slots=True)
class Versions:
    """What a program knows: how many schema updates, and which API extensions."""

    schema: int
    extensions: Extensions = Extensions()  # noqa: RUF009 - a frozen value

    def __str__(self) -> str:
        return f"schema version {self.schema} and {self.extensions.count} API extensions"


@dataclass(frozen=True, slots=True)
class Other:
    """Another member, by name and by what its program knows."""

    name: str
    versions: Versions


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer. ``who`` are the members that it is because of; none when ready."""

    verdict: Verdict
    own: Versions
    who: tuple[Other, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the node may run."""
        return self.verdict is Verdict.READY

    @property
    def names(self) -> tuple[str, ...]:
        """Who it is because of."""
        return tuple(other.name for other in self.who)

    def error(self) -> TidegateError:
        """The answer as the error that whoever cannot go on raises."""
        assert not self.is_ready
        they = "; ".join(f"{other.name} has {other.versions}" for other in self.who)
        facts = f"{they}; this node has {self.own}"
        if self.verdict is Verdict.WAIT:
            return SomeNodesAreBehindError(
                f"some nodes are behind this node's version: {facts}",
                next_step="upgrade and restart them; this node goes on by itself afterwards",
                members=list(self.names),
            )
        if self.verdict is Verdict.BEHIND:
            return NodeBehindError(
                f"this node's version is behind, please upgrade: {facts}",
                next_step="install the members' version of tidegate on this node and restart it",
                members=list(self.names),
            )
        return InconsistentVersionsError(
            f"nodes have inconsistent versions: {facts}{_where(self.own, self.who)}",
            next_step="install one version of tidegate on all members and restart them",
            members=list(self.names),
        )


def relation(own: Versions, other: Versions) -> Relation:
    """What another member's program is to ours; the table of this module."""
    if own.schema == other.schema:
        schema = Relation.EQUAL
    else:
        schema = Relation.NEWER if other.schema > own.schema else Relation.OLDER
    return _RELATIONS[schema, own.extensions.relation(other.extensions)]


def decide(own: Versions, others: Iterable[Other]) -> Decision:
    """Whether a node may run beside these members, in whichever order they come."""
    found: dict[Verdict, list[Other]] = {verdict: [] for verdict in Verdict}
    for other in others:
        found[_VERDICTS[relation(own, other.versions)]].append(other)
    for verdict in reversed(_GRAVITY):
        if found[verdict] and verdict is not Verdict.READY:
            who = tuple(sorted(found[verdict], key=lambda other: other.name))
            return Decision(verdict, own, who)
    return Decision(Verdict.READY, own)


def decide_for(
    own: Versions, me: Member | None, members: Iterable[Member], applied: Sequence[Applied] = ()
) -> Decision:
    """Whether a node may run, given the member rows; its own, pending and evicted ones left out.

    Args:
        own: what this program knows.
        me: the own row.
        members: all rows.
        applied: what the database has.
    """
    others = others_of(me, members, applied)
    decision = decide(own, others)
    if decision.verdict in {Verdict.WAIT, Verdict.BEHIND} and _is_way_back(own, others, applied):
        return Decision(Verdict.READY, own)
    return decision


def others_of(
    me: Member | None, members: Iterable[Member], applied: Sequence[Applied] = ()
) -> list[Other]:
    """The members that count for a node, of all rows; ``applied`` is what the database has."""
    return [
        Other(member.name, Versions(member.schema_version, member.extensions))
        for member in members
        if member.is_active
        and (me is None or member.id != me.id)
        and not is_left_behind(member.schema_version, applied)
    ]


def is_left_behind(schema_version: int, applied: Sequence[Applied]) -> bool:
    """Whether a database that has these updates refuses the program that knows so many."""
    return (
        bool(applied)
        and schema_version < applied[-1].version
        and not tolerates(applied, schema_version)
    )


def _is_way_back(own: Versions, others: Sequence[Other], applied: Sequence[Applied]) -> bool:
    """Whether all of these programs work on a database that has these updates."""
    known = [own.schema, *(other.versions.schema for other in others)]
    complete = bool(applied) and applied[-1].version >= max(known)
    return complete and tolerates(applied, min(known))


def gravest(decisions: Iterable[Decision]) -> Decision:
    """Of several answers for one node, the one that counts: for a program with several ledgers."""
    return max(decisions, key=lambda decision: _GRAVITY.index(decision.verdict))


def _where(own: Versions, who: tuple[Other, ...]) -> str:
    """Where the lists of extensions part, when it is they that do."""
    for other in who:
        if own.extensions.relation(other.versions.extensions) is Relation.DIVERGED:
            difference = own.extensions.first_difference(other.versions.extensions)
            assert difference is not None
            return f"; {difference[0]} here is {difference[1]} on {other.name}"
    return ""
