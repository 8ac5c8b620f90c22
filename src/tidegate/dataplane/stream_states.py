"""The states of a stream and what moves it from one to another: one table.

Decides which states a worker works in and which transition leads from where to where. Statements
take the states of a transition from here as parameters; the tables and the diagram of
``docs/reference/stream-states.md`` are made from it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.dataplane.model import FROZEN, StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping

#: States in which a worker works on the stream.
ACTIVE: Final = (StreamState.INIT, StreamState.COPYING, StreamState.RUNNING)

#: How the message of a stream begins that stopped because a table was altered.
STOPPED_AT_DDL: Final = "Stopped at DDL"
#: The whole message of a stream that stopped because its workflow wanted the copy alone.
STOPPED_AFTER_COPY: Final = "Stopped after copy."

MEANINGS: Final[Mapping[StreamState, str]] = {
    StreamState.INIT: "made, nothing copied yet",
    StreamState.COPYING: "rows are being copied; the log is kept for later",
    StreamState.RUNNING: "the log is being applied",
    StreamState.STOPPED: "nothing is applied until it is started; the message says why",
    StreamState.ERROR: "the cause, named in the message, has to be corrected before it is started",
    StreamState.UNKNOWN: "never stored by this version; shown for a state it does not know",
    StreamState.LAGGING: "never stored; what a display may call `Running` with a large lag",
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One way from a state to another.

    Attributes:
        before: the states it may leave.
        after: the state it leads to.
        by: who or what brings it about.
        message: what the stream's message is, or begins with, afterwards.
    """

    before: tuple[StreamState, ...]
    after: StreamState
    by: str
    message: str = ""


_IDLE: Final = (StreamState.STOPPED, StreamState.ERROR)

BEGUN: Final = Transition(
    (StreamState.INIT,),
    StreamState.COPYING,
    "the worker, when the slot's first position is recorded",
)
COPIED: Final = Transition(
    (StreamState.COPYING,),
    StreamState.RUNNING,
    "the worker, with H, when all chunks and indexes are there",
)
COPIED_ONLY: Final = Transition(
    (StreamState.COPYING,),
    StreamState.STOPPED,
    "the worker, with `--stop-after-copy`",
    STOPPED_AFTER_COPY,
)
RESUMED: Final = Transition(
    (StreamState.INIT, StreamState.COPYING),
    StreamState.RUNNING,
    "the worker, where the position and H are there already",
)
STOPPED: Final = Transition(
    (*ACTIVE, *_IDLE), StreamState.STOPPED, "`stop`, and what stops streams on the way"
)
AT_POSITION: Final = Transition(
    ACTIVE, StreamState.STOPPED, "the worker, at a stop position", "Stopped at position"
)
ALTERED: Final = Transition(
    ACTIVE,
    StreamState.STOPPED,
    "the worker, when a table was altered; with `--on-ddl IGNORE` only when a carried column was"
    " dropped, renamed or given another type",
    STOPPED_AT_DDL,
)
FAILED: Final = Transition(
    ACTIVE,
    StreamState.ERROR,
    "the worker, on an error that does not end by itself",
    "terminal error",
)
STARTED_COPYING: Final = Transition(
    (*ACTIVE, *_IDLE),
    StreamState.COPYING,
    "`start`, while the copy has not ended; refused when frozen",
)
STARTED_RUNNING: Final = Transition(
    (*ACTIVE, *_IDLE),
    StreamState.RUNNING,
    '`start`; after "Stopped at DDL" it accepts the tables as they are now; refused when frozen',
)
SWITCHED: Final = Transition(
    (*ACTIVE, *_IDLE), StreamState.STOPPED, "a switch of writes, at its end", FROZEN
)

TRANSITIONS: Final = (
    BEGUN,
    COPIED,
    COPIED_ONLY,
    RESUMED,
    AT_POSITION,
    ALTERED,
    FAILED,
    STOPPED,
    STARTED_COPYING,
    STARTED_RUNNING,
    SWITCHED,
)


def started(*, is_copied: bool) -> Transition:
    """What starting a stream does: its copy goes on, or its log is applied."""
    return STARTED_RUNNING if is_copied else STARTED_COPYING
