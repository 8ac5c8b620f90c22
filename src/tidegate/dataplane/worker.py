"""The process of one span: ``python -m tidegate.dataplane.worker``, its description on stdin.

Decides what an error means: *transient* ones keep the streams' state, appear in their rows and
log, and are tried again after a delay; *fatal* ones put the streams into Error, because nobody but
a person can mend them; a lost epoch ends the process without a word to the rows, which belong to
another worker. SIGTERM ends it at the next batch boundary and leaves the rows as they are, so that
the next process goes on. SIGKILL is always safe.

Refused credentials end the process as well, with the streams' state as it was: whoever watches it
knows how rarely a password may be tried.

Exit status: 0 no stream is active any more, 3 fatal, 4 epoch lost, 5 credentials refused, 143 asked
to end; anything else is transient. Standard output carries JSON lines (see
:mod:`tidegate.dataplane.progress`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate import waits
from tidegate.dataplane import streams
from tidegate.dataplane.model import SpanSpec
from tidegate.dataplane.phases import Span
from tidegate.dataplane.progress import Progress
from tidegate.dataplane.retention import RetentionWatch
from tidegate.dataplane.source_end import SourceEnd
from tidegate.dataplane.stream_states import ALTERED, FAILED
from tidegate.dataplane.waking import Waking
from tidegate.engines.failures import FailurePhase
from tidegate.engines.known import engine_of
from tidegate.engines.seam import Mark
from tidegate.errors import (
    AuthenticationError,
    EpochLostError,
    SchemaChangedError,
    SecretError,
    TidegateError,
)
from tidegate.steady_lines import SteadyLines
from tidegate.topology.connections import redacted

if TYPE_CHECKING:
    from types import FrameType

    from tidegate.dataplane.stream_states import Transition
    from tidegate.engines.seam import Engine

STREAM = FailurePhase.STREAM

EXIT_DONE, EXIT_FATAL, EXIT_EPOCH_LOST, EXIT_REFUSED, EXIT_ASKED = 0, 3, 4, 5, 143

FIRST_DELAY_S = 0.2
DELAY_MAX_S = 5.0
#: Work that lasted so long counts as healthy: the delay starts small again.
HEALTHY_S = 30.0


def is_transient(error: TidegateError | OSError) -> bool:
    """Whether trying again can help without anybody changing anything."""
    if isinstance(error, TidegateError):
        return error.retryable or error.outcome_unknown
    return True


def describe(error: BaseException) -> str:
    """One line, without secrets."""
    text = error.message if isinstance(error, TidegateError) else str(error)
    return redacted(" ".join(text.split())) or type(error).__name__


def _log_notes(error: BaseException) -> None:
    """Details that are for the worker's log alone."""
    for note in getattr(error, "__notes__", ()):
        SteadyLines(2).write(f"{' '.join(note.split())}\n")


@dataclass
class _Patience:
    """How long the same transient error has been met, and how long to wait before the next try."""

    limit_s: float
    message: str = ""
    since: float = 0.0
    last: float = 0.0
    delay_s: float = FIRST_DELAY_S

    def note(self, message: str, now: float, worked_s: float) -> bool:
        """One more failure; says whether the limit is passed. Another message starts anew."""
        fresh = message != self.message or worked_s >= HEALTHY_S
        if fresh or (self.limit_s and now - self.last > self.limit_s):
            self.message, self.since, self.delay_s = message, now, FIRST_DELAY_S
        else:
            self.delay_s = min(2 * self.delay_s, DELAY_MAX_S)
        self.last = now
        return bool(self.limit_s) and now - self.since > self.limit_s


def engines_of(spec: SpanSpec) -> list[Engine]:
    """The engines of a span's databases, each once."""
    endpoints = (spec.source, *(target.endpoint for target in spec.targets))
    return list(dict.fromkeys(map(engine_of, endpoints)))


class Worker:
    """Runs a span until it ends one way or another."""

    def __init__(self, spec: SpanSpec, progress: Progress) -> None:
        self._spec, self._progress = spec, progress
        self.stop = Waking()
        self._end = SourceEnd()
        self._engines = engines_of(spec)
        self._caught: tuple[type[Exception], ...] = (
            TidegateError,
            OSError,
            *(engine.errors for engine in self._engines),
        )

    def run(self) -> int:
        """The process's exit status."""
        self._progress.event("started", epoch=self._spec.epoch, pid=os.getpid())
        with RetentionWatch(self._spec, self.stop, self._end) as watch:
            status = self._work()
        if watch.alarm is None or status == EXIT_EPOCH_LOST:
            return status
        self._progress.event("error", message=watch.message, kind="fatal")
        return EXIT_FATAL

    def _work(self) -> int:
        """Try until there is nothing left to do, or to be tried."""
        patience = _Patience(self._spec.options.max_retry_s)
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                if Span(self._spec, self.stop, self._progress, self._end).run():
                    self._progress.event("stopped")
                    return EXIT_DONE
            except EpochLostError as error:
                self._progress.event("error", error=error.to_json(), kind="epoch_lost")
                return EXIT_EPOCH_LOST
            except (AuthenticationError, SecretError) as error:
                return self._refused(error)
            except self._caught as raised:
                met = self._meaning(raised)
                now = time.monotonic()
                exhausted = patience.note(describe(met), now, now - began)
                if not is_transient(met) or exhausted:
                    return self._fail(met)
                self._retry(met, patience.delay_s)
        self._progress.event("stopped", asked=True)
        return EXIT_ASKED

    def _meaning(self, raised: Exception) -> TidegateError | OSError:
        for engine in self._engines:
            if isinstance(raised, engine.errors):
                return engine.failure(raised, STREAM)
        assert isinstance(raised, TidegateError | OSError)
        return raised

    def _fail(self, error: BaseException) -> int:
        if isinstance(error, SchemaChangedError):
            transition, message = ALTERED, f"{ALTERED.message}: {describe(error)}"
        else:
            transition, message = FAILED, f"{FAILED.message}: {describe(error)}"
        self._progress.event("error", message=message, kind="fatal")
        code = error.code if isinstance(error, TidegateError) else ""
        self._record(transition, message, code=code)
        return EXIT_FATAL

    def _refused(self, error: TidegateError) -> int:
        message = (
            f"refused: {describe(error)}; tried again when the secret changes, or after a while"
        )
        self._progress.event("error", message=message, kind="refused")
        _log_notes(error)
        self._record(None, message, except_at=error.details.get("endpoint"))
        return EXIT_REFUSED

    def _retry(self, error: BaseException, delay_s: float) -> None:
        message = f"retrying: {describe(error)}"
        self._progress.event("error", message=message, kind="transient", delay_s=delay_s)
        _log_notes(error)
        self._record(None, message)
        self.stop.wait(delay_s)

    def _record(
        self,
        transition: Transition | None,
        message: str,
        except_at: object = None,
        *,
        code: str = "",
    ) -> None:
        """Write to the rows of all targets that can be reached and are still ours."""
        for target in self._spec.targets:
            if target.endpoint.to_json() == except_at:
                continue
            with (
                contextlib.suppress(*self._caught),
                engine_of(target.endpoint).connect(
                    target.endpoint, purpose="control", lock_timeout_s=10
                ) as session,
            ):
                streams.say(
                    session,
                    target.stream_id,
                    self._spec.epoch,
                    message,
                    transition=transition,
                    code=code,
                )


def main() -> int:
    """Entry of the process."""
    spec = SpanSpec.from_json(json.loads(sys.stdin.readline()))
    for engine in engines_of(spec):
        engine.mark_process(Mark.of(spec.span_id, spec.epoch))
    progress = Progress(SteadyLines(1), spec.span_id)
    waits.listen(progress.waiting)
    worker = Worker(spec, progress)

    def asked(_number: int, _frame: FrameType | None) -> None:
        worker.stop.set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    return worker.run()


if __name__ == "__main__":
    sys.exit(main())
