"""Repeatable files: run after all versions whenever their content has changed, once for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.amending import AmendRequest
from tidegate.bootstrap.tenants.amendments import Verb
from tidegate.bootstrap.tenants.folder import check_folder
from tidegate.bootstrap.tenants.hands import COMMITTED
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.repeatables import Repeats, repeats
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.verifying import VerifyRequest
from tidegate.bootstrap.tenants.versions import Chain, Version
from tidegate.cluster.leases import Leases

if TYPE_CHECKING:
    from fix_tenants import Estate

CHAIN = Chain(
    (Version("001"), Version("002")),
    repeatable=tuple(Version(f"R__{name}", name, f"{name} now") for name in "abc"),
)
WORDINGS = st.dictionaries(
    st.sampled_from(["R__a", "R__b", "R__c", "R__gone"]), st.sampled_from(["now", "before"])
)


@given(WORDINGS)
def test_what_a_tenant_has_in_another_wording_or_not_at_all_runs_in_order(
    has: dict[str, str],
) -> None:
    """Situation tenants 12: repeatable migrations, whenever their content has changed."""
    recorded = {each: f"{each.removeprefix('R__')} {when}" for each, when in has.items()}
    found = repeats(CHAIN, recorded, "002")
    pending = [each.id for each in found.pending]
    assert pending == [f"R__{name}" for name in "abc" if has.get(f"R__{name}") != "now"]
    assert found.gone == (("R__gone",) if "R__gone" in has else ())
    assert repeats(CHAIN, recorded, "001") == Repeats()


def test_they_are_no_versions_and_sort_by_name() -> None:
    files = {
        "R__views.sql": b"SELECT 1",
        "r__grants.SQL": b"SELECT 2",
        "below/R__all.sql": b"",
        "V2__b.sql": b"",
        "001_a.sql": b"",
    }
    chain = check_folder("/sql", files).chain
    assert chain.ids == ("001", "2")
    assert [each.id for each in chain.repeatable] == ["R__all", "R__grants", "R__views"]
    plain = replace(chain, repeatable=())
    assert chain.digest_at("001") == plain.digest_at("001")
    assert chain.digest_at("2") != plain.digest_at("2")


def test_a_value_of_the_source_is_part_of_the_content() -> None:
    """Situation tenants 12, a relative: what is run changes although the file does not."""

    def hashes(days: str, text: bytes) -> list[str]:
        files = {"001_a.sql": text, "R__keep.sql": text}
        known = {"schema": "", "tenant": "", "days": days}
        return [each.version.sha256 for each in check_folder("/sql", files, variables=known).all]

    text = b"SELECT ${days:raw} AS ${tenant}"
    assert hashes("30", text)[0] == hashes("60", text)[0]
    assert hashes("30", text)[1] != hashes("60", text)[1]
    assert hashes("30", b"SELECT 1")[1] == hashes("60", b"SELECT 1")[1]


VIEW = "CREATE OR REPLACE VIEW open_orders AS SELECT id FROM orders;"
#: Not repeatable in truth, so that each time it runs is seen.
COUNT = "INSERT INTO runs (what) VALUES ('{}');"


def count(estate: Estate, schema: str) -> list[str]:
    with estate.connect() as connection:
        rows = connection.execute(f"SELECT what FROM {schema}.runs ORDER BY n").fetchall()
    return [row[0] for row in rows]


def begin(estate: Estate, tenants: int) -> list[str]:
    names = estate.add_schemas(tenants)
    estate.write("001_runs.sql", "CREATE TABLE runs (n serial, what text);" + ORDERS)
    estate.write("R__b.sql", COUNT.format("b1"))
    estate.write("R__a.sql", COUNT.format("a1"))
    return names


def steps_of(estate: Estate, **request: Any) -> list[tuple[str, int, list[str]]]:
    asked = replace(estate.request(**request), shows_sql=True)
    steps = estate.service.plan(asked).to_json()["steps"]
    return [(each["from"], each["tenants"], each["versions"]) for each in steps]


@pytest.mark.servers
@pytest.mark.slow
class TestInTenants:
    def test_they_run_after_the_last_version_and_again_when_they_change(
        self, estate: Estate
    ) -> None:
        """Situation tenants 12: once for each content, in the order of their names."""
        names = begin(estate, 2)
        assert steps_of(estate) == [("", 2, ["001", "R__a", "R__b"])]
        assert estate.upgrade().state is RunState.DONE
        assert [count(estate, name) for name in names] == [["a1", "b1"]] * 2
        assert (estate.upgrade().at_target, set(estate.stored().values())) == (2, {"001"})
        estate.write("R__b.sql", COUNT.format("b2"))
        assert steps_of(estate) == [("001", 2, ["R__b"])]
        run = estate.upgrade(tenants=("t001",))
        assert estate.in_state(run, ItemState.DONE) == ["t001"]
        # A new version runs before them, and one that changed once more only once.
        estate.write("002_more.sql", COUNT.format("2"))
        estate.write("R__a.sql", COUNT.format("a2"))
        assert steps_of(estate) == [
            ("001", 1, ["002", "R__a"]),
            ("001", 1, ["002", "R__a", "R__b"]),
        ]
        assert estate.upgrade().state is RunState.DONE
        assert count(estate, "t001") == ["a1", "b1", "b2", "2", "a2"]
        assert count(estate, "t002") == ["a1", "b1", "2", "a2", "b2"]
        assert sorted(estate.recorded("t002")) == ["001", "002", "R__a", "R__b"]
        assert estate.upgrade(verify=True).state is RunState.DONE
        assert count(estate, "t001") == ["a1", "b1", "b2", "2", "a2"]

    def test_one_that_comes_back_runs_again(self, estate: Estate) -> None:
        """Situation tenants 12, a relative: its file was taken away in between."""
        begin(estate, 1)
        estate.upgrade()
        away = estate.folder / "R__b.sql"
        text = away.read_text()
        away.unlink()
        assert estate.upgrade().state is RunState.DONE
        assert sorted(estate.recorded("t001")) == ["001", "R__a"]
        away.write_text(text)
        assert estate.service.ensure("t001", estate.source) == (True, "001")
        assert count(estate, "t001") == ["a1", "b1", "b1"]

    def test_one_that_fails_leaves_the_version_and_is_tried_again(self, estate: Estate) -> None:
        """Situation tenants 12: content and record are one transaction."""
        begin(estate, 1)
        estate.upgrade()
        estate.write("R__a.sql", COUNT.format("a2") + "\nSELECT no_such();")
        run = estate.upgrade()
        (item,) = estate.items(run).values()
        assert item.message.startswith("R__a.sql line 2: ")
        assert (item.to_version, estate.stored()["t001"]) == ("001", "001")
        assert sorted(estate.recorded("t001")) == ["001", "R__a", "R__b"]
        assert count(estate, "t001") == ["a1", "b1"]
        estate.write("R__a.sql", COUNT.format("a2"))
        assert estate.work(estate.service.retry(run.id)).state is RunState.DONE
        assert count(estate, "t001") == ["a1", "b1", "a2"]

    @pytest.mark.parametrize("single", [False, True])
    def test_a_kill_between_them_runs_none_twice(self, estate: Estate, single: bool) -> None:
        """Situation tenants 12: the process dies after the commit of one."""
        begin(estate, 1)
        at = f"{COMMITTED}#1" if single else f"{COMMITTED}#2"
        estate.die_at(None, at, single_transaction=single)
        for lease in Leases(estate.database).holders():
            assert lease.holder is not None
            Leases(estate.database).release_holder(lease.holder)
        assert estate.work(estate.service.runs.get(None)).state is RunState.DONE
        assert count(estate, "t001") == ["a1", "b1"]

    def test_the_sql_of_those_that_would_run_is_shown(self, estate: Estate) -> None:
        """Situation tenants 12: the SQL in the dry run."""
        begin(estate, 1)
        estate.upgrade()
        estate.write("R__b.sql", "SELECT '${tenant}';")
        asked = replace(estate.request(), shows_sql=True)
        (step,) = estate.service.plan(asked).to_json()["steps"]
        assert (step["from"], step["sql"]) == ("001", "-- R__b.sql\nSELECT 't001';\n")
        opened = estate.service.sources.open(estate.service.sources.find(estate.source))
        assert estate.service.repeats(opened) == [
            {"name": "R__a", "tenants": 0},
            {"name": "R__b", "tenants": 1},
        ]

    def test_stamp_and_the_way_back_let_them_run_where_they_have_to(self, estate: Estate) -> None:
        """Situation tenants 12: a record that is changed, and versions that are undone."""
        begin(estate, 1)
        estate.write("002_more.sql", COUNT.format("2"))
        estate.write("002_more.down.sql", COUNT.format("-2"))
        estate.upgrade()
        stamp = AmendRequest(Verb.STAMP, estate.source, "002", Selection(tenants=("t001",)))
        (amended,) = estate.service.amend(stamp)
        assert not amended.is_changed
        assert estate.upgrade().state is RunState.DONE
        assert count(estate, "t001") == ["2", "a1", "b1"]
        assert estate.upgrade(to="001", downgrade=True).state is RunState.DONE
        assert estate.recorded("t001") == ["001"]
        assert estate.upgrade().state is RunState.DONE
        assert count(estate, "t001") == ["2", "a1", "b1", "-2", "2", "a1", "b1"]
        # A baseline says nothing of them: they are written so that they may run.
        with estate.connect() as connection:
            connection.execute("CREATE SCHEMA t2 CREATE TABLE runs (n serial, what text)")
        estate.service.registry.discover("saas", schemas="t2", register=True)
        assert estate.upgrade(to="001", tenants=("t001",), downgrade=True).state is RunState.DONE
        assert estate.upgrade(to="001", tenants=("t001",)).state is RunState.DONE
        assert estate.recorded("t001") == ["001"]  # they belong to the last version
        estate.service.amend(
            AmendRequest(Verb.BASELINE, estate.source, "002", Selection(tenants=("t2",)))
        )
        assert estate.service.ensure("t2", estate.source) == (True, "002")
        assert count(estate, "t2") == ["a1", "b1"]

    def test_verify_expects_those_that_a_tenant_has(self, estate: Estate) -> None:
        """Situation tenants 12: drift, with repeatable files that are behind or not run yet."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        estate.service.sources.add("app", estate.source)
        estate.upgrade(source="app", tenants=("t001",))
        estate.write("R__v.sql", VIEW)
        estate.upgrade(source="app", tenants=("t002",))
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        found = {each.tenant: each for each in estate.service.verify(VerifyRequest())}
        assert [each.failure for each in found.values()] == ["", ""]
        assert [each.differences for each in found.values()] == [(), ()]
        estate.write("R__v.sql", VIEW.replace("id", "id, note"))
        found = {each.tenant: each for each in estate.service.verify(VerifyRequest())}
        assert found["t001"].failure == ""
        assert "has R__v in an older wording" in found["t002"].failure
