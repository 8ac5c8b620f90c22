"""What a capture's report does to a span at the owner: the table of all transitions.

For each state of a span, each role that the reporter may have in it (or none) and each state that
it may report there is a list of rules; the first whose condition holds is applied, and the last one
always holds. ``docs/reference/span-transitions.md`` is generated from the table.

What it guarantees:

* A commit order leaves only when the previous primary has stopped, lost the span or is gone, and
  nobody is left who may still write (role ``undetermined``).
* A capture that works on a span without a role in it becomes undetermined and is stopped.
* Whatever is reported, a span gets to Absent, Replicating or out: no report is ignored that says a
  capture has ended its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import Role, SetState, TableState

if TYPE_CHECKING:
    from collections.abc import Mapping


class When(StrEnum):
    """Who else, apart from the reporter, has a role in the span."""

    ALWAYS = "always"
    PRIMARY = "another is primary"
    UNDETERMINED = "another is undetermined"
    SECONDARY = "another is secondary"
    SECONDARY_AND_UNDETERMINED = "others are secondary and undetermined"


class Act(StrEnum):
    """One thing that is done, in the order of a rule."""

    MERGE = "take its checkpoint"
    CLEAR = "it has no role any more"
    DEMOTE = "it becomes undetermined"
    PREPARE = "order it to prepare"
    REPREPARE = "it becomes secondary, order it to prepare"
    PROMOTE = "it becomes primary, order it to commit"
    PROMOTE_SECONDARY = "the secondary becomes primary, order it to commit"
    COMMIT = "order it to commit"
    STOP = "order it to stop"
    STOP_PRIMARY = "order the primary to stop"
    AGAIN = "look at the report again in the new state"
    FAIL = "error: two writers"
    IMPOSSIBLE = "cannot be: a bug"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done when a condition holds; ``after`` is None when the state stays."""

    when: When
    acts: tuple[Act, ...] = ()
    after: SetState | None = None


type Rules = tuple[Rule, ...]
type Reporter = Role | None

_A, _PG, _PD = TableState.ABSENT, TableState.PREPARING, TableState.PREPARED
_R, _SG, _SD = TableState.REPLICATING, TableState.STOPPING, TableState.STOPPED


def _do(*acts: Act, after: SetState | None = None, when: When = When.ALWAYS) -> Rule:
    return Rule(when, acts, after)


_WAIT: Final = (_do(),)
_STOP: Final = (_do(Act.STOP),)
_CLEAR: Final = (_do(Act.CLEAR),)
_FAIL: Final = (_do(Act.FAIL),)
_MERGE: Final = (_do(Act.MERGE),)
_END: Final = (_do(Act.MERGE, Act.CLEAR),)
_DEMOTE_AND_STOP: Final = (_do(Act.DEMOTE, Act.STOP),)
_IMPOSSIBLE: Final[Mapping[TableState, Rules]] = {
    state: (_do(Act.IMPOSSIBLE),) for state in TableState
}

#: A capture without a role that works on the span: it must not, and may be writing.
_STRANGER: Final[Mapping[TableState, Rules]] = {
    _A: _WAIT,
    _PG: _DEMOTE_AND_STOP,
    _PD: _DEMOTE_AND_STOP,
    _R: _DEMOTE_AND_STOP,
    _SG: (_do(Act.DEMOTE),),
    _SD: _WAIT,
}

#: A capture that is to stop and may still write.
_LEAVING: Final[Mapping[TableState, Rules]] = {
    _A: _CLEAR,
    _PG: _STOP,
    _PD: _STOP,
    _R: _STOP,
    _SG: _WAIT,
    _SD: _CLEAR,
}

_LEAVING_BESIDE_A_WRITER: Final = {**_LEAVING, _R: _FAIL}

TRANSITIONS: Final[Mapping[SetState, Mapping[Reporter, Mapping[TableState, Rules]]]] = {
    SetState.ABSENT: {
        Role.PRIMARY: _IMPOSSIBLE,
        Role.SECONDARY: _IMPOSSIBLE,
        Role.UNDETERMINED: _IMPOSSIBLE,
        None: _STRANGER,
    },
    SetState.PREPARE: {
        Role.PRIMARY: {
            _A: _END,
            _PG: _DEMOTE_AND_STOP,
            _PD: _DEMOTE_AND_STOP,
            _R: _MERGE,
            _SG: (_do(Act.MERGE, Act.DEMOTE),),
            _SD: _END,
        },
        Role.SECONDARY: {
            _A: (_do(Act.PREPARE),),
            _PG: _WAIT,
            _PD: (_do(Act.AGAIN, after=SetState.COMMIT),),
            _R: _DEMOTE_AND_STOP,
            _SG: _CLEAR,
            _SD: _CLEAR,
        },
        Role.UNDETERMINED: _LEAVING,
        None: _STRANGER,
    },
    SetState.COMMIT: {
        Role.PRIMARY: {
            _A: (
                _do(Act.MERGE, Act.CLEAR, when=When.SECONDARY_AND_UNDETERMINED),
                _do(Act.MERGE, Act.CLEAR, Act.PROMOTE_SECONDARY, when=When.SECONDARY),
                _do(Act.MERGE, Act.CLEAR, when=When.UNDETERMINED),
                _do(Act.MERGE, Act.REPREPARE, after=SetState.PREPARE),
            ),
            _PG: _WAIT,
            _PD: (_do(when=When.SECONDARY), _do(Act.COMMIT)),
            _R: (
                _do(Act.MERGE, Act.STOP, when=When.SECONDARY),
                _do(Act.MERGE, after=SetState.REPLICATING),
            ),
            _SG: _MERGE,
            _SD: (
                _do(Act.MERGE, Act.CLEAR, when=When.SECONDARY_AND_UNDETERMINED),
                _do(Act.MERGE, Act.CLEAR, Act.PROMOTE_SECONDARY, when=When.SECONDARY),
                _do(Act.MERGE, Act.CLEAR),
            ),
        },
        Role.SECONDARY: {
            _A: (
                _do(Act.CLEAR, when=When.PRIMARY),
                _do(Act.CLEAR, when=When.UNDETERMINED),
                _do(Act.REPREPARE, after=SetState.PREPARE),
            ),
            _PG: _WAIT,
            _PD: (
                _do(Act.STOP_PRIMARY, when=When.PRIMARY),
                _do(when=When.UNDETERMINED),
                _do(Act.PROMOTE),
            ),
            _R: _FAIL,
            _SG: _WAIT,
            _SD: _CLEAR,
        },
        Role.UNDETERMINED: _LEAVING_BESIDE_A_WRITER,
        None: _STRANGER,
    },
    SetState.REPLICATING: {
        Role.PRIMARY: {
            _A: _END,
            _PG: _DEMOTE_AND_STOP,
            _PD: _DEMOTE_AND_STOP,
            _R: _MERGE,
            _SG: _MERGE,
            _SD: _END,
        },
        Role.SECONDARY: _IMPOSSIBLE,
        Role.UNDETERMINED: _LEAVING_BESIDE_A_WRITER,
        None: _STRANGER,
    },
    SetState.REMOVING: {
        Role.PRIMARY: _LEAVING,
        Role.SECONDARY: _LEAVING,
        Role.UNDETERMINED: _LEAVING,
        None: _STRANGER,
    },
}
"""By state of the span, role of the reporter, and what it reports."""


def settled(state: SetState, roles: frozenset[Role]) -> SetState:
    """The state that a span is in once a rule has been applied, by the roles that are left."""
    if state is SetState.REMOVING:
        return state
    if not roles:
        return SetState.ABSENT
    if roles == {Role.UNDETERMINED}:
        return SetState.REMOVING
    if state is SetState.PREPARE and Role.SECONDARY not in roles:
        return SetState.REPLICATING
    return state
