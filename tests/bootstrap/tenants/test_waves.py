"""Waves and the gate between them; every decision, from values alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.bootstrap.tenants import waves
from tidegate.bootstrap.tenants.model import Item, ItemState, Wish
from tidegate.bootstrap.tenants.waves import Share, View, WaveSpec, decide, parse_waves, plan_waves
from tidegate.errors import InvalidArgumentError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
names = st.lists(st.text("abcxyz", min_size=1, max_size=5), unique=True, max_size=60)
shares = st.one_of(
    st.none(),
    st.builds(Share, count=st.integers(1, 100)),
    st.builds(Share, percent=st.floats(0.1, 100)),
)


@pytest.mark.parametrize(
    ("wave", "then", "spec"),
    [
        (None, None, WaveSpec()),
        ("canary:5", None, WaveSpec(Share(count=5))),
        ("5", "50", WaveSpec(Share(count=5), Share(count=50))),
        ("canary:10%", "25%", WaveSpec(Share(percent=10), Share(percent=25))),
        ("canary:acme, globex,acme", "all", WaveSpec(Share(names=("acme", "globex")))),
        ("canary:all", None, WaveSpec()),
    ],
)
def test_waves_are_written_so(wave: str | None, then: str | None, spec: WaveSpec) -> None:
    assert parse_waves(wave, then) == spec


@pytest.mark.parametrize(
    "wave", ["", "0", "-1", "canary:0", "canary:", "101%", "0%", "acme", "1.5"]
)
def test_what_is_no_wave_is_refused(wave: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_waves(wave, None)


@pytest.mark.parametrize("then", ["acme", "canary:5", "", "0%", "200%"])
def test_what_is_no_size_is_refused(then: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_waves(None, then)


@given(names, shares, shares)
def test_each_tenant_is_in_exactly_one_wave_in_order(
    tenants: list[str], first: Share | None, then: Share | None
) -> None:
    cut = plan_waves(tenants, WaveSpec(first, then))
    assert [name for wave in cut for name in wave] == tenants
    assert all(cut)
    if first is not None and tenants:
        assert len(cut[0]) == first.of(len(tenants))
    if then is not None:
        rest = cut[1:] if first is not None else cut
        assert all(len(wave) == then.of(len(tenants)) for wave in rest[:-1])


@given(names, st.data())
def test_named_canaries_are_the_first_wave(tenants: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(tenants), unique=True)) if tenants else []
    cut = plan_waves(tenants, WaveSpec(Share(names=tuple(chosen)) if chosen else None))
    assert sorted(name for wave in cut for name in wave) == sorted(tenants)
    if chosen:
        assert cut[0] == tuple(chosen)
    with pytest.raises(InvalidArgumentError, match="not among"):
        plan_waves([*tenants, "x!"], WaveSpec(Share(names=("stranger!",))))


def item(number: int, state: ItemState = ItemState.PENDING, **more: object) -> Item:
    return replace(Item(f"id{number}", f"t{number}", 0, number, state), **more)  # type: ignore[arg-type]


def view(*items: Item, **more: object) -> View:
    plain = View(
        wave=0,
        waves=2,
        items=items,
        failed_before=0,
        opens_at=None,
        max_failures=3,
        forgiven=0,
        pause=timedelta(minutes=10),
        wish=Wish.NONE,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


RUNNING, DONE, FAILED = ItemState.RUNNING, ItemState.DONE, ItemState.FAILED


def test_a_wave_is_a_gate() -> None:
    assert decide(view(item(1, DONE), item(2, RUNNING)), NOW, 4) == waves.Wait(None)
    over = view(item(1, DONE), item(2, FAILED))
    assert decide(over, NOW, 4) == waves.OpenWave(1, NOW + timedelta(minutes=10))
    assert decide(replace(over, wave=1), NOW, 4) == waves.Finish(1)
    waiting = view(item(1), opens_at=NOW + timedelta(seconds=1))
    assert decide(waiting, NOW, 4) == waves.Wait(NOW + timedelta(seconds=1))
    assert decide(waiting, NOW + timedelta(seconds=1), 4) == waves.Start(("id1",))


def test_failures_stop_a_wave_once_nobody_is_at_work() -> None:
    failed = [item(n, FAILED) for n in range(3)]
    assert decide(view(*failed, item(4, RUNNING), item(5)), NOW, 4) == waves.Wait(None)
    stop = decide(view(*failed, item(4, DONE), item(5)), NOW, 4)
    assert stop == waves.Stop("3 tenants failed in wave 1")
    forgiven = view(*failed, item(4, DONE), item(5), forgiven=3)
    assert decide(forgiven, NOW, 4) == waves.Start(("id5",))


def test_a_canary_of_which_none_was_upgraded_opens_no_gate() -> None:
    stop = decide(view(item(1, FAILED)), NOW, 4)
    assert stop == waves.Stop("1 tenant failed in wave 1, and none could be upgraded")
    assert isinstance(decide(view(item(1, FAILED), forgiven=1), NOW, 4), waves.OpenWave)


def test_those_that_were_not_tried_yet_come_first_and_times_are_kept() -> None:
    later = item(1, attempts=2, next_at=NOW + timedelta(seconds=5))
    tried = item(2, attempts=1, next_at=NOW)
    fresh = item(3)
    assert decide(view(later, tried, fresh), NOW, 2) == waves.Start(("id3", "id2"))
    assert decide(view(later), NOW, 2) == waves.Wait(NOW + timedelta(seconds=5))
    assert decide(view(fresh), NOW, 0) == waves.Wait(None)


def test_a_wish_is_obeyed_when_nobody_is_at_work() -> None:
    assert decide(view(item(1, RUNNING), wish=Wish.PAUSE), NOW, 4) == waves.Wait(None)
    assert decide(view(item(1), wish=Wish.CANCEL), NOW, 4) == waves.Obey(Wish.CANCEL)
    assert decide(view(item(1, DONE), wish=Wish.PAUSE), NOW, 4) == waves.Obey(Wish.PAUSE)


class GateMachine(RuleBasedStateMachine):
    """A run whose tenants end in any way, as the loop would drive it."""

    def __init__(self) -> None:
        super().__init__()
        self.waves: list[list[Item]] = [
            [item(wave * 10 + n) for n in range(3)] for wave in range(3)
        ]
        self.wave, self.now, self.opens_at = 0, NOW, NOW
        self.end: waves.Decision | None = None
        self.touched: set[int] = set()

    def put(self, before: Item, after: Item) -> None:
        place = self.waves[self.wave].index(before)
        self.waves[self.wave][place] = after

    @precondition(lambda self: self.end is None)
    @rule(free=st.integers(0, 4))
    def turn(self, free: int) -> None:
        now_view = view(
            *self.waves[self.wave],
            wave=self.wave,
            waves=3,
            max_failures=2,
            opens_at=self.opens_at,
            pause=timedelta(seconds=1),
        )
        match decide(now_view, self.now, free):
            case waves.Start(ids):
                assert 0 < len(ids) <= free
                self.touched.add(self.wave)
                for each in [i for i in self.waves[self.wave] if i.tenant_id in ids]:
                    assert each.state is ItemState.PENDING
                    self.put(each, replace(each, state=RUNNING))
            case waves.OpenWave(wave, opens_at):
                assert wave == self.wave + 1
                self.wave, self.opens_at = wave, opens_at
            case waves.Stop() | waves.Finish() as end:
                self.end = end
            case _:
                self.now += timedelta(seconds=1)

    @rule()
    def time_passes(self) -> None:
        self.now += timedelta(milliseconds=300)

    @precondition(lambda self: self.end is None)
    @rule(state=st.sampled_from([DONE, FAILED, ItemState.SKIPPED, ItemState.PENDING]))
    def one_ends(self, state: ItemState) -> None:
        at_work = [i for i in self.waves[self.wave] if i.state is RUNNING]
        if at_work:
            self.put(at_work[0], replace(at_work[0], state=state))

    @invariant()
    def no_later_wave_is_touched_before_the_gate(self) -> None:
        for number, wave in enumerate(self.waves):
            if number > self.wave:
                assert all(i.state is ItemState.PENDING for i in wave)
            if number < self.wave:
                assert all(i.state.is_over for i in wave)

    @invariant()
    def it_stops_or_finishes_only_with_reason(self) -> None:
        failed = sum(i.state is FAILED for i in self.waves[self.wave])
        if isinstance(self.end, waves.Stop):
            assert failed >= 1
            assert not any(i.state is RUNNING for i in self.waves[self.wave])
        if isinstance(self.end, waves.Finish):
            assert all(i.state.is_over for wave in self.waves for i in wave)
            assert failed < 2


TestGate = GateMachine.TestCase
