"""Baseline, stamp and repair: what a tenant's record says, changed without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_tenants import ORDERS
from make_apps import make_alembic, make_django
from tidegate.bootstrap.tenants.amending import Amended, AmendRequest
from tidegate.bootstrap.tenants.amendments import Verb, amend
from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.versions import Chain, Standing, Version, look_at
from tidegate.bootstrap.tenants.worker.tidegate_records import Row
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

servers = [pytest.mark.servers, pytest.mark.slow]
CHAIN = Chain(tuple(Version(f"00{n}", f"name{n}", f"hash{n}") for n in range(1, 6)))
TOTAL = "ALTER TABLE orders ADD COLUMN total numeric;"

rows_of = st.lists(
    st.builds(
        Row,
        source=st.just("app"),
        version=st.sampled_from([*CHAIN.ids, "006", "zz"]),
        name=st.sampled_from(["name1", "name2", "other"]),
        sha256=st.sampled_from(["hash1", "hash2", "hash3", "edited"]),
        begun=st.sampled_from([None, 1]),
    ),
    unique_by=lambda row: row.version,
    max_size=6,
)


def after(rows: list[Row], verb: Verb, version: str) -> dict[str, tuple[str, int | None]]:
    change = amend(verb, CHAIN, rows, version)
    found = {row.version: (row.sha256, row.begun) for row in rows}
    if change.refusal:
        assert not change.changes
        return found
    found |= {each.id: (each.sha256, None) for each in (*change.add, *change.rewrite)}
    return {version: row for version, row in found.items() if version not in change.remove}


@given(rows_of, st.sampled_from(CHAIN.ids))
def test_a_stamp_leaves_exactly_the_versions_up_to_it(rows: list[Row], version: str) -> None:
    """Situation tenants 12: whatever a record said, it says the version afterwards."""
    found = after(rows, Verb.STAMP, version)
    assert {begun for _, begun in found.values()} == {None}
    look = look_at(CHAIN, [(each, sha256) for each, (sha256, _) in found.items()], version)
    assert (look.standing, look.current) == (Standing.AT_TARGET, version)


@given(rows_of, st.sampled_from(CHAIN.ids))
def test_a_baseline_changes_only_what_has_no_record(rows: list[Row], version: str) -> None:
    """Situation tenants 12: a tenant with versions of its own is left as it is."""
    found = after(rows, Verb.BASELINE, version)
    if rows:
        assert found == {row.version: (row.sha256, row.begun) for row in rows}
    else:
        assert list(found) == list(CHAIN.ids[: CHAIN.ids.index(version) + 1])


@given(rows_of)
def test_a_repair_neither_adds_nor_forgets_a_complete_version(rows: list[Row]) -> None:
    """Situation tenants 12: hashes become those of the files, half a file counts as none."""
    found = after(rows, Verb.REPAIR, "")
    assert set(found) == {row.version for row in rows if row.begun is None}
    hashes = {version.id: version.sha256 for version in CHAIN.versions}
    assert all(sha256 == hashes.get(each, sha256) for each, (sha256, _) in found.items())


def amended(estate: Estate, verb: Verb, version: str = "", **given: Any) -> dict[str, Amended]:
    selection = Selection(tenants=given.pop("tenants", ()))
    given.setdefault("source", estate.source)
    request = AmendRequest(verb, version=version, selection=selection, **given)
    return {each.tenant: each for each in estate.service.amend(request)}


class TestSqlFiles:
    """Schemas and databases, with SQL files."""

    pytestmark = servers

    def test_tenants_that_were_there_before_start_at_a_baseline(
        self, estate: Estate, new_database: Callable[[LocalServer], str]
    ) -> None:
        """Situation tenants 12: existing tenants start at version N without running."""
        estate.add_schemas(3)
        database = new_database(estate.server)
        place = estate.service.registry.place(keyspace="saas", database=database)
        estate.service.registry.add("whole", place)
        estate.write("001_orders.sql", ORDERS)
        estate.write("002_total.sql", TOTAL)
        estate.write("003_more.sql", "ALTER TABLE orders ADD COLUMN more int;")
        estate.upgrade(to="001", tenants=("t003",))
        with psycopg.connect(
            estate.server.conninfo(database), password=estate.server.password, autocommit=True
        ) as whole:
            whole.execute(ORDERS + TOTAL)
        with estate.connect() as connection:
            for schema in ("t001", "t002"):
                connection.execute(f"SET search_path = {schema}; {ORDERS} {TOTAL}".encode())
        planned = amended(estate, Verb.BASELINE, "002", dry_run=True)
        assert [v.id for v in planned["t001"].amendment.add] == ["001", "002"]
        assert estate.stored() == {"t001": "", "t002": "", "t003": "001", "whole": ""}
        done = amended(estate, Verb.BASELINE, "002")
        assert "has version 001 of the source already" in done["t003"].reason
        assert [done[name].reason for name in ("t001", "t002", "whole")] == ["", "", ""]
        assert estate.stored() == {"t001": "002", "t002": "002", "t003": "001", "whole": "002"}
        again = amended(estate, Verb.BASELINE, "002", tenants=("t001", "whole"))
        assert not any(each.is_changed or each.reason for each in again.values())
        assert estate.upgrade().state is RunState.DONE
        assert set(estate.stored().values()) == {"003"}
        assert estate.recorded("t001") == estate.recorded("t003") == ["001", "002", "003"]

    def test_a_stamp_of_one_source_leaves_the_other_alone(
        self, estate: Estate, tmp_path: Path
    ) -> None:
        """Situation tenants 12: two sources share a version table, two tenants are stamped."""
        estate.add_schemas(2)
        for name in ("crm", "bill"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "001_a.sql").write_text(f"CREATE TABLE {name} (id int);")
            (folder / "002_b.sql").write_text(f"ALTER TABLE {name} ADD COLUMN b int;")
            estate.service.sources.add(name, f"sql:{folder}")
            estate.upgrade(source=name)
        done = amended(estate, Verb.STAMP, "001", source="crm", tenants=("t00?",))
        assert [each.amendment.remove for each in done.values()] == [("002",), ("002",)]
        assert set(estate.stored("crm").values()) == {"001"}
        assert set(estate.stored("bill").values()) == {"002"}
        with estate.connect() as connection:
            connection.execute("ALTER TABLE t001.crm DROP COLUMN b")
        run = estate.upgrade(source="crm")
        assert estate.in_state(run, ItemState.DONE) == ["t001"]
        assert "already exists" in estate.items(run)["t002"].message
        amended(estate, Verb.STAMP, "head", source="crm", tenants=("t002",))
        assert set(estate.stored("crm").values()) == {"002"}

    def test_a_repair_settles_an_edit(self, estate: Estate) -> None:
        """Situation tenants 12: an edit after release refused the folder for ever."""
        estate.add_schemas(3)
        estate.write("001_orders.sql", ORDERS)
        estate.write("002_total.sql", TOTAL)
        estate.upgrade(tenants=("t001", "t002"))
        estate.write("001_orders.sql", ORDERS + " -- edited")
        (estate.folder / "002_total.sql").rename(estate.folder / "002_sum.sql")
        with pytest.raises(MigrationSourceError, match="not the one"):
            estate.upgrade()
        planned = amended(estate, Verb.REPAIR, dry_run=True)
        assert [v.id for v in planned["t001"].amendment.rewrite] == ["001", "002"]
        with pytest.raises(MigrationSourceError, match="not the one"):
            estate.upgrade()
        assert not any(each.reason for each in amended(estate, Verb.REPAIR).values())
        assert estate.upgrade(verify=True).state is RunState.DONE
        assert set(estate.stored().values()) == {"002"}

    def test_what_the_source_does_not_know_is_named_and_stays(self, estate: Estate) -> None:
        """Situation tenants 12: a file that is gone is not forgotten behind anybody's back."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        gone = estate.write("002_total.sql", TOTAL)
        estate.upgrade(tenants=("t001",))
        gone.unlink()
        assert amended(estate, Verb.REPAIR)["t001"].amendment.unknown == ("002",)
        assert estate.recorded("t001") == ["001", "002"]
        with pytest.raises(MigrationSourceError, match="not the one"):
            estate.upgrade()
        amended(estate, Verb.STAMP, "001", tenants=("t001",))
        amended(estate, Verb.REPAIR)
        assert estate.upgrade().state is RunState.DONE
        assert set(estate.stored().values()) == {"001"}


class TestPrograms:
    """Alembic and Django keep versions in tables of their own."""

    pytestmark = servers

    def test_alembic_is_stamped_by_alembic(self, estate: Estate, tmp_path: Path) -> None:
        """Situation tenants 12: baseline and stamp of revisions."""
        estate.add_schemas(2)
        estate.service.sources.add("app", make_alembic(tmp_path / "app"))
        planned = amended(estate, Verb.BASELINE, "a1", source="app", dry_run=True)
        assert [each.amendment.current for each in planned.values()] == ["a1", "a1"]
        assert estate.tables("t001") == []
        amended(estate, Verb.BASELINE, "a1", source="app")
        assert estate.stored("app") == {"t001": "a1", "t002": "a1"}
        assert estate.tables("t001") == ["alembic_version"]
        done = amended(estate, Verb.BASELINE, "b2", source="app", tenants=("t001",))
        assert "has revision a1 already" in done["t001"].reason
        amended(estate, Verb.STAMP, "b2", source="app", tenants=("t001",))
        assert estate.stored("app") == {"t001": "b2", "t002": "a1"}
        with estate.connect() as connection:
            for schema, version in (("t001", "b2"), ("t002", "a1")):
                found = connection.execute(f"SELECT version_num FROM {schema}.alembic_version")
                assert found.fetchall() == [(version,)]
        with pytest.raises(InvalidArgumentError, match="no hashes"):
            amended(estate, Verb.REPAIR, source="app")

    def test_django_is_faked_by_django(self, estate: Estate, tmp_path: Path) -> None:
        """Situation tenants 12: ``migrate --fake`` to the head."""
        estate.add_schemas(2)
        folder = tmp_path / "site"
        source = make_django(folder)
        estate.service.sources.add("app", source, folder=str(folder))
        amended(estate, Verb.BASELINE, "head", source="app")
        assert len(set(estate.stored("app").values())) == 1
        assert "shop_order" not in estate.tables("t001")
        assert "django_migrations" in estate.tables("t001")
        run = estate.upgrade(source="app")
        assert (run.state, run.at_target) == (RunState.DONE, 2)
