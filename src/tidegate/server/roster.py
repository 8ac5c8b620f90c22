"""Whose certificate is good: the member rows as this node saw them last.

Decides when the rows are read again, and answers from memory where nobody may wait: the thread that
moves the bytes of the replicated cluster database asks for every connection, and a read of that
database would wait for this thread. The rule is :func:`tidegate.cluster.membership.refusal`.

While the cluster database does not answer, what was seen last counts; a node that has seen nothing
yet refuses nobody whom the cluster's authority has signed, since the members must find each other
before there is a database to ask.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tidegate.cluster.membership import refusal
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.cluster.members import Member

KNOWN_S: Final = 2.0
"""How long the rows count without a new look."""
DOUBTED_S: Final = 0.2
"""Between two looks because of somebody who may have joined just now, and who waits for it."""


class Roster:
    """The member rows of an open cluster database, remembered.

    Args:
        read: all rows; None while there is no cluster database to ask.
    """

    def __init__(self, read: Callable[[], Sequence[Member] | None]) -> None:
        self._read = read
        self._seen: tuple[float, Sequence[Member]] | None = None

    def refresh(self) -> None:
        """Read the rows now; what was seen last stays when that fails."""
        began = time.monotonic()
        try:
            rows = self._read()
        except TidegateError:
            return
        if rows is not None:
            self._seen = (began, rows)

    def refusal(self, name: str, fingerprint: str) -> str | None:
        """Why a member's certificate is refused; None when it is not. May read, and wait for it.

        Nobody is refused by rows that are older than the question: a member that was let in a
        moment ago takes a refusal for its eviction, and ends.
        """
        asked_at = time.monotonic()
        if self._is_older_than(KNOWN_S):
            self.refresh()
        reason = self.known_refusal(name, fingerprint)
        if reason is not None and self._seen is not None and self._seen[0] < asked_at:
            time.sleep(max(0.0, self._seen[0] + DOUBTED_S - time.monotonic()))
            self.refresh()
            reason = self.known_refusal(name, fingerprint)
        return reason

    def known_refusal(self, name: str, fingerprint: str) -> str | None:
        """The same from memory; never waits."""
        return None if self._seen is None else refusal(self._seen[1], name, fingerprint)

    def _is_older_than(self, age_s: float) -> bool:
        return self._seen is None or time.monotonic() - self._seen[0] > age_s
