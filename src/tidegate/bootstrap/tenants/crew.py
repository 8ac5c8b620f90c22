"""The threads that work on the tenants of one run, and what goes between them and the loop.

Decides how jobs are handed out and outcomes are handed back, with a bound on both. A crew that was
told to halt begins nothing more: what it had been given comes back untouched, and what is being
worked on ends as it does. It knows nothing about states, and no database.
"""

from __future__ import annotations

import queue
import threading
import traceback
from typing import TYPE_CHECKING, Self

from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.bootstrap.tenants.hands import Hand, Job


class Crew:
    """Some threads, each with a hand of its own; use it in a ``with`` block.

    Args:
        jobs: how many threads.
        make_hand: called in each thread.
        on_outcome: called in the thread that has an outcome, before it is handed back.
        backlog: how many jobs may wait for each thread.
    """

    def __init__(
        self,
        jobs: int,
        make_hand: Callable[[], Hand],
        on_outcome: Callable[[Job, Outcome], None],
        *,
        backlog: int,
    ) -> None:
        self._make_hand = make_hand
        self._on_outcome = on_outcome
        self.capacity = jobs * (backlog + 1)
        self._jobs: queue.Queue[Job | None] = queue.Queue(self.capacity + jobs)
        self._changed = threading.Condition()
        self._outcomes: list[tuple[Job, Outcome]] = []
        self._in_flight = 0
        self.halt = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"tenants {number}", daemon=True)
            for number in range(jobs)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.halt.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def free(self) -> int:
        """How many more jobs may be put."""
        with self._changed:
            return self.capacity - self._in_flight

    @property
    def in_flight(self) -> int:
        """Jobs that were put and whose outcomes were not collected."""
        with self._changed:
            return self._in_flight

    def put(self, jobs: Sequence[Job]) -> None:
        """Hand out jobs; at most as many as are :attr:`free`."""
        with self._changed:
            self._in_flight += len(jobs)
            assert self._in_flight <= self.capacity, "more jobs than the crew takes"
        for job in jobs:
            self._jobs.put_nowait(job)

    def collect(self, timeout_s: float) -> list[tuple[Job, Outcome]]:
        """What has ended: at once when half of the jobs have, else after ``timeout_s``."""

        def enough() -> bool:
            ended = len(self._outcomes)
            return ended > 0 and 2 * ended >= min(self._in_flight, self.capacity)

        with self._changed:
            self._changed.wait_for(enough, timeout_s)
            found, self._outcomes = self._outcomes, []
            self._in_flight -= len(found)
        return found

    def _work(self) -> None:
        hand: Hand | None = None
        try:
            while (job := self._jobs.get()) is not None:
                outcome = Outcome(Result.UNTOUCHED)
                if not self.halt.is_set():
                    try:
                        hand = hand or self._make_hand()
                        outcome = hand.upgrade(job)
                    except Exception:  # noqa: BLE001 - a bug must cost one tenant, not the run
                        outcome = Outcome.failed(Cause.WORKER, traceback.format_exc(limit=-4))
                    self._on_outcome(job, outcome)
                with self._changed:
                    self._outcomes.append((job, outcome))
                    self._changed.notify_all()
        finally:
            if hand is not None:
                hand.close()
