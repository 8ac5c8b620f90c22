"""Which worker processes to start, stop and kill: decided from values alone.

Decides, for every span, what to do next given the spans that are wanted, what is known of their
processes, and the time. It must not look at a process, a file or a clock: the shell around it
(:mod:`tidegate.server.supervisor`) observes, asks here, persists and acts.

The rules:

* one process per span, ever: a new one is started only when the last one is known to have ended;
* a worker that ended on request (0) is not started again until the span is started again, except
  for a slow look in case only its rows were changed;
* a worker that met something nobody but a person can mend (3) stays down until the span is started
  again or described otherwise;
* a worker whose credentials were refused (5) is tried again after a delay that grows to many
  minutes, because wrong passwords may lock an account; at once when a secret has changed;
* a worker that lost its epoch (4) or ended in any other way comes back after a delay that doubles
  up to a bound, spread at random, and falls back after it has been healthy for a while;
* while no worker may be started here, since another node owns the work or nobody knows who does,
  those that run go on: their epoch ends them when somebody takes their span over;
* a span that is no longer wanted, or is described otherwise than what runs, is asked to stop, and
  killed when it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from tidegate.backoff import Backoff
from tidegate.topology import refusals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXIT_DONE = 0
EXIT_FATAL = 3
EXIT_EPOCH_LOST = 4
EXIT_REFUSED = 5


class ExitClass(StrEnum):
    """What the end of a worker means."""

    DONE = "done"
    FATAL = "fatal"
    EPOCH_LOST = "epoch_lost"
    REFUSED = "refused"
    TRANSIENT = "transient"


def classify(status: int | None) -> ExitClass:
    """The class of an exit status; None when nobody could see it (the worker was adopted)."""
    if status is None:
        return ExitClass.TRANSIENT
    known = {
        EXIT_DONE: ExitClass.DONE,
        EXIT_FATAL: ExitClass.FATAL,
        EXIT_EPOCH_LOST: ExitClass.EPOCH_LOST,
        EXIT_REFUSED: ExitClass.REFUSED,
    }
    return known.get(status, ExitClass.TRANSIENT)


@dataclass(frozen=True)
class Policy:
    """Delays in seconds.

    Attributes:
        first_delay_s: after the first failure; each further one doubles it.
        longest_delay_s: no delay is longer.
        healthy_s: a worker that ran so long starts from the first delay again.
        stop_timeout_s: between the request to stop and SIGKILL.
        done_again_s: between two looks at a span that ended on request but is still wanted.
        refused_delay_s: after credentials were refused; each further refusal doubles it, up to
            :data:`tidegate.topology.refusals.LONGEST_DELAY_S`.
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    healthy_s: float = 60.0
    stop_timeout_s: float = 20.0
    done_again_s: float = 15.0
    refused_delay_s: float = refusals.FIRST_DELAY_S


@dataclass(frozen=True)
class Process:
    """One worker process; the start time tells it from a later one with the same number."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Wish:
    """A span that should run.

    Attributes:
        digest: stands for everything the worker was told but the epoch; another digest needs
            another worker.
        generation: rises when a person or a plan starts the span (again).
        secrets: changes with the content of the secrets; unlike ``digest`` it needs no other
            worker, because open sessions stay open.
    """

    span_id: str
    digest: str
    generation: int = 0
    secrets: str = ""


@dataclass(frozen=True)
class SpanState:
    """What is known of a span's worker.

    Attributes:
        process: the worker that runs, as far as is known.
        digest: of the wish it was last started for.
        generation: likewise.
        secrets: likewise.
        started_at: when, in the clock of :func:`decide`.
        failures: in a row, without a healthy time between them.
        retry_at: no start before this.
        ended: how the last worker ended; None while it has not, or never ran.
        stop_at: when it was asked to stop.
        killed: it was sent SIGKILL.
    """

    span_id: str
    process: Process | None = None
    digest: str = ""
    generation: int = 0
    secrets: str = ""
    started_at: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    ended: ExitClass | None = None
    stop_at: float | None = None
    killed: bool = False

    @property
    def held(self) -> bool:
        """Down until somebody starts the span again."""
        return self.process is None and self.ended is ExitClass.FATAL


@dataclass(frozen=True)
class Start:
    """Take the span over and start a worker."""

    wish: Wish


@dataclass(frozen=True)
class Terminate:
    """Ask a worker to stop."""

    span_id: str
    process: Process


@dataclass(frozen=True)
class Kill:
    """SIGKILL a worker that did not stop in time."""

    span_id: str
    process: Process


@dataclass(frozen=True)
class Forget:
    """Nothing of the span is left to watch: remove its files."""

    span_id: str


type Action = Start | Terminate | Kill | Forget


def delay_s(failures: int, policy: Policy, jitter: float) -> float:
    """How long to wait after so many failures in a row.

    Args:
        failures: one or more.
        policy: the bounds.
        jitter: 0 to 1, from whoever has randomness; half of the delay is spread by it.
    """
    rule = Backoff(policy.first_delay_s, policy.longest_delay_s, spread=(0.5, 1.0))
    return rule.pause_s(failures, jitter)


def started(state: SpanState, wish: Wish, process: Process, now: float) -> SpanState:
    """The state after a worker was started for a wish."""
    assert state.process is None, f"{state.span_id} has a worker already"
    return replace(
        state,
        process=process,
        digest=wish.digest,
        generation=wish.generation,
        secrets=wish.secrets,
        started_at=now,
        failures=state.failures if state.generation == wish.generation else 0,
        ended=None,
        stop_at=None,
        killed=False,
    )


def ended(
    state: SpanState, status: int | None, now: float, policy: Policy, jitter: float
) -> SpanState:
    """The state after the worker was found to have ended."""
    assert state.process is not None, f"{state.span_id} has no worker"
    was_asked = state.stop_at is not None
    down = replace(state, process=None, stop_at=None, killed=False)
    kind = classify(status)
    if was_asked and kind is not ExitClass.FATAL:
        return replace(down, ended=ExitClass.DONE, failures=0, retry_at=now)
    if kind is ExitClass.DONE:
        return replace(down, ended=kind, failures=0, retry_at=now + policy.done_again_s)
    if kind is ExitClass.FATAL:
        return replace(down, ended=kind, failures=0, retry_at=now)
    return _failed(down, kind, now, policy, jitter)


def not_started(
    state: SpanState,
    wish: Wish,
    now: float,
    policy: Policy,
    jitter: float,
    *,
    refused: bool = False,
) -> SpanState:
    """The state after a start failed before there was a process: a server was unreachable, say.

    ``refused``: a server answered, and did not accept our credentials.
    """
    assert state.process is None, f"{state.span_id} has a worker already"
    tried = replace(
        state,
        digest=wish.digest,
        generation=wish.generation,
        secrets=wish.secrets,
        started_at=now,
        failures=state.failures if state.generation == wish.generation else 0,
    )
    kind = ExitClass.REFUSED if refused else ExitClass.TRANSIENT
    return _failed(tried, kind, now, policy, jitter)


def _failed(
    state: SpanState, kind: ExitClass, now: float, policy: Policy, jitter: float
) -> SpanState:
    healthy = now - state.started_at >= policy.healthy_s
    failures = 1 if healthy else state.failures + 1
    delay = delay_s(failures, policy, jitter)
    if kind is ExitClass.REFUSED:
        # not spread to the early side: a bound on wrong passwords in a time must hold
        delay = refusals.delay_s(failures, policy.refused_delay_s) * (1 + 0.1 * jitter)
    return replace(state, ended=kind, failures=failures, retry_at=now + delay)


def is_calm(states: Iterable[SpanState], until: float) -> bool:
    """Whether nothing is to be done before a moment unless something happens.

    A worker whose credentials were refused may be started at once, when a secret changes.
    """
    return all(
        state.stop_at is None
        if state.process is not None
        else state.ended is not ExitClass.REFUSED and (state.held or state.retry_at > until)
        for state in states
    )


def decide(
    wishes: Iterable[Wish],
    states: Mapping[str, SpanState],
    now: float,
    policy: Policy,
    *,
    stopping: bool = False,
    may_start: bool = True,
) -> tuple[Action, ...]:
    """Everything to do now, in a fixed order.

    Args:
        wishes: the spans that should run; each id once.
        states: what is known, by span id; processes in it were seen alive just now.
        now: seconds in a clock that does not jump.
        policy: the delays.
        stopping: the node is going down in an orderly way: nothing is wanted any more.
        may_start: this node owns the work.
    """
    wanted = {} if stopping else {wish.span_id: wish for wish in wishes}
    actions: list[Action] = []
    for span_id in sorted({*wanted, *states}):
        state = states.get(span_id) or SpanState(span_id)
        wish = wanted.get(span_id)
        if not may_start and state.process is None:
            wish = None
        action = _decide_one(wish, state, now, policy)
        if action is not None and (span_id in states or not isinstance(action, Forget)):
            actions.append(action)
    return tuple(actions)


def _decide_one(wish: Wish | None, state: SpanState, now: float, policy: Policy) -> Action | None:
    if state.process is not None:
        return _decide_running(wish, state, state.process, now, policy)
    if wish is None:
        return Forget(state.span_id)
    if state.generation != wish.generation or state.digest != wish.digest:
        return Start(wish)
    if state.ended is ExitClass.REFUSED and state.secrets != wish.secrets:
        return Start(wish)
    if state.held or now < state.retry_at:
        return None
    return Start(wish)


def _decide_running(
    wish: Wish | None, state: SpanState, process: Process, now: float, policy: Policy
) -> Action | None:
    if state.stop_at is not None:
        late = now - state.stop_at >= policy.stop_timeout_s
        return Kill(state.span_id, process) if late and not state.killed else None
    if wish is not None and wish.digest == state.digest:
        return None
    return Terminate(state.span_id, process)
