"""The pure decisions of an upgrade: versions, routes, planning, run rule, steps, retries."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.make_upgrade import NOW, chain, row, step
from tidegate.bootstrap import retry, route
from tidegate.bootstrap.claims import DOUBLINGS_MAX, LOCKED, Patience, choose
from tidegate.bootstrap.finalise import AlreadyFinalised, MayFinalise, MayNot, may_finalise
from tidegate.bootstrap.model import (
    Batch,
    Leg,
    Member,
    Options,
    StepState,
    TenantState,
    UpgradeState,
    Version,
)
from tidegate.bootstrap.planning import Found, Nothing, Plan, Refuse, Supersede, decide
from tidegate.bootstrap.progress import Progress
from tidegate.bootstrap.run_rules import legs_for, should_run
from tidegate.bootstrap.stepping import (
    Completed,
    MarkReady,
    MarkUpgradeReady,
    RunCluster,
    Sweep,
    Wait,
    next_action,
)
from tidegate.bootstrap.versions import PART_MAX, Number, compare, parse
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ConflictError,
    InvalidArgumentError,
    LeaseLostError,
    OutcomeUnknownError,
    UpgradeRefusedError,
)

parts = st.integers(0, PART_MAX)
numbers = st.builds(Number, parts, parts, parts)
small = st.builds(Number, st.integers(0, 2), st.integers(0, 3), st.integers(0, 2))
CREATED, READY = UpgradeState.CREATED, UpgradeState.READY


@given(numbers, numbers)
def test_versions_are_compared_as_numbers_here_and_in_the_database(a: Number, b: Number) -> None:
    assert parse(str(a)) == a
    assert compare(str(a), str(b)) == (a > b) - (a < b)
    assert (a.key < b.key) == (a < b)
    assert 0 <= a.key < 2**60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "1.2.x",
        "01.2.3",
        "-1.2.3",
        "1.2.3 ",
        "1.2.3\n",
        "1.2.1000000",
        "v1.2.3",
        "1..3",
        "\u0661.2.3",
        "1.2.3-rc1",
    ],
)
def test_a_malformed_version_is_an_error_with_a_next_step(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a version") as caught:
        parse(text)
    assert caught.value.next_step
    with pytest.raises(InvalidArgumentError):
        Version(text, "1.0.0")


def test_a_version_cannot_upgrade_from_a_newer_one() -> None:
    with pytest.raises(InvalidArgumentError, match="which is newer"):
        Version("1.0.0", "1.0.1")
    with pytest.raises(InvalidArgumentError, match="offset -1"):
        Version("1.0.0", "1.0.0", offset=-1)


@st.composite
def handle_lists(draw: st.DrawFn) -> list[Version]:
    found = sorted(draw(st.sets(small, min_size=1, max_size=6)))
    return [Version(str(n), str(min(n, draw(small))), offset=draw(parts)) for n in found]


@given(handle_lists(), small)
def test_a_route_is_connected_and_ends_at_the_final_version(
    handles: list[Version], source: Number
) -> None:
    route.check_handles(handles)
    oldest = parse(route.oldest_source(handles))
    if source < oldest or source > handles[-1].number:
        with pytest.raises(UpgradeRefusedError) as caught:
            route.plan_route(str(source), handles)
        assert caught.value.next_step
        assert str(oldest) in caught.value.message or source > handles[-1].number
        return
    legs = route.plan_route(str(source), handles)
    assert legs[0].source == str(source)
    assert legs[-1].target == handles[-1].version
    known = {handle.version: handle for handle in handles}
    for leg in legs:
        assert parse(known[leg.target].min_source) <= parse(leg.source)
        assert parse(leg.source) < parse(leg.target) or leg.is_rerun
    assert all(a.target == b.source for a, b in itertools.pairwise(legs))


@given(handle_lists())
def test_there_is_a_way_from_the_oldest_source_and_none_from_before(handles: list[Version]) -> None:
    oldest = parse(route.oldest_source(handles))
    assert route.plan_route(str(oldest), handles)
    for patch in range(oldest.patch):
        with pytest.raises(UpgradeRefusedError, match=str(oldest)):
            route.plan_route(str(oldest._replace(patch=patch)), handles)


def test_the_order_of_handles_is_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="no version handles"):
        route.check_handles([])
    one, two = chain("1.0.0", "1.1.0", "1.2.0")
    for wrong in ([two, one], [one, one]):
        with pytest.raises(InvalidArgumentError, match="which is not older"):
            route.check_handles(wrong)


def test_a_chain_that_stops_early_is_refused_and_one_jump_leaves_out_what_is_between() -> None:
    handles = [Version("1.1.0", "1.0.0"), Version("2.0.0", "1.2.0")]
    with pytest.raises(UpgradeRefusedError, match=r"from version 1\.0\.0 to 2\.0\.0.* is 1\.2\.0"):
        route.plan_route("1.0.0", handles)
    jump = [*chain("1.0.0", "1.1.0", "1.2.0"), Version("2.0.0", "1.0.0")]
    assert route.plan_route("1.0.0", jump) == [
        Leg("1.0.0", "2.0.0", needs_cluster=True, needs_tenant=True)
    ]
    with pytest.raises(UpgradeRefusedError, match=r"3\.0\.0 is newer than 2\.0\.0"):
        route.plan_route("3.0.0", jump)


def decision(latest: object, mine: str, offset: int = 0, **more: object) -> object:
    binary = Version(mine, "1.0.0", offset=offset)
    return type(decide(latest, binary, **more))  # type: ignore[arg-type]


def test_planning_follows_its_table() -> None:
    old = [Member("n1", "1.9.0"), Member("n2", "2.0.0")]
    open_way = row("2.0.0", finalised=False)
    assert decision(None, "2.0.0") is Found
    assert decision(row("2.0.0", 3, CREATED), "2.0.0", 3) is Nothing
    assert decision(row("2.0.0", 3, CREATED), "2.1.0", 3) is Refuse
    assert decision(row("2.0.0", 3, CREATED), "2.0.0", 4) is Refuse
    assert decision(row("2.0.0", 3, CREATED), "2.0.0", 2) is Refuse
    assert decision(row("2.0.0", 3, CREATED), "2.1.0", 3, supersede=True) is Supersede
    assert decision(row("2.0.0", 3, CREATED), "2.0.0", 4, supersede=True) is Supersede
    assert decision(row("2.0.0", 3, CREATED), "2.0.0", 2, supersede=True) is Refuse
    assert decision(row("2.0.0"), "1.9.0") is Refuse
    assert decision(open_way, "1.9.0") is Nothing
    assert decision(row("2.0.0", 3), "2.0.0", 3) is Nothing
    assert decision(row("2.0.0", 3), "2.0.0", 2) is Nothing
    assert decision(row("2.0.0", 3), "2.0.0", 4) is Plan
    assert decision(row("2.0.0"), "2.1.0", recorded=[(Number(2, 1, 0), 0)]) is Nothing
    assert decision(open_way, "2.1.0", members=old) is Refuse
    assert decide(open_way, Version("2.1.0", "1.0.0"), members=old[1:]) == Plan(finalises=True)
    assert decide(row("2.0.0"), Version("2.1.0", "1.0.0"), members=old) == Plan(finalises=False)


@given(small, st.integers(0, 3), st.sampled_from([CREATED, READY]), small, st.integers(0, 3))
def test_an_older_program_never_plans_and_two_upgrades_never_run(
    theirs: Number, their_offset: int, state: UpgradeState, mine: Number, my_offset: int
) -> None:
    latest = row(str(theirs), their_offset, state)
    found = decide(latest, Version(str(mine), "0.0.0", offset=my_offset))
    if isinstance(found, Plan):
        assert state is READY
        assert (mine, my_offset) > (theirs, their_offset)
    if isinstance(found, Refuse):
        assert found.error().next_step
        assert (mine, my_offset) != (theirs, their_offset)


@given(small, small, small)
def test_a_tenant_at_its_target_runs_only_when_the_step_leads_to_itself(
    tenant: Number, one: Number, other: Number
) -> None:
    source, target = sorted((one, other))
    leg = Leg(str(source), str(target), needs_cluster=False, needs_tenant=True)
    assert should_run(str(tenant), leg) == (
        tenant < target or (tenant == target and source == target)
    )


def test_a_tenant_left_behind_catches_up_in_order() -> None:
    handles = chain("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    targets = [leg.target for leg in legs_for("1.0.0", "1.2.0", handles)]
    assert targets == ["1.1.0", "1.2.0"]
    assert legs_for("1.3.0", "1.2.0", handles) == []
    with pytest.raises(UpgradeRefusedError):
        legs_for("0.9.0", "1.2.0", handles)
    with pytest.raises(UpgradeRefusedError, match=r"does not know version 1\.2\.5"):
        legs_for("1.0.0", "1.2.5", handles)


ids = st.integers(1, 40)


@given(
    st.lists(st.tuples(ids, st.booleans(), st.booleans(), st.booleans()), max_size=8),
    st.sets(ids),
)
def test_a_claim_takes_the_lowest_free_range_and_looks_at_each_once(
    drawn: list[tuple[int, bool, bool, bool]], alive: set[int]
) -> None:
    later = NOW + timedelta(seconds=1)
    batches = [
        Batch(n, first, first + 2, ready, "w" if held else None, 0, later, later if wait else None)
        for n, (first, ready, held, wait) in enumerate(drawn)
    ]
    looked: list[int] = []

    def look(batch: Batch) -> list[int]:
        looked.append(batch.number)
        return sorted(alive & set(range(batch.first, batch.last + 1)))

    claim = choose(batches, NOW, look)
    free = [b for b in batches if not (b.is_ready or b.is_held(NOW) or b.next_at)]
    free.sort(key=lambda b: (b.first, b.number))
    assert claim.looks == len(looked) == len(set(looked))
    full = [b for b in free if alive & set(range(b.first, b.last + 1))]
    assert claim.batch == (full[0] if full else None)
    assert list(claim.deleted) == free[: free.index(full[0]) if full else None]
    if claim.may_repair:
        assert not any(b.is_held(NOW) for b in batches if not b.is_ready)


def test_a_conflict_forbids_repair() -> None:
    batches = [Batch(1, 1, 4), Batch(2, 10, 12)]
    claim = choose(batches, NOW, lambda b: LOCKED if b.number == 1 else ())
    assert claim.batch is None
    assert claim.saw_conflict
    assert claim.saw_deleted
    assert not claim.may_repair


def test_retries_end() -> None:
    last = retry.MAX_ATTEMPTS
    assert retry.after_failure(retry.USUAL, last, NOW, 0.5) is None
    assert retry.after_failure(retry.USUAL, 1, NOW, 0.0) == NOW + timedelta(seconds=10)
    before_last = retry.after_failure(retry.USUAL, last - 1, NOW, 0.0)
    assert before_last == NOW + timedelta(minutes=10)


def test_what_is_worth_repeating() -> None:
    assert retry.is_transient(ClusterDatabaseBusyError("busy"))
    assert retry.is_transient(OutcomeUnknownError("cut"))
    assert retry.is_transient(ConflictError("overtaken"))
    assert retry.is_transient(ConnectionResetError())
    assert not retry.is_transient(LeaseLostError("gone"))
    assert not retry.is_transient(ZeroDivisionError())
    assert not retry.is_transient(UpgradeRefusedError("no"))


def test_the_breaker_opens_when_everything_fails() -> None:
    assert not retry.is_breaker_open(done=0, failed=9)
    assert retry.is_breaker_open(done=0, failed=10)
    assert not retry.is_breaker_open(done=1, failed=1000)


@given(st.dictionaries(st.sampled_from(list(TenantState)), st.integers(0, 1000)))
def test_ready_never_passes_total(counts: dict[TenantState, int]) -> None:
    found = Progress.of(counts)
    assert 0 <= found.ready <= found.total == sum(counts.values())
    open_ones = counts.get(TenantState.PENDING, 0) + counts.get(TenantState.FAILED, 0)
    assert found.is_complete == (open_ones == 0)


def test_steps_follow_their_table() -> None:
    created = row("3.0.0", state=CREATED)
    first = step("1.0.0", "2.0.0", StepState.READY)
    running = step("1.0.0", "2.0.0", StepState.UPGRADING_TENANTS)
    second = step("2.0.0", "3.0.0", ordinal=1)
    empty = step("2.0.0", "3.0.0", ordinal=1, cluster=False, tenant=False)
    waiting = step("2.0.0", "3.0.0", ordinal=1)
    waiting = type(waiting)(*waiting.key, waiting.leg, waiting.state, 1, NOW + timedelta(seconds=1))

    def act(*steps: object, done: int = 0, pending: int = 0) -> object:
        counted = Progress(done=done, pending=pending)
        return next_action(created, steps, lambda _s: counted, NOW)  # type: ignore[arg-type]

    assert next_action(row("3.0.0"), [second], lambda _s: Progress(), NOW) == Completed()
    assert act(first, second) == RunCluster(second, is_final=True)
    assert act(step("1.0.0", "2.0.0"), second) == RunCluster(step("1.0.0", "2.0.0"), is_final=False)
    assert act(running, second, done=2, pending=1) == Wait(running)
    assert act(running, second, done=3) == Sweep(running)
    assert act(first, empty) == MarkReady(empty)
    assert act(first, waiting) == Wait(waiting)
    assert act(first) == MarkUpgradeReady()


def test_finalising_waits_for_members_and_tenants() -> None:
    open_way = row("2.0.0", finalised=False)
    new, old = Member("n1", "2.0.0"), Member("n2", "1.0.0")
    assert may_finalise(open_way, [new], []) == MayFinalise()
    assert may_finalise(row("2.0.0"), [old], ["t"]) == AlreadyFinalised()
    unready = may_finalise(row("2.0.0", state=CREATED, finalised=False), [new], [])
    by_member = may_finalise(open_way, [new, old], [])
    by_tenant = may_finalise(open_way, [new], [f"t{n}" for n in range(7)])
    assert isinstance(unready, MayNot)
    assert isinstance(by_member, MayNot)
    assert by_member.blockers == ("n2",)
    assert isinstance(by_tenant, MayNot)
    assert "t4 and 2 more" in by_tenant.why
    assert all(each.error().next_step for each in (unready, by_member, by_tenant))


def test_limits_have_defaults_and_bounds() -> None:
    assert Options().bounded() == Options(16, 5.0, 10.0, 4)
    assert Options(0, 0, 0, 0).bounded() == Options()
    assert Options(-1, -1, -1, -1).bounded() == Options()
    assert Options(33, 1, 2, 100).bounded() == Options(32, 1, 2, 64)


def test_a_worker_that_loses_batches_asks_for_longer_and_comes_back() -> None:
    """Situation 36: turns that outlast the lease make it grow until they do not, within a bound."""
    patience = Patience(1.0)
    turn_s, lost = 7.0, 0
    while patience.lease_s < turn_s:
        patience.lost()
        lost += 1
    assert (lost, patience.lease_s) == (3, 8.0)
    for _ in range(DOUBLINGS_MAX):
        patience.lost()
    assert patience.lease_s == 2.0**DOUBLINGS_MAX
    for _ in range(DOUBLINGS_MAX + 1):
        patience.kept()
    assert patience.lease_s == 1.0
