"""Keeps one worker process running for every span that is wanted: the shell around the decisions.

Observes processes, asks :mod:`tidegate.server.supervision`, acts. It must not decide anything
itself, and it must not know what a span does: taking over the stream rows with a new epoch, without
which no worker is started, is handed in as ``prepare``.

Workers survive the node: after a SIGKILL of the node the next one finds them by their records and
adopts them. Starting is slow when a database is unreachable, so starts happen in a few threads; all
state is touched by the loop's thread alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from tidegate.dataplane.waking import Waking
from tidegate.errors import is_refusal
from tidegate.server import processes
from tidegate.server.processes import Record, SpanFiles
from tidegate.server.supervision import (
    ExitClass,
    Forget,
    Kill,
    Policy,
    SpanState,
    Start,
    Terminate,
    Wish,
    decide,
    ended,
    is_calm,
    not_started,
    started,
)
from tidegate.topology.refusals import SecretDigest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tidegate.dataplane.model import SpanSpec
    from tidegate.topology.connections import Endpoint

TICK_S = 0.25
CALM_S = 1.0
"""Between two looks while every worker does what is wanted; whatever changes ends the wait."""
START_THREADS = 4
STARTS_END_S = 60.0
"""How long an orderly stop waits for starts under way before it stops their workers too."""

WORKER_COMMAND = (sys.executable, "-m", "tidegate.dataplane.worker")

log = structlog.get_logger("tidegate.supervisor")


@dataclass(frozen=True)
class DesiredSpan:
    """A span that should run, and how often it has been started by somebody."""

    spec: SpanSpec
    generation: int = 0
    least_epoch: int = 0
    """A worker of a lower epoch, from before a recovery of the cluster, is replaced."""

    @cached_property
    def wish(self) -> Wish:
        """What decisions need to know of it; the epoch is given at each start."""
        told = {**self.spec.to_json(), "epoch": self.least_epoch}
        text = json.dumps(told, sort_keys=True).encode()
        return Wish(self.spec.span_id, hashlib.sha256(text).hexdigest()[:16], self.generation)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every database its worker connects to."""
        return [self.spec.source, *(target.endpoint for target in self.spec.targets)]


@dataclass
class _Worker:
    """The shell's side of a span: what is not a value."""

    files: SpanFiles
    child: subprocess.Popen[bytes] | None = None  # None: adopted, or not running
    record: Record | None = None
    starting: Future[tuple[subprocess.Popen[bytes], Record]] | None = None
    wish: Wish | None = None
    error: str = ""


class Supervisor:
    """Call :meth:`start` once, :meth:`stop` any number of times."""

    def __init__(
        self,
        folder: Path,
        *,
        desired: Callable[[], Iterable[DesiredSpan]],
        prepare: Callable[[SpanSpec], SpanSpec],
        may_start: Callable[[], bool] = lambda: True,
        command: Sequence[str] = WORKER_COMMAND,
        policy: Policy | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing happens yet.

        Args:
            folder: for records, events and logs of workers; made when absent.
            desired: the spans that should run now; called on every tick.
            prepare: takes a span's stream rows over under a higher epoch, ends whoever still
                works on them, and returns the span with that epoch. May raise; then it is tried
                again later.
            may_start: whether this node owns the work; while it does not, what runs goes on.
            command: the worker program; reads one span as a JSON line.
            policy: delays.
            rng: spreads the delays.
            clock: seconds that do not jump.
        """
        self._folder = folder
        self._desired = desired
        self._prepare = prepare
        self._may_start = may_start
        self._command = tuple(command)
        self._policy = policy or Policy()
        self._rng = rng or random.Random()  # noqa: S311 - spreads restarts, guards nothing
        self._clock = clock
        self._secrets = SecretDigest()
        self._states: dict[str, SpanState] = {}
        self._workers: dict[str, _Worker] = {}
        self._starters = ThreadPoolExecutor(START_THREADS, thread_name_prefix="start-worker")
        self._wake = Waking()
        self._is_calm = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ends = 0

    def start(self) -> None:
        """Adopt what still runs and begin to supervise."""
        assert self._thread is None, "a supervisor starts once"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at once: something wanted has changed."""
        self._wake.set()

    @property
    def is_watching(self) -> bool:
        """Whether there is a worker here, or one that is to come back."""
        return bool(self._states)

    def stop(self) -> None:
        """Ask every worker to stop, kill those that do not, and end; bounded."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STARTS_END_S + self._policy.stop_timeout_s + 10)
        self._starters.shutdown(wait=False, cancel_futures=True)

    def status(self) -> list[dict[str, Any]]:
        """What is known of every span, as plain values."""
        with self._lock:
            known = [(state, self._workers[span_id]) for span_id, state in self._states.items()]
        now = self._clock()
        return [
            {
                "span": state.span_id,
                "pid": state.process.pid if state.process else None,
                "epoch": worker.record.epoch if worker.record else None,
                "adopted": state.process is not None and worker.child is None,
                "failures": _failures(state, now, self._policy),
                "held": state.held,
                "last_end": state.ended,
                "retry_in_s": round(max(0.0, state.retry_at - now), 1)
                if state.process is None
                else None,
                "error": worker.error or (_last_words(worker, state)),
                "last_event": worker.files.last_event(),
            }
            for state, worker in sorted(known, key=lambda pair: pair[0].span_id)
        ]

    def _adopt(self) -> None:
        for record in processes.read_records(self._folder):
            log.info("worker adopted", span=record.span_id, pid=record.pid)
            self._workers[record.span_id] = _Worker(
                SpanFiles(self._folder, record.span_id), record=record
            )
            self._states[record.span_id] = SpanState(
                record.span_id,
                process=record.process,
                digest=record.digest,
                generation=record.generation,
                started_at=self._clock(),
            )

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tick(list(self._desired()))
            except Exception:
                # The wishes could not be read; whatever runs goes on, and the next look may work.
                log.exception("supervisor tick failed")
            self._rest()
        self._stop_all()

    def _rest(self) -> None:
        """Until something may have to be done; the end of a worker is noticed at once."""
        running = [s.process for s in self._states.values() if s.process is not None]
        pause_s = CALM_S if self._is_calm else TICK_S
        processes.wait_for_end(running, self._wake.fileno(), pause_s)
        self._wake.clear()

    def _stop_all(self) -> None:
        starting = [w.starting for w in self._workers.values() if w.starting is not None]
        wait(starting, timeout=STARTS_END_S)
        deadline = self._clock() + self._policy.stop_timeout_s + 5
        while self._clock() < deadline:
            self._tick([], stopping=True)
            if not self._states:
                return
            time.sleep(0.02)

    def _tick(self, wanted: list[DesiredSpan], *, stopping: bool = False) -> None:
        with self._lock:
            self._observe()
            spans = {span.spec.span_id: span for span in wanted}
            wishes = {span_id: self._wish(span) for span_id, span in spans.items()}
            busy = {span_id for span_id, worker in self._workers.items() if worker.starting}
            actions = decide(
                [wish for span_id, wish in wishes.items() if span_id not in busy],
                {span_id: s for span_id, s in self._states.items() if span_id not in busy},
                self._clock(),
                self._policy,
                stopping=stopping,
                may_start=self._may_start(),
            )
            self._is_calm = not (actions or busy) and is_calm(
                self._states.values(), self._clock() + CALM_S
            )
            for action in actions:
                match action:
                    case Start(wish):
                        self._begin_start(spans[wish.span_id], wish)
                    case Terminate(span_id, process):
                        log.info("stopping worker", span=span_id, pid=process.pid)
                        processes.send_signal(process, signal.SIGTERM)
                        state = self._states[span_id]
                        self._states[span_id] = replace(state, stop_at=self._clock())
                    case Kill(span_id, process):
                        log.warning("killing worker", span=span_id, pid=process.pid)
                        processes.send_signal(process, signal.SIGKILL)
                        self._states[span_id] = replace(self._states[span_id], killed=True)
                    case Forget(span_id):
                        self._workers.pop(span_id).files.remove()
                        del self._states[span_id]

    def _wish(self, span: DesiredSpan) -> Wish:
        """Secrets are read for spans without a worker only: one that runs needs none of them."""
        state = self._states.get(span.spec.span_id)
        if state is not None and state.process is not None:
            return span.wish
        return replace(span.wish, secrets=self._secrets.of(span.endpoints))

    def _observe(self) -> None:
        for span_id, worker in self._workers.items():
            if worker.starting is not None:
                self._observe_start(span_id, worker, worker.starting)
            state = self._states[span_id]
            if state.process is None:
                continue
            worker.files.bound_sizes()
            status = worker.child.poll() if worker.child else None
            if status is None and processes.is_alive(state.process):
                continue
            if worker.child is not None and status is None:
                continue  # a zombie not yet reaped; the next look has its status
            self._states[span_id] = ended(
                state, status, self._clock(), self._policy, self._rng.random()
            )
            self.ends += 1
            worker.child = None
            worker.files.record.unlink(missing_ok=True)
            log.info(
                "worker ended",
                span=span_id,
                status=status,
                meaning=self._states[span_id].ended,
                last_event=worker.files.last_event(),
            )

    def _begin_start(self, span: DesiredSpan, wish: Wish) -> None:
        state = self._states.setdefault(wish.span_id, SpanState(wish.span_id))
        worker = self._workers.setdefault(
            wish.span_id, _Worker(SpanFiles(self._folder, wish.span_id))
        )
        worker.wish = wish
        first = state.failures == 0
        worker.starting = self._starters.submit(self._start_one, worker.files, span, wish, first)
        worker.starting.add_done_callback(lambda _: self._wake.set())

    def _start_one(
        self, files: SpanFiles, span: DesiredSpan, wish: Wish, first: bool
    ) -> tuple[subprocess.Popen[bytes], Record]:
        spec = self._prepare(span.spec)
        return processes.start_worker(
            files,
            self._command,
            spec.to_json(),
            digest=wish.digest,
            generation=wish.generation,
            with_crash_point=first,
        )

    def _observe_start(
        self,
        span_id: str,
        worker: _Worker,
        starting: Future[tuple[subprocess.Popen[bytes], Record]],
    ) -> None:
        if not starting.done():
            return
        state, wish = self._states[span_id], worker.wish
        assert wish is not None
        worker.starting = None
        now = self._clock()
        try:
            child, record = starting.result()
        except Exception as error:  # noqa: BLE001 - a server may be gone in any way; try again
            worker.error = str(error)
            log.warning("worker not started", span=span_id, error=worker.error)
            self._states[span_id] = not_started(
                state,
                wish,
                now,
                self._policy,
                self._rng.random(),
                refused=is_refusal(error),
            )
            return
        worker.error, worker.child, worker.record = "", child, record
        self._states[span_id] = started(state, wish, record.process, now)
        log.info("worker started", span=span_id, pid=record.pid, epoch=record.epoch)


def _failures(state: SpanState, now: float, policy: Policy) -> int:
    """Failures in a row that still mean something: none once the worker has been healthy."""
    healthy = state.process is not None and now - state.started_at >= policy.healthy_s
    return 0 if healthy else state.failures


def _last_words(worker: _Worker, state: SpanState) -> str:
    """Why a worker that is down went down."""
    if state.ended is ExitClass.REFUSED:
        return str(worker.files.last_event().get("message", ""))
    return worker.files.last_words() if state.process is None and state.failures else ""
