"""A machine that plays upgrades in any order: claims, kills, conflicts, newcomers, drops.

After every step: no tenant ran a version twice (what was rolled back does not count), none ran out
of order, ready never passes total, and a version becomes ready only when nobody is behind it whom
nobody skipped.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from bootstrap.make_service import CLUSTER, TRACK, Handle, World, handles, sqlite_database
from tidegate.bootstrap.model import Options, StepState, TenantState, UpgradeState
from tidegate.bootstrap.stored import StoredDirectory
from tidegate.bootstrap.versions import parse

LEASE_S = 60.0
STEPS = ("1.0.0", "1.1.0", "1.2.0")


class Killed(BaseException):
    """What ends a worker as SIGKILL does: no handler of errors sees it."""


class Upgrades(RuleBasedStateMachine):
    """Two nodes with one program, on one cluster database."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        database = self.stack.enter_context(sqlite_database(Path(folder)))
        self.world = World(database, StoredDirectory(database, TRACK))
        self.known: list[Handle] = handles(*STEPS)
        self.names = 0
        self.skipped: set[int] = set()
        self.born_new: set[int] = set()

    @initialize(count=st.integers(0, 9))
    def begin(self, count: int) -> None:
        self.world.born_at("1.0.0")
        for _ in range(count):
            self.join(born_new=False)
        options = Options(tenant_batch=3, check_s=3600)
        self.nodes = [
            self.world.service(self.known, options=options, batch_lease_s=LEASE_S) for _ in range(2)
        ]
        self.nodes[0].plan()
        self.nodes[0].upgrade_pass()

    @rule(node=st.integers(0, 1))
    def cluster_pass(self, node: int) -> None:
        self.nodes[node].upgrade_pass()

    @rule(node=st.integers(0, 1))
    def tenant_pass(self, node: int) -> None:
        self.nodes[node].tenant_pass(f"w{node}")

    @rule(node=st.integers(0, 1))
    def many_passes(self, node: int) -> None:
        for _ in range(5):
            self.nodes[node].upgrade_pass()
            self.nodes[node].tenant_pass(f"w{node}")

    @rule(node=st.integers(0, 1), after=st.integers(1, 3), noted=st.booleans())
    def killed_worker(self, node: int, after: int, *, noted: bool) -> None:
        """A worker dies within a tenant's transaction, or between its commit and its note."""
        seen: list[int] = []

        def die(tenant: int) -> None:
            seen.append(tenant)
            if len(seen) == after:
                raise Killed

        work: Any = self.nodes[node]._tenants
        plain = work._repair
        object.__setattr__(work, "_repair", lambda *_: None)
        if noted:
            object.__setattr__(work, "note", lambda *_: die(0))
        else:
            for handle in self.known:
                handle.during = die
        try:
            self.nodes[node].tenant_pass(f"dies{node}")
        except Killed:
            pass
        finally:
            for handle in self.known:
                handle.during = None
            object.__setattr__(work, "_repair", plain)
            if noted:
                object.__delattr__(work, "note")

    @rule(seconds=st.sampled_from([1, 11, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.world.database.advance(seconds)

    @rule(born_new=st.booleans())
    def join(self, *, born_new: bool) -> None:
        """A tenant is created, by a node of the new program or of the old one."""
        self.names += 1
        version = STEPS[-1] if born_new else STEPS[0]
        tenant = self.world.directory.add(f"t{self.names}", version)
        if born_new:
            self.born_new.add(tenant)

    @precondition(lambda self: self.world.versions())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.world.directory.drop(data.draw(st.sampled_from(sorted(self.world.versions()))))

    @precondition(lambda self: self.world.versions())
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(sorted(self.world.versions())))
        data.draw(st.sampled_from(self.known)).fails[tenant] = "poison"

    @rule()
    def mend(self) -> None:
        for handle in self.known:
            handle.fails.clear()
        self.nodes[1].retry_tenant()

    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        failed = [
            t.name
            for s in self.nodes[0].status().steps
            if s.step.state is not StepState.READY
            for t in s.trouble
            if t.state is TenantState.FAILED
        ]
        by_name = {t.name: t.id for t in self.world.directory.page(-1, parse("9.0.0"), 1000)}
        failed = [name for name in failed if name in by_name]
        if failed:
            name = data.draw(st.sampled_from(failed))
            self.nodes[0].skip_tenant(name)
            self.skipped.add(by_name[name])

    @rule(node=st.integers(0, 1), data=st.data())
    def used(self, node: int, data: st.DataObject) -> None:
        """A login upgrades a tenant, once the cluster's own part is done."""
        versions = self.world.versions()
        steps = self.nodes[node].status().steps
        if not versions or any(s.step.state is StepState.CREATED for s in steps):
            return
        tenant = data.draw(st.sampled_from(sorted(versions)))
        if any(tenant in handle.fails for handle in self.known):
            return
        with self.world.database.transaction() as connection:
            self.nodes[node].maybe_upgrade_tenant(lambda: (tenant, versions[tenant]), connection)

    @invariant()
    def nothing_runs_twice_or_out_of_order(self) -> None:
        done = self.world.effects()
        assert len(done) == len(set(done))
        for tenant, version in done:
            assert tenant not in self.born_new
            if version == STEPS[2]:
                assert (tenant, STEPS[1]) in done
        for tenant, version in self.world.versions().items():
            if tenant in self.born_new or version == STEPS[0]:
                assert (tenant, version) not in done
            else:
                assert (tenant, version) in done

    @invariant()
    def steps_are_counted_and_follow_each_other(self) -> None:
        if not hasattr(self, "nodes"):
            return
        status = self.nodes[0].status()
        done = self.world.effects()
        for before, after in zip(status.steps, status.steps[1:], strict=False):
            if after.step.state is not StepState.CREATED:
                assert before.step.state is StepState.READY
        for each in status.steps:
            assert each.progress.ready <= each.progress.total
            if each.step.state is not StepState.CREATED:
                assert (CLUSTER, each.step.leg.target) in done
            if each.step.state is StepState.READY:
                assert each.progress.is_complete
        if status.row is not None and status.row.state is UpgradeState.READY:
            assert all(s.step.state is StepState.READY for s in status.steps)

    def teardown(self) -> None:
        """With everything mended, it ends: nobody is left behind but who was skipped or is new."""
        if hasattr(self, "nodes"):
            self.mend()
            for _ in range(60):
                self.world.database.advance(LEASE_S + 1)
                self.tenant_pass(0)
                if self.nodes[0].upgrade_pass():
                    break
            row = self.nodes[0].status().row
            assert row is not None
            assert row.state is UpgradeState.READY
            self.nothing_runs_twice_or_out_of_order()
            if not self.skipped:
                known = {
                    task.tenant_id
                    for s in self.nodes[0].status().steps
                    for task in self._tasks(s.step)
                }
                for tenant, version in self.world.versions().items():
                    assert version == STEPS[-1] or tenant not in known
        self.world.close()
        self.stack.close()

    def _tasks(self, step: Any) -> list[Any]:
        with self.world.database.read() as connection:
            return self.nodes[0]._work.store.tasks(connection, step)


TestUpgrades = Upgrades.TestCase
TestUpgrades.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
