from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.server.supervision import (
    Action,
    ExitClass,
    Forget,
    Kill,
    Policy,
    Process,
    SpanState,
    Start,
    Terminate,
    Wish,
    classify,
    decide,
    delay_s,
    ended,
    not_started,
    started,
)

POLICY = Policy()
WISH = Wish("w.forward.0", "aaa")
WORKER = Process(100, 5000)


def running(**changes: object) -> SpanState:
    state = started(SpanState(WISH.span_id), WISH, WORKER, now=10.0)
    return replace(state, **changes)  # type: ignore[arg-type]


def one(
    wish: Wish | None, state: SpanState | None, now: float, *, stopping: bool = False
) -> Action | None:
    actions = decide(
        [wish] if wish else [],
        {state.span_id: state} if state else {},
        now,
        POLICY,
        stopping=stopping,
    )
    assert len(actions) <= 1
    return actions[0] if actions else None


def test_a_wanted_span_without_worker_is_started() -> None:
    assert one(WISH, None, 0.0) == Start(WISH)


def test_a_running_span_is_left_alone() -> None:
    assert one(WISH, running(), 10_000.0) is None


def test_a_span_no_longer_wanted_is_asked_to_stop_then_killed_once() -> None:
    assert one(None, running(), 11.0) == Terminate(WISH.span_id, WORKER)
    asked = running(stop_at=11.0)
    assert one(None, asked, 30.9) is None
    assert one(None, asked, 31.0) == Kill(WISH.span_id, WORKER)
    assert one(None, replace(asked, killed=True), 99.0) is None


def test_a_stopped_unwanted_span_is_forgotten() -> None:
    down = ended(running(stop_at=11.0), 0, 12.0, POLICY, 0.0)
    assert one(None, down, 12.0) == Forget(WISH.span_id)


def test_a_span_described_otherwise_gets_another_worker_only_after_the_first_ended() -> None:
    other = replace(WISH, digest="bbb")
    assert one(other, running(), 11.0) == Terminate(WISH.span_id, WORKER)
    asked = running(stop_at=11.0)
    assert one(other, asked, 12.0) is None
    assert one(other, ended(asked, 0, 13.0, POLICY, 0.0), 13.0) == Start(other)


def test_an_orderly_shutdown_stops_everything_and_starts_nothing() -> None:
    assert one(WISH, running(), 11.0, stopping=True) == Terminate(WISH.span_id, WORKER)
    assert one(WISH, None, 11.0, stopping=True) is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, ExitClass.DONE),
        (3, ExitClass.FATAL),
        (4, ExitClass.EPOCH_LOST),
        (5, ExitClass.REFUSED),
        (1, ExitClass.TRANSIENT),
        (-9, ExitClass.TRANSIENT),
        (None, ExitClass.TRANSIENT),
    ],
)
def test_exit_statuses_have_one_meaning(status: int | None, expected: ExitClass) -> None:
    assert classify(status) is expected


def test_a_fatal_end_is_not_restarted_until_the_span_is_started_again() -> None:
    down = ended(running(), 3, 11.0, POLICY, 0.0)
    assert down.held
    assert one(WISH, down, 1e9) is None
    again = replace(WISH, generation=1)
    assert one(again, down, 11.0) == Start(again)
    changed = replace(WISH, digest="bbb")
    assert one(changed, down, 11.0) == Start(changed)


def test_a_fatal_end_counts_even_when_the_worker_was_asked_to_stop() -> None:
    assert ended(running(stop_at=11.0), 3, 12.0, POLICY, 0.0).held


def test_a_worker_done_on_request_is_looked_at_again_slowly_and_at_once_when_started() -> None:
    down = ended(running(), 0, 11.0, POLICY, 1.0)
    assert one(WISH, down, 11.0 + POLICY.done_again_s - 0.1) is None
    assert one(WISH, down, 11.0 + POLICY.done_again_s) == Start(WISH)
    again = replace(WISH, generation=1)
    assert one(again, down, 11.0) == Start(again)


def test_transient_ends_back_off_to_a_bound_and_reset_after_a_healthy_time() -> None:
    state, now, waits = running(), 10.0, []
    for _ in range(10):
        state = ended(state, 1, now, POLICY, 1.0)
        waits.append(state.retry_at - now)
        assert one(WISH, state, state.retry_at - 0.01) is None
        now = state.retry_at
        assert one(WISH, state, now) == Start(WISH)
        state = started(state, WISH, WORKER, now)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    healthy = ended(state, 1, now + POLICY.healthy_s, POLICY, 1.0)
    assert healthy.retry_at - (now + POLICY.healthy_s) == POLICY.first_delay_s


def test_refused_credentials_are_tried_rarely_and_at_once_when_a_secret_changes() -> None:
    state, now, waits = running(), 10.0, []
    for _ in range(8):
        state = ended(state, 5, now, POLICY, 0.0)
        waits.append(state.retry_at - now)
        assert not state.held
        assert one(WISH, state, state.retry_at - 0.01) is None
        changed = replace(WISH, secrets="other")
        assert one(changed, state, now) == Start(changed)
        now = state.retry_at
        assert one(WISH, state, now) == Start(WISH)
        state = started(state, WISH, WORKER, now)
    assert waits == [15, 30, 60, 120, 240, 480, 900, 900]
    early = not_started(replace(state, process=None), WISH, now, POLICY, 1.0, refused=True)
    assert early.retry_at - now >= 900
    again = replace(WISH, generation=1)
    assert one(again, early, now) == Start(again)


def test_a_changed_secret_disturbs_no_worker_that_runs_and_frees_none_that_is_held() -> None:
    changed = replace(WISH, secrets="other")
    assert one(changed, running(), 11.0) is None
    assert one(changed, ended(running(), 3, 11.0, POLICY, 0.0), 1e6) is None
    waiting = ended(running(), 1, 11.0, POLICY, 1.0)
    assert one(changed, waiting, 11.1) is None


def test_a_start_that_fails_before_there_is_a_process_backs_off_too() -> None:
    state = not_started(SpanState(WISH.span_id), WISH, 5.0, POLICY, 1.0)
    assert one(WISH, state, 5.4) is None
    assert one(WISH, state, 5.5) == Start(WISH)
    assert one(replace(WISH, generation=1), state, 5.0) == Start(replace(WISH, generation=1))


def test_starting_a_span_again_forgets_its_failures() -> None:
    state = running()
    for _ in range(5):
        state = started(ended(state, 1, 20.0, POLICY, 0.0), WISH, WORKER, 20.0)
    assert state.failures == 5
    down = ended(state, 1, 21.0, POLICY, 0.0)
    assert started(down, replace(WISH, generation=1), WORKER, 22.0).failures == 0


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_every_delay_is_bounded(failures: int, jitter: float) -> None:
    delay = delay_s(failures, POLICY, jitter)
    assert POLICY.first_delay_s / 2 <= delay <= POLICY.longest_delay_s


class Supervision(RuleBasedStateMachine):
    """Any order of wishes, ends, failures and time: one worker a span, and none unwanted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wishes: dict[str, Wish] = {}
        self.states: dict[str, SpanState] = {}
        self.alive: dict[str, Process] = {}
        self.pids = 1

    spans = st.sampled_from(["a", "b", "c"])

    @rule(span=spans, digest=st.sampled_from("xy"), generation=st.integers(0, 3))
    def wish(self, span: str, digest: str, generation: int) -> None:
        self.wishes[span] = Wish(span, digest, generation)

    @rule(span=spans)
    def unwish(self, span: str) -> None:
        self.wishes.pop(span, None)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, 3, 4, -9, None]))
    def worker_ends(self, data: st.DataObject, status: int | None) -> None:
        span = data.draw(st.sampled_from(sorted(self.alive)))
        del self.alive[span]
        self.states[span] = ended(self.states[span], status, self.now, POLICY, 0.5)

    @rule(fails=st.booleans(), stopping=st.booleans())
    def tick(self, fails: bool, stopping: bool) -> None:
        actions = decide(self.wishes.values(), self.states, self.now, POLICY, stopping=stopping)
        for action in actions:
            match action:
                case Start(wish):
                    assert not stopping
                    assert wish.span_id not in self.alive, "two workers for one span"
                    before = self.states.get(wish.span_id, SpanState(wish.span_id))
                    if fails:
                        after = not_started(before, wish, self.now, POLICY, 0.5)
                    else:
                        self.pids += 1
                        self.alive[wish.span_id] = Process(self.pids, 1)
                        after = started(before, wish, self.alive[wish.span_id], self.now)
                    self.states[wish.span_id] = after
                case Terminate(span_id):
                    self.states[span_id] = replace(self.states[span_id], stop_at=self.now)
                case Kill(span_id):
                    del self.alive[span_id]
                    self.states[span_id] = ended(self.states[span_id], -9, self.now, POLICY, 0.5)
                case Forget(span_id):
                    assert span_id not in self.alive
                    del self.states[span_id]

    @invariant()
    def states_and_processes_agree(self) -> None:
        running = {s.span_id: s.process for s in self.states.values() if s.process}
        assert running == self.alive

    def teardown(self) -> None:
        """Left alone for long enough, exactly the wanted spans that are not held run."""
        for _ in range(5):
            self.now += POLICY.longest_delay_s + POLICY.stop_timeout_s
            self.tick(fails=False, stopping=False)
        held = {s.span_id for s in self.states.values() if s.held}
        assert set(self.alive) == set(self.wishes) - held


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_node_that_is_not_owner_stops_no_worker_and_starts_none() -> None:
    """Situation 47: a lost owner lease alone stops nothing; the epoch ends who is taken over."""
    wishes = [Wish("runs", "d"), Wish("down", "d"), Wish("new", "d")]
    states = {
        "runs": SpanState("runs", process=Process(1, 1), digest="d"),
        "down": SpanState("down", digest="d", ended=ExitClass.EPOCH_LOST),
    }
    assert decide(wishes, states, 0.0, Policy(), may_start=False) == (Forget("down"),)
    taken = {"runs": replace(states["runs"], process=None, ended=ExitClass.EPOCH_LOST)}
    assert decide(wishes, taken, 0.0, Policy(), may_start=False) == (Forget("runs"),)


def test_a_node_that_is_not_owner_still_stops_what_nobody_wants() -> None:
    """Situation 47, relative: a workflow that was completed meanwhile needs no worker anywhere."""
    states = {"gone": SpanState("gone", process=Process(1, 1), digest="d")}
    assert decide([], states, 0.0, Policy(), may_start=False) == (Terminate("gone", Process(1, 1)),)
