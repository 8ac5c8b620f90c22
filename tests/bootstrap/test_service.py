"""The service on real cluster databases: births, upgrades, failures, orders by hand."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from bootstrap.make_service import CLUSTER, Handle, World, handles, settle
from fix_databases import Worker, wait_until
from tidegate.bootstrap.founding import Role
from tidegate.bootstrap.marker import Marker
from tidegate.bootstrap.model import (
    Member,
    Options,
    StepState,
    TenantState,
    UpgradeState,
    Version,
)
from tidegate.bootstrap.planning import Nothing, Plan
from tidegate.bootstrap.service import get_tenant_id_by_name
from tidegate.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TenantUpgradeError,
    UpgradePendingError,
    UpgradeRefusedError,
)

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from tidegate.bootstrap.operating import UpgradeStatus
    from tidegate.bootstrap.service import Service

QUICK = Options(check_s=0.05, tenant_check_s=0.05)


def state(service: Service[Connection]) -> UpgradeState:
    row = service.status().row
    assert row is not None
    return row.state


def troubled(status: UpgradeStatus) -> dict[str, TenantState]:
    return {t.name: t.state for s in status.steps for t in s.trouble}


def test_a_fresh_cluster_is_born_at_the_newest_version_without_steps(each_world: World) -> None:
    with each_world.service(handles("1.1.0", "1.2.0", "1.3.0")) as service:
        assert service.bootstrap() is Role.OWNER
        assert service.bootstrap() is Role.FOUND
        assert isinstance(service.bootstrap_upgrade(), Nothing)
        status = service.status()
        assert (service.get_final_version(), service.get_final_version_offset()) == ("1.3.0", 0)
    assert status.row is not None
    assert (status.row.version, status.row.is_finalised) == ("1.3.0", True)
    assert status.steps == ()
    assert each_world.effects() == []


def test_an_upgrade_brings_the_cluster_and_every_tenant_along_in_order(each_world: World) -> None:
    each_world.born_at("1.0.0")
    ids = each_world.tenants(37, "1.0.0")
    with each_world.service(handles("1.0.0", "1.1.0", "1.2.0"), options=QUICK) as service:
        assert service.bootstrap() is Role.FOUND
        assert service.upgrade_tenant(all_tenants=True)
        assert not service.upgrade_tenant(all_tenants=True)
        assert state(service) is UpgradeState.READY
        assert [s.progress.done for s in service.status().steps] == [37, 37]
    assert set(each_world.versions().values()) == {"1.2.0"}
    wanted = [(tenant, v) for tenant in (CLUSTER, *ids) for v in ("1.1.0", "1.2.0")]
    assert each_world.effects() == sorted(wanted)


def test_one_bad_tenant_keeps_no_other_back_and_can_be_retried_or_skipped(world: World) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(40, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    new.fails = {ids[0]: "bad index", ids[20]: "bad column"}
    service = world.service([new])
    service.plan()
    assert not settle(service)
    counted = service.status().steps[0].progress
    assert (counted.done, counted.failed, counted.total) == (38, 2, 40)
    trouble = service.status().steps[0].trouble
    assert [(t.name, t.attempts, "bad index" in t.error) for t in trouble] == [
        ("t1", 1, True),
        ("t21", 1, False),
    ]
    assert [t.next_at is not None for t in trouble] == [True, True]
    assert world.effects("1.1.0") == sorted(
        (t, "1.1.0") for t in (CLUSTER, *ids) if t not in new.fails
    )
    calls = len(new.calls)
    assert not settle(service)
    assert len(new.calls) == calls, "a failed tenant was not left alone for its pause"
    world.database.advance(10)
    assert not settle(service)
    assert [t.attempts for t in service.status().steps[0].trouble] == [2, 2]
    del new.fails[ids[20]]
    assert service.retry_tenant("t21") == 1
    assert not settle(service)
    assert troubled(service.status()) == {"t1": TenantState.FAILED}
    service.skip_tenant("t1")
    assert settle(service)
    assert world.versions()[ids[0]] == "1.0.0"
    with pytest.raises(FailedPreconditionError, match="does not wait for tenant t1"):
        service.skip_tenant("t1")


def test_when_everything_fails_few_tenants_are_tried(world: World) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(100, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    new.fails = dict.fromkeys(ids, "disk full")
    service = world.service([new])
    service.plan()
    assert not settle(service)
    assert service.status().steps[0].progress.failed == 16
    new.fails.clear()
    world.database.advance(10)
    assert settle(service)
    assert set(world.versions().values()) == {"1.1.0"}


def test_a_failing_cluster_step_is_undone_stored_and_tried_again_later(world: World) -> None:
    world.born_at("1.0.0")
    world.tenants(2, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    new.fails[CLUSTER] = "no such function"
    service = world.service([new])
    service.plan()
    for attempts, after_s in ((1, 0), (1, 1), (2, 10)):
        world.database.advance(after_s)
        assert not service.upgrade_pass()
        assert service.status().steps[0].step.attempts == attempts
        assert len(new.calls) == attempts
    assert "no such function" in service.status().problem
    assert service.status().steps[0].step.state is StepState.CREATED
    assert world.effects() == []
    del new.fails[CLUSTER]
    world.database.advance(20)
    assert settle(service)
    assert service.status().problem == ""
    assert new.prepared == [True] * len(new.prepared)


def test_tenants_that_come_go_and_are_renamed_meanwhile_are_all_accounted_for(
    world: World,
) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(20, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    service = world.service([new], options=Options(tenant_batch=4, check_s=3600))
    service.plan()
    assert not service.upgrade_pass()
    for gone in (ids[0], ids[5], *ids[8:12]):
        world.directory.drop(gone)
    world.directory.rename(ids[1], "renamed")
    by_old_node = world.directory.add("late", "1.0.0")
    by_new_node = world.directory.add("newborn", "1.1.0")
    assert settle(service)
    counted = service.status().steps[0].progress
    assert (counted.done, counted.gone, counted.total) == (15, 6, 21)
    assert set(world.versions().values()) == {"1.1.0"}
    assert (by_old_node, "1.1.0") in world.effects()
    assert (by_new_node, "1.1.0") not in world.effects()


def test_a_version_with_more_entries_runs_every_tenant_once_more(world: World) -> None:
    world.born_at("1.1.0", offset=2)
    ids = world.tenants(3, "1.1.0")
    new = Handle(Version("1.1.0", "1.0.0", offset=3))
    service = world.service([new])
    assert isinstance(service.plan(), Plan)
    assert settle(service)
    assert world.effects() == sorted((t, "1.1.0") for t in (CLUSTER, *ids))
    assert settle(service)
    assert len(world.effects()) == 4


def test_malformed_unreachable_and_newer_versions_are_refused_before_anything_is_written(
    world: World,
) -> None:
    world.born_at("1.0.0")
    too_far = world.service([Handle(Version("3.0.0", "2.0.0"))])
    with pytest.raises(UpgradeRefusedError, match=r"reached from is 2\.0\.0"):
        too_far.bootstrap_upgrade()
    with pytest.raises(InvalidArgumentError, match="not a version"):
        world.directory.add("x", "one")
    row = too_far.status().row
    assert row is not None
    assert row.version == "1.0.0"
    old = world.service([Handle(Version("0.9.0", "0.9.0"))])
    with pytest.raises(UpgradeRefusedError, match=r"cluster is at 1\.0\.0"):
        old.plan()
    with pytest.raises(InvalidArgumentError, match="no version handles"):
        world.service([])


def test_a_cluster_that_is_older_than_the_table_of_versions_is_founded(world: World) -> None:
    world.tenants(2, "0.9.0")
    marker = Marker(in_use=lambda c: bool(c.execute(text("SELECT 1 FROM upgrade_directory")).all()))
    service = world.service(handles("0.9.0", "1.0.0", "1.1.0"), marker=marker)
    assert service.bootstrap() is Role.FOUND
    assert isinstance(service.plan(), Plan)
    assert settle(service)
    assert set(world.versions().values()) == {"1.1.0"}
    assert (CLUSTER, "founder") in world.effects()


def test_a_stuck_upgrade_can_be_superseded_by_a_newer_program_only(world: World) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(3, "1.0.0")
    stuck, mended = handles("1.0.0", "1.1.0", "1.2.0")
    stuck.fails[ids[1]] = "never works"
    service = world.service([stuck])
    service.plan()
    assert not settle(service)
    cumulative = Handle(Version("1.2.0", "1.0.0"))
    newer = world.service([stuck, cumulative])
    with pytest.raises(UpgradeRefusedError, match=r"upgrade to 1\.1\.0 .* has not ended"):
        newer.plan()
    with pytest.raises(UpgradeRefusedError):
        world.service([Handle(Version("1.0.5", "1.0.0"))]).plan(supersede=True)
    assert isinstance(newer.plan(supersede=True), Plan)
    assert settle(newer)
    assert set(world.versions().values()) == {"1.2.0"}
    assert service.upgrade_pass(), "the old program has nothing left to do"
    assert mended.calls == []


def test_the_way_back_is_open_until_it_is_finalised(world: World) -> None:
    world.born_at("1.0.0")
    world.tenants(2, "1.0.0")
    members = [Member("n1", "1.1.0"), Member("n2", "1.0.0")]
    service = world.service(handles("1.0.0", "1.1.0"), members=lambda: members)
    service.plan()
    with pytest.raises(UpgradeRefusedError, match="is not ready"):
        service.finalise()
    assert settle(service)
    old = world.service([Handle(Version("1.0.0", "1.0.0"))])
    assert isinstance(old.plan(), Nothing)
    with world.database.read() as connection:
        assert not old.maybe_upgrade_tenant(lambda: (1, "1.1.0"), connection)
    with pytest.raises(UpgradeRefusedError, match="n2") as caught:
        service.finalise()
    assert caught.value.details["blockers"] == ["n2"]
    assert "n2" in service.status().blocked
    del members[1]
    late = world.directory.add("late", "1.0.0")
    with pytest.raises(UpgradeRefusedError, match="late"):
        service.finalise()
    world.directory.drop(late)
    assert service.finalise()
    assert not service.finalise()
    with pytest.raises(UpgradeRefusedError):
        old.plan()
    with pytest.raises(InvalidArgumentError), world.database.read() as connection:
        old.maybe_upgrade_tenant(lambda: (1, "1.1.0"), connection)


def lazily(world: World, service: Service[Connection], tenant_id: int) -> bool:
    """What a login does: read the tenant and upgrade it, in one transaction."""
    version = world.versions()[tenant_id]
    with world.database.transaction() as connection:
        return service.maybe_upgrade_tenant(lambda: (tenant_id, version), connection)


def test_a_tenant_is_upgraded_when_it_is_used_and_remembered_only_once_that_is_committed(
    world: World,
) -> None:
    world.born_at("1.0.0")
    (tenant,) = world.tenants(1, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    service = world.service([new])
    with pytest.raises(UpgradePendingError, match="has not begun"):
        lazily(world, service, tenant)
    service.plan()
    new.fails[CLUSTER] = "not yet"
    service.upgrade_pass()
    with pytest.raises(UpgradePendingError, match="not done"):
        lazily(world, service, tenant)
    new.fails.clear()
    service.retry_tenant()
    service.upgrade_pass()

    def upgrade_and_roll_back() -> None:
        with world.database.transaction() as connection:
            assert service.maybe_upgrade_tenant(lambda: (tenant, "1.0.0"), connection)
            assert not service.maybe_upgrade_tenant(lambda: (tenant, "1.1.0"), connection)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            upgrade_and_roll_back()
    assert lazily(world, service, tenant)
    assert not lazily(world, service, tenant)
    assert world.effects("1.1.0") == [(CLUSTER, "1.1.0"), (tenant, "1.1.0")]
    assert settle(service)
    assert world.effects("1.1.0") == [(CLUSTER, "1.1.0"), (tenant, "1.1.0")]


def test_errors_of_a_lazy_upgrade_reach_the_caller(world: World) -> None:
    world.born_at("1.0.0")
    (tenant,) = world.tenants(1, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    service = world.service([new])
    service.plan()
    service.upgrade_pass()

    def fetch() -> tuple[int, str]:
        raise NotFoundError("no such user")

    with pytest.raises(NotFoundError, match="no such user"), world.database.read() as connection:
        service.maybe_upgrade_tenant(fetch, connection)
    new.fails[tenant] = "bad"
    with pytest.raises(RuntimeError, match="bad"):
        lazily(world, service, tenant)
    assert world.versions()[tenant] == "1.0.0"
    world.directory.drop(tenant)
    with pytest.raises(NotFoundError, match="dropped"), world.database.transaction() as connection:
        service.maybe_upgrade_tenant(lambda: (tenant, "1.0.0"), connection)


def test_by_hand_the_answer_is_the_result(world: World) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(3, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    new.fails[ids[1]] = "bad"
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    with world.service([new], pause=pause) as service:
        service.upgrade_tenant("t1")  # false if the background was quicker
        assert world.versions()[ids[0]] == "1.1.0"
        assert not service.upgrade_tenant("t1")
        with pytest.raises(TenantUpgradeError, match=r"tenant t2 .*bad") as caught:
            service.upgrade_tenant("t2", retries=6)
        assert caught.value.details["attempts"] == 6
        assert [p for p in pauses if p >= 1][-5:] == [1, 2, 4, 8, 10]
        with pytest.raises(NotFoundError, match="no tenant nobody"):
            service.upgrade_tenant("nobody")
        with pytest.raises(TenantUpgradeError, match=r"1 of [23] tenants.*t2: .*bad"):
            service.upgrade_tenant(all_tenants=True)
        for wrong in ({}, {"name": "t1", "all_tenants": True}):
            with pytest.raises(InvalidArgumentError):
                service.upgrade_tenant(**wrong)  # type: ignore[arg-type]
        assert threading.active_count() < 20
        assert get_tenant_id_by_name("t2", world.directory) == ids[1]
        new.fails.clear()
        service.upgrade_tenant("t2")
        assert world.versions()[ids[1]] == "1.1.0"
        wait_until(lambda: state(service) is UpgradeState.READY)


def test_by_hand_another_program_s_upgrade_is_refused(world: World) -> None:
    world.born_at("1.0.0")
    world.tenants(1, "1.0.0")
    (stuck,) = handles("1.0.0", "1.1.0")
    stuck.fails[CLUSTER] = "stuck"
    world.service([stuck]).plan()
    for version, offset in (("1.2.0", 0), ("1.1.0", 5)):
        other = world.service([Handle(Version(version, "1.0.0", offset=offset))])
        with pytest.raises(UpgradeRefusedError, match="has not ended"):
            other.upgrade_tenant("t1")


def test_closing_waits_for_a_login_that_is_inside(world: World) -> None:
    world.born_at("1.0.0")
    (tenant,) = world.tenants(1, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    service = world.service([new])
    service.plan()
    service.upgrade_pass()
    entered, go_on = threading.Event(), threading.Event()

    def wait_inside(_tenant: int) -> None:
        entered.set()
        assert go_on.wait(30)

    new.during = wait_inside
    login = Worker(lambda: lazily(world, service, tenant))
    assert entered.wait(30)
    closing = Worker(service.close)
    wait_until(lambda: service._closed)
    assert closing.is_alive()
    go_on.set()
    assert login.result() is True
    closing.result()
    with pytest.raises(CancelledError):
        service.bootstrap_upgrade()
    service.close()


def test_another_worker_takes_over_a_batch_whose_worker_is_silent(world: World) -> None:
    world.born_at("1.0.0")
    ids = world.tenants(4, "1.0.0")
    (new,) = handles("1.0.0", "1.1.0")
    service = world.service([new], batch_lease_s=60)
    service.plan()
    service.upgrade_pass()
    step = service.status().steps[0].step
    claim = service._tenants._claim(step, "silent")
    assert claim.batch is not None
    assert not service.tenant_pass("other").has_worked
    assert not service.tenant_pass("other").has_worked
    world.database.advance(61)
    assert service.tenant_pass("other").has_worked
    service._tenants._work_on(step, claim)
    assert sorted(new.calls) == [CLUSTER, *ids], "the silent one ran nothing twice"
    assert settle(service)


def test_many_versions_of_one_moment_are_told_apart(world: World) -> None:
    moment = world.database.now()

    def stands_still(connection: Connection | None = None) -> datetime:  # noqa: ARG001 - of the base
        return moment

    world.database.now = stands_still  # type: ignore[method-assign]
    world.born_at("1.0.0")
    for number in range(1, 6):
        known = handles("1.0.0", *(f"1.{n}.0" for n in range(1, number + 1)))
        service = world.service(known)
        assert isinstance(service.plan(), Plan)
        assert settle(service)
        row = service.status().row
        assert row is not None
        assert (row.version, row.sequence) == (f"1.{number}.0", number + 1)


def test_a_program_with_fewer_entries_has_nothing_to_do(world: World) -> None:
    world.born_at("1.1.0", offset=3)
    fewer = world.service([Handle(Version("1.1.0", "1.0.0", offset=2))])
    assert isinstance(fewer.plan(), Nothing)
    assert fewer.upgrade_pass(), "its passes end at once"
    assert not fewer.tenant_pass("w").has_worked
