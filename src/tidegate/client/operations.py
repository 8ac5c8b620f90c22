"""Verbs of cluster operations, each a method named as on the command line.

Decides the request of each verb; it must not interpret answers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tidegate.client.transport import Noun, path_of
from tidegate.errors import TidegateError, UnreachableNodeError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tidegate.client.transport import Json

ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "COMPENSATED"})
AGAIN_S: Final = 30.0
"""How long a follower tries to come back to a node that is away."""
AGAIN_PAUSE_S: Final = 0.2
"""Between two attempts of it."""
WATCH_S: Final = 5.0
"""How long one request waits for news."""


class Operations(Noun):
    """``tidegate operation``: what lasts longer than a request, and survives the node."""

    def enqueue(
        self,
        task: str,
        parameters: Mapping[str, str],
        *,
        key: str | None = None,
        pause_before: Sequence[str] = (),
        priority: int = 0,
        undo: bool = False,
        dry_run: bool = False,
    ) -> Json:
        """Store an operation; it begins by itself.

        Args:
            task: what to do: ``HorizontalReshardingTask`` or ``VerticalSplitTask``.
            parameters: of the task, as text.
            key: the same request with the same key is one operation.
            pause_before: names or stages of tasks that wait for an approval, such as ``switch``.
            priority: from -100 to 100; the highest one begins first.
            undo: when it fails, take back what it has done.
            dry_run: check everything, answer with the plan, store nothing.
        """
        body: Json = {
            "task": task,
            "parameters": dict(parameters),
            "key": key,
            "pause_before": list(pause_before),
        }
        if priority:  # left out otherwise: a node of an earlier version does not know them
            body["priority"] = priority
        if undo:
            body["undo"] = True
        query = {"dry_run": dry_run}
        return self._call("POST", path_of("operations"), body, query=query, once=not dry_run)

    def list(
        self,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        caller: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Json:
        """The newest operations, or those before one; ``next_before`` begins the next page."""
        query = {
            "state": list(states) or None,
            "name": name,
            "caller": caller,
            "before": before,
            "limit": limit,
        }
        return self._call("GET", path_of("operations"), query=query)

    def show(self, operation: str, *, after_version: int = 0, wait_s: float = 0.0) -> Json:
        """An operation with its tasks; with ``wait_s``, once it is newer than ``after_version``."""
        query = {"after_version": after_version or None, "wait_s": wait_s or None}
        return self._call("GET", path_of("operations", operation), query=query)

    def log(
        self, operation: str, *, after: int = 0, limit: int | None = None, wait_s: float = 0.0
    ) -> Json:
        """Lines of its log after a number; with ``wait_s``, once there are some."""
        query = {"after": after or None, "limit": limit, "wait_s": wait_s or None}
        return self._call("GET", path_of("operations", operation, "log"), query=query)

    def follow(self, operation: str, *, after: int = 0) -> Iterator[Json]:
        """Lines of its log as they come, and itself after each change, until it has ended.

        A stream that breaks is opened again, at whichever node then owns the work, and no line is
        missed or repeated. The first time it must open at once.

        Raises:
            UnreachableNodeError: no stream could be opened for :data:`AGAIN_S`.
            TidegateError: the node's refusal, in its own class.
        """
        path = path_of("operations", operation, "log")
        given_up_at: float | None = time.monotonic()
        while True:
            failure: TidegateError = UnreachableNodeError(
                f"the node ended the stream of operation {operation}",
                next_step=f"tidegate operation logs {operation} --follow --after {after}",
            )
            try:
                with self._transport.events(path, str(after) if after else "") as events:
                    for _, news in events:
                        given_up_at = None
                        after = news.get("seq", after)
                        yield news
                        if news.get("state") in ENDED and after >= news["last_seq"]:
                            return
            except TidegateError as error:
                if not (error.retryable or isinstance(error, UnreachableNodeError)):
                    raise
                failure = error
            if given_up_at is None:
                given_up_at = time.monotonic() + AGAIN_S
            if time.monotonic() >= given_up_at:
                raise failure
            time.sleep(AGAIN_PAUSE_S)

    def wait(self, operation: str, *, timeout_s: float) -> Json:
        """An operation once it has ended.

        Raises:
            WaitTimeoutError: it has not; it goes on.
        """
        deadline = time.monotonic() + timeout_s
        found = self.show(operation)
        while found["state"] not in ENDED:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(
                    f"operation {operation} is {found['state']} after {timeout_s:g} s and goes on",
                    next_step=f"tidegate operation watch {operation}",
                )
            found = self.show(
                operation, after_version=found["version"], wait_s=max(0.1, min(WATCH_S, left))
            )
        return found

    def pause(self, operation: str) -> Json:
        """Let the tasks that run end, and start no more."""
        return self._ask(operation, "pause")

    def resume(self, operation: str) -> Json:
        """Go on with a paused operation."""
        return self._ask(operation, "resume")

    def cancel(self, operation: str) -> Json:
        """Stop an operation; refused after its point of no return."""
        return self._ask(operation, "cancel")

    def undo(self, operation: str) -> Json:
        """Take back what one did that failed or was cancelled."""
        return self._ask(operation, "undo")

    def retry(self, operation: str) -> Json:
        """Begin a failed operation again, with what failed."""
        return self._ask(operation, "retry")

    def skip(self, operation: str, task: str, reason: str) -> Json:
        """Go on without a task that failed, by its key."""
        return self._ask(operation, "skip", {"task": task, "reason": reason})

    def approve(self, operation: str, container: str | None = None) -> Json:
        """Let a container start that waits for an approval."""
        return self._ask(operation, "approve", {"container": container})

    def _ask(self, operation: str, verb: str, body: Json | None = None) -> Json:
        return self._call("POST", path_of("operations", operation, verb), body)
