"""Moves the rows of one chunk from its source to its targets, inside transactions that are open.

Decides which way the bytes take: past libpq where no session is encrypted, else through it. Either
way the same rows arrive; what differs is the time. A failure closes the sessions it concerns, and
with them go their transactions.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Protocol

from tidegate.engines.postgres import copy as through_libpq
from tidegate.engines.postgres import distribute, passing

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg
    from psycopg import Connection, sql
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.split import Routing


def transfer(
    plan: through_libpq.CopyPlan,
    routing: Routing,
    chunk: sql.Composable,
    source: Connection[TupleRow],
    targets: Mapping[int, Connection[TupleRow]],
    *,
    stop: threading.Event,
) -> dict[int, tuple[int, int]]:
    """Move the rows of a chunk; returns rows and bytes for each target.

    Args:
        plan: how the table travels.
        routing: which rows go to which target.
        chunk: the condition that selects the rows.
        source: a session in its snapshot.
        targets: place to a session in its transaction.
        stop: ends the transfer when set.

    Raises:
        CancelledError: ``stop`` was set.
        RowRefusedError: a row has no place.
        psycopg.Error: what a server says.
    """
    places = tuple(targets)
    query = plan.copy_out(routing.condition(chunk, places), first=routing.extra_column(plan.format))
    router = distribute.start(routing, plan.format, places)
    sent = dict.fromkeys(places, 0)
    with ExitStack() as stack:
        counted: Mapping[int, passing.CopyIn | psycopg.Cursor[TupleRow]]
        if all(map(passing.is_direct, (source, *targets.values()))):
            copies = {
                place: stack.enter_context(passing.CopyIn(session, plan.copy_in(), stop))
                for place, session in targets.items()
            }
            counted = copies
            if routing.mode == "rows":
                batches = stack.enter_context(closing(passing.messages(source, query, stop)))
                _route(router, batches, copies, sent)
            else:
                for piece in stack.enter_context(closing(passing.pieces(source, query, stop))):
                    for place, copy in copies.items():
                        copy.pass_on(piece)
                        sent[place] += len(piece)
        else:
            cursors = {place: session.cursor() for place, session in targets.items()}
            counted = cursors
            writers = {
                place: stack.enter_context(cursor.copy(plan.copy_in()))
                for place, cursor in cursors.items()
            }
            _route(router, through_libpq.read_messages(source, query, stop), writers, sent)
    return {place: (counted[place].rowcount, sent[place]) for place in places}


class _Writer(Protocol):
    def write(self, block: bytes, /) -> None: ...


def _route(
    router: distribute.Distributor,
    batches: Iterable[Sequence[distribute.Message]],
    copies: Mapping[int, _Writer],
    sent: dict[int, int],
) -> None:
    """Send each batch of rows where it belongs, and what ends the stream."""
    for messages in batches:
        for place, block in router.route(messages):
            copies[place].write(block)
            sent[place] += len(block)
    for place, block in router.finish():
        copies[place].write(block)
        sent[place] += len(block)
