"""Raises the sequences of the opening side, inside the pause of a switch.

Decides which shards take part: those that close, those that open, and those of the same keyspace
that go on serving, whose numbers must stay theirs. What the sequences are set to is decided in
:mod:`tidegate.engines.postgres.sequences`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.postgres import sequences
from tidegate.errors import FailedPreconditionError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tidegate.engines.postgres.sequences import SequenceState
    from tidegate.workflow.work import Work

type Staying = Sequence[Mapping[TableName, SequenceState]]


def read_staying(
    work: Work, keyspace: str, moving: Collection[str], tables: Sequence[TableName]
) -> Staying:
    """The sequences of the serving shards of a keyspace that neither close nor open."""
    names = [s.name for s in work.snapshot.serving_shards(keyspace) if s.name not in moving]
    found = work.sessions.each(
        keyspace,
        sorted(names),
        lambda _s, session: sequences.read_sequences(session, tables, _beside(work)),
    )
    return list(found.values())


def _beside(work: Work) -> list[TableName]:
    """The sequences that only functions of the tables draw from."""
    return [TableName.parse(name) for name in work.workflow.sequences]


def raise_opening(
    work: Work,
    *,
    closing: tuple[str, Collection[str]],
    opening: tuple[str, Collection[str]],
    tables: Sequence[TableName],
    staying: Staying,
) -> None:
    """Raise them past what the closing side has given out; the order of shards gives the classes.

    A switch that is rolled back leaves them raised: numbers are skipped, none is used twice.

    Raises:
        FailedPreconditionError: a sequence has no numbers left.
    """
    found = sequences.raise_past(
        [work.sessions.get(closing[0], shard) for shard in sorted(closing[1])],
        [work.sessions.get(opening[0], shard) for shard in sorted(opening[1])],
        tables,
        staying=staying,
        more=_beside(work),
    )
    exhausted = sorted({str(raised.name) for raised in found if raised.exhausted})
    if exhausted:
        raise FailedPreconditionError(
            f"sequences have no numbers left for the opening side: {', '.join(exhausted)}",
            next_step="widen them: ALTER SEQUENCE … AS bigint MAXVALUE …, on both sides",
            sequences=exhausted,
        )
