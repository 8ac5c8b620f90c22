"""Versions that sort before ones which tenants have: refused by name, or run where they lack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_apps import make_function
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.versions import Chain, Standing, Version, look_at
from tidegate.errors import FailedPreconditionError, TenantUpgradeError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

CHAIN = Chain(tuple(Version(f"00{n}", f"name{n}", f"hash{n}") for n in range(1, 6)))


@given(st.sets(st.integers(1, 5)), st.integers(1, 5))
def test_out_of_order_runs_exactly_what_is_missing(have: set[int], want: int) -> None:
    """Situation tenants 04: nothing twice, nothing left out."""
    applied = [(f"00{n}", f"hash{n}") for n in have]
    look = look_at(CHAIN, applied, f"00{want}", out_of_order=True)
    if have and max(have) > want:
        assert look.standing is Standing.AHEAD
    else:
        ids = [version.id for version in look.pending]
        assert ids == [f"00{n}" for n in range(1, want + 1) if n not in have]


def test_a_digest_stands_for_what_a_tenant_has() -> None:
    more = Chain((*CHAIN.versions[:2], Version("0025", "late", "x"), *CHAIN.versions[2:]))
    assert more.digest_at("002") == CHAIN.digest_at("002")
    assert more.digest_at("003") != CHAIN.digest_at("003")
    revisions = Chain((Version("a1"), Version("b2")), heads=("b2",))
    assert revisions.upto("b2") == ("b2",)


@pytest.mark.servers
@pytest.mark.slow
class TestOfTenants:
    def test_a_late_file_is_refused_by_name_or_run_where_it_is_missing(
        self, estate: Estate
    ) -> None:
        """Situation tenants 04: timestamps, and a branch that was merged late."""
        estate.add_schemas(3)
        estate.write("20260101_a.sql", "CREATE TABLE a ();")
        estate.write("20260301_c.sql", "CREATE TABLE c ();")
        assert estate.upgrade(tenants=("t001", "t002")).state is RunState.DONE
        estate.write("20260201_b.sql", "CREATE TABLE b ();")
        with pytest.raises(FailedPreconditionError, match=r"20260201 \(b\).*2 tenants") as refused:
            estate.upgrade()
        assert "--out-of-order" in refused.value.next_step
        assert estate.service.runs.all() == [estate.service.runs.get(1)]
        with pytest.raises(TenantUpgradeError, match="lacks 20260201"):
            estate.service.ensure("t001", estate.source)
        # A new tenant gets it in its order, and the others are still known to lack it.
        assert estate.service.ensure("t003", estate.source) == (True, "20260301")
        opened = estate.service.sources.open(estate.service.sources.find(estate.source))
        assert estate.service.late(opened) == [{"version": "20260201", "tenants": 2}]
        planned = estate.service.plan(estate.request(out_of_order=True)).to_json()
        assert planned["late"] == [{"version": "20260201", "tenants": 2}]
        run = estate.upgrade(out_of_order=True)
        assert estate.in_state(run, ItemState.DONE) == ["t001", "t002"]
        assert estate.tables("t001") == ["a", "b", "c", "tidegate_migration"]
        assert estate.recorded("t001") == ["20260101", "20260301", "20260201"]
        assert estate.service.late(opened) == []
        again = estate.upgrade()
        assert (again.state, again.at_target) == (RunState.DONE, 3)

    def test_a_late_version_of_a_function_is_no_different(
        self, estate: Estate, tmp_path: Path
    ) -> None:
        """Situation tenants 04, a relative: VERSIONS in the middle."""
        estate.add_schemas(1)
        body = 'connection.cursor().execute(f"CREATE TABLE made_{tenant.version} ()")'
        folder = tmp_path / "jobs"
        make_function(folder, body, '("1", "3")')
        estate.service.sources.add("jobs", "python:upgrades:migrate", folder=str(folder))
        estate.upgrade(source="jobs")
        make_function(folder, body, '("1", "2", "3")')
        with pytest.raises(FailedPreconditionError, match="2 would run after later"):
            estate.upgrade(source="jobs")
        assert estate.upgrade(source="jobs", out_of_order=True).state is RunState.DONE
        assert estate.recorded("t001") == ["1", "3", "2"]

    def test_a_tenant_of_which_too_little_is_stored_is_looked_into(self, estate: Estate) -> None:
        """Situation tenants 04, a relative: a version stored before digests were."""
        (name,) = estate.add_schemas(1)
        estate.write("20260101_a.sql", "CREATE TABLE a ();")
        estate.write("20260301_c.sql", "CREATE TABLE c ();")
        estate.upgrade()
        tenant = estate.service.tenants.get(name)
        estate.service.tenants.store_version(tenant.id, estate.source, "20260301")
        estate.write("20260201_b.sql", "CREATE TABLE b ();")
        run = estate.upgrade()
        assert "lacks 20260201 before it" in estate.items(run)[name].message
        assert estate.tables(name) == ["a", "c", "tidegate_migration"]
