"""The accounts of one stream while it is applied: what is in its row, and what is not committed.

Decides when accounts begin and when they must add up (:mod:`tidegate.dataplane.accounts` says what
they are). It must not touch a database; the applier persists :attr:`Book.unsaved` together with the
position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.dataplane import accounts
from tidegate.engines.seam import H_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.dataplane.accounts import Accounts
    from tidegate.dataplane.fanout import Route
    from tidegate.engines.changes import Change
    from tidegate.engines.seam import Control


class Book:
    """See the module's docstring.

    Args:
        control: the stream's row as the session found it.
        routes: the tables of the span.
        place: the ordinal of the target among those of the span.
    """

    def __init__(self, control: Control, routes: Sequence[Route], place: int) -> None:
        self._loose = frozenset(route.table for route in routes if route.loose)
        self._place = place
        self._saved = accounts.from_json(control.accounts)
        self.now = self._begun = self._saved
        #: accounts that an older program did not begin at the first H would say nothing
        h_lsn = H_UNKNOWN if control.h_lsn is None else control.h_lsn
        self._opens = self._saved is None and control.lsn is not None and control.lsn <= h_lsn

    @property
    def opening(self) -> bool:
        """The accounts have yet to begin, at the first H."""
        return self._opens and self.now is None

    @property
    def unsaved(self) -> Accounts | None:
        """What is to be written with the position; None: the row has it."""
        return None if self.now is self._saved else self.now

    def open(self, waiting: Mapping[str, int]) -> None:
        """Begin: all that commits below the first H is applied, and so many keys wait."""
        assert self.opening, "accounts begin once"
        self.now = accounts.opened(waiting)

    def begin(self) -> None:
        """A transaction begins."""
        self._begun = self.now

    def roll_back(self) -> None:
        """The transaction did not take effect."""
        self.now = self._begun

    def save(self, now: Accounts | None) -> None:
        """The row holds this."""
        self.now = self._begun = self._saved = now

    def add(self, route: Route, changes: Sequence[Change], net: int, *, anew: bool) -> None:
        """Some changes of a table were applied without knowing how many rows they would touch."""
        if self.now is None:
            return
        speaks = route.table not in self._loose or self._place == 0
        due = accounts.expected(changes, speaks_for_deletes=speaks)
        self.now = accounts.booked(self.now, route.table, net, due, anew=anew)

    def settle(self) -> None:
        """The rows are exact: tables whose rows no other target has must add up.

        Raises:
            DivergenceError: one does not.
        """
        if not self.now:
            return
        own = {table: account for table, account in self.now.items() if table not in self._loose}
        accounts.require_even([own])
        if own:
            self.now = accounts.settled(self.now, self._loose)
