"""Whether a target has as many rows of each table as the log says; pure.

After H most statements name exactly the rows they must touch, and the count is checked before the
COMMIT (datapath rule 11). Two kinds cannot say how many that is: those of a *loose* table, whose
rows leave a shard that the log does not name, so that every target is told to delete them; and
those of a batch in which a row must be read again. For these each commit adds to the *account* of
the table, in the stream's row:

* ``net``: rows inserted less rows deleted, as the target counted them;
* ``expected``: rows the source inserted less rows it deleted, as far as this target speaks for
  them. An insert is spoken for by the target it belongs to. So is a delete, but one of a loose
  table, which the first target speaks for. An update changes nothing, wherever the row goes.

Both begin at the first H, with every key that waits to be read again as a row that is missing. Then
at every position at which the rows are exact ``net`` equals ``expected``: at each target for a
table that is not loose, summed over all targets of the span, at one position, for a loose one. A
delete that found no row, or an update that made one, shows as a difference for good; how the log
was cut into batches does not matter.

TRUNCATE begins the account anew, at the same place of the log everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tidegate.dataplane.compaction import GONE, REFETCH
from tidegate.engines.changes import DELETE, INSERT, TRUNCATE
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.changes import Change

#: Table → (net, expected).
type Accounts = dict[str, tuple[int, int]]

_WORTH = {INSERT: 1, REFETCH: 1, DELETE: -1}
assert GONE not in _WORTH, "who is told to delete a row that moved speaks for nothing"


def opened(pending: Mapping[str, int]) -> Accounts:
    """The accounts at the first H: keys that wait are rows that are missing."""
    return {table: (-count, 0) for table, count in pending.items() if count}


def expected(changes: Iterable[Change], *, speaks_for_deletes: bool) -> int:
    """Rows that changes of one table add at the source, after the last TRUNCATE if there is one."""
    total = 0
    for change in changes:
        kind = change[0]
        if kind == TRUNCATE:
            total = 0
        elif kind != DELETE or speaks_for_deletes:
            total += _WORTH.get(kind, 0)
    return total


def booked(accounts: Accounts, table: str, net: int, due: int, *, anew: bool) -> Accounts:
    """The accounts after a batch has changed a table; ``anew`` where it was truncated."""
    before = (0, 0) if anew else accounts.get(table, (0, 0))
    return {**accounts, table: (before[0] + net, before[1] + due)}


def settled(accounts: Accounts, loose: frozenset[str]) -> Accounts:
    """What is left to keep where the rows are exact: tables that are not loose, and even, go."""
    return {
        table: account
        for table, account in accounts.items()
        if table in loose or account[0] != account[1]
    }


def uneven(targets: Sequence[Accounts]) -> dict[str, tuple[int, int]]:
    """Tables whose rows, over targets at one exact position, are not as many as they must be."""
    found: dict[str, tuple[int, int]] = {}
    for table in sorted({table for accounts in targets for table in accounts}):
        net = sum(accounts.get(table, (0, 0))[0] for accounts in targets)
        due = sum(accounts.get(table, (0, 0))[1] for accounts in targets)
        if net != due:
            found[table] = (net, due)
    return found


def require_even(targets: Sequence[Accounts]) -> None:
    """Make sure that targets at one exact position have as many rows as they must.

    Raises:
        DivergenceError: they have more or less; names the tables.
    """
    found = uneven(targets)
    if not found:
        return
    told = "; ".join(
        f"table {table}: {net:+d} rows since the copy, {due:+d} at the source"
        for table, (net, due) in found.items()
    )
    raise DivergenceError(
        f"the target does not hold as many rows as the log says: {told}",
        next_step="compare source and target (tidegate vdiff create), then copy again",
        tables=sorted(found),
    )


class Exact(Protocol):
    """A stream's row, as far as accounts need it."""

    @property
    def lsn(self) -> int | None:
        """Its position."""

    @property
    def exact(self) -> bool:
        """The rows are exactly the source's there."""

    @property
    def accounts(self) -> Mapping[str, Sequence[int]] | None:
        """As the row holds them."""


def require_even_at(rows: Sequence[Exact | None]) -> None:
    """Look at the streams of one span; nothing is said unless all are exact at one position.

    Raises:
        DivergenceError: they do not have as many rows as they must.
    """
    known = [row for row in rows if row is not None and row.exact]
    if len(known) == len(rows) and len({row.lsn for row in known}) == 1:
        require_even_rows(known)


def require_even_rows(rows: Iterable[Exact]) -> None:
    """Look at the streams of one span, exact where nothing of the source lies between them.

    Raises:
        DivergenceError: they do not have as many rows as they must.
    """
    kept = [from_json(row.accounts) for row in rows]
    known = [accounts for accounts in kept if accounts is not None]
    if len(known) == len(kept):
        require_even(known)


def require_even_spans(rows: Iterable[StreamRow]) -> None:
    """As :func:`require_even_rows`, for all streams of one direction of a workflow."""
    spans: dict[str, list[StreamRow]] = {}
    for row in rows:
        spans.setdefault(row.source_shard, []).append(row)
    for streams in spans.values():
        require_even_rows(streams)


def from_json(value: Mapping[str, Sequence[int]] | None) -> Accounts | None:
    """As the stream's row holds them; None before the first H."""
    return None if value is None else {t: (int(n), int(e)) for t, (n, e) in value.items()}
