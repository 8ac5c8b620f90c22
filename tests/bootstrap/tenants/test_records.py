"""Whose the rows of a version table are, and several sources in one tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_tenants import ORDERS
from make_apps import make_function
from tidegate.bootstrap.tenants.model import RunState
from tidegate.bootstrap.tenants.worker.tidegate_records import Asker, Own, Row, own
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

HASHES = {"001": "one", "002": "two"}
OLD_TABLE = """
CREATE TABLE {schema}.tidegate_migration (version text NOT NULL PRIMARY KEY, name text NOT NULL,
    sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())
"""
MAKE_TABLE = """
with connection.cursor() as cursor:
    cursor.execute(f"CREATE TABLE {name}_{tenant.version} ()")
"""


def asker(
    others: tuple[str, ...] | list[str] = (), stored: list[str] | tuple[str, ...] = ()
) -> Asker:
    return Asker("app", HASHES, {"001": "orders"}, others, stored)


def nameless(*hashes: str) -> list[Row]:
    return [Row("", f"00{number}", "", sha256) for number, sha256 in enumerate(hashes, 1)]


@given(st.lists(st.sampled_from(["app", "bill", "crm"]), max_size=6))
def test_rows_of_another_source_are_never_taken_for_ours(names: list[str]) -> None:
    """Situation tenants 03: a version is of a source."""
    rows = [Row(name, f"{n:03d}", "", f"{name} {n}") for n, name in enumerate(names)]
    found = own(rows, asker(["bill", "crm"], ["app", "bill", "crm"]))
    assert found == Own(tuple(row for row in rows if row.source == "app"))


@pytest.mark.parametrize(
    ("who", "rows", "expected"),
    [
        (asker(), nameless("one"), "ours"),
        (asker(), nameless("edited"), "ours"),  # and refused as edited
        (asker(["bill"], ["bill"]), nameless("one"), "ours"),
        (asker(["bill"], ["bill"]), nameless("other"), "theirs"),
        (asker(["bill"], ["bill"]), nameless("", ""), "theirs"),
        (asker(["bill"], ["app"]), nameless("", ""), "ours"),
        (asker(["bill"], ["app", "bill"]), nameless("", ""), "unknown"),
        (asker(), [Row("gone", "009", "", "one"), Row("gone", "002", "", "x")], "ours"),
        (asker(), [Row("gone", "001", "init", "other")], "theirs"),
        (asker(), [Row("gone", "001", "orders", "other")], "unknown"),
        (asker(["bill"]), [Row("bill", "001", "orders", "other")], "theirs"),
        (asker(["bill"]), [Row("bill", "001", "orders", "one")], "unknown"),
    ],
)
def test_rows_that_name_nobody_or_a_source_that_is_gone_are_taken_over_on_evidence(
    who: Asker, rows: list[Row], expected: str
) -> None:
    """Situation tenants 03: what may be somebody else's is neither run again nor taken for done."""
    found = own(rows, who)
    if expected == "ours":
        assert found == Own(tuple(rows), (rows[0].source,))
    elif expected == "theirs":
        assert found == Own(())
    else:
        assert found.refusal
        assert (found.rows, found.adopted) == ((), ())


def python_source(estate: Estate, folder: Path, name: str, **how: str) -> str:
    """A function that makes a table for each version; its address."""
    make_function(folder, MAKE_TABLE.replace("{name}", name))
    (folder / "upgrades.py").rename(folder / f"{name}.py")
    address = f"python:{name}:migrate"
    estate.service.sources.add(name, address, folder=str(folder), **how)
    return address


@pytest.mark.servers
@pytest.mark.slow
class TestInOneTenant:
    def test_two_python_sources_with_equal_versions_both_run(
        self, estate: Estate, tmp_path: Path
    ) -> None:
        """Situation tenants 03: sources crm and bill, both with versions 1 and 2."""
        names = estate.add_schemas(2)
        for source in ("crm", "bill"):
            python_source(estate, tmp_path / source, source)
            assert estate.upgrade(source=source).state is RunState.DONE
        for name in names:
            assert estate.tables(name) == [
                "bill_1",
                "bill_2",
                "crm_1",
                "crm_2",
                "tidegate_migration",
            ]
        again = estate.upgrade(source="crm", verify=True)
        assert again.state is RunState.DONE
        assert sorted(estate.recorded("t001")) == ["1", "1", "2", "2"]

    def test_two_folders_with_equal_versions_both_run(self, estate: Estate, tmp_path: Path) -> None:
        """Situation tenants 03: two SQL folders in the same tenants."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        second = tmp_path / "second"
        second.mkdir()
        (second / "001_bills.sql").write_text("CREATE TABLE bills (id int);")
        estate.service.sources.add("shop", estate.source)
        estate.service.sources.add("bill", f"sql:{second}")
        for source in ("shop", "bill", "shop", "bill"):
            assert estate.upgrade(source=source, verify=True).state is RunState.DONE
        assert estate.tables("t002") == ["bills", "orders", "tidegate_migration"]

    def test_a_table_from_before_is_brought_up_to_date_in_place(
        self, estate: Estate, tmp_path: Path
    ) -> None:
        """Situation tenants 03: existing version tables name no source."""
        estate.add_schemas(2)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        with estate.connect() as connection:
            for name in ("t001", "t002"):
                rows = connection.execute(
                    f"SELECT version, name, sha256 FROM {name}.tidegate_migration"
                ).fetchall()
                connection.execute(f"DROP TABLE {name}.tidegate_migration")
                connection.execute(OLD_TABLE.format(schema=name))
                for row in rows:
                    connection.execute(
                        f"INSERT INTO {name}.tidegate_migration VALUES (%s, %s, %s)", row
                    )
        second = tmp_path / "second"
        second.mkdir()
        (second / "001_bills.sql").write_text("CREATE TABLE bills (id int);")
        estate.service.sources.add("shop", estate.source)
        estate.service.sources.add("bill", f"sql:{second}")
        for tenant in estate.service.tenants.all():
            estate.service.tenants.store_version(tenant.id, "shop", "001")
        assert estate.upgrade(source="bill").state is RunState.DONE  # before the rows' owner
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        assert estate.upgrade(source="shop").state is RunState.DONE
        with estate.connect() as connection:
            rows = connection.execute(
                "SELECT source, version FROM t001.tidegate_migration ORDER BY 1, 2"
            ).fetchall()
        assert rows == [("bill", "001"), ("shop", "001"), ("shop", "002")]

    def test_a_source_that_gets_a_name_finds_what_it_did_without_one(self, estate: Estate) -> None:
        """Situation tenants 03, a relative: the name changes, the content does not."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        assert estate.upgrade().state is RunState.DONE
        estate.service.sources.add("shop", estate.source)
        assert estate.service.sources.find(estate.source).name == "shop"
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        assert estate.upgrade(source="shop").state is RunState.DONE
        assert estate.recorded("t001") == ["001", "002"]

    def test_a_table_of_somebody_else_is_left_alone(self, estate: Estate) -> None:
        """Situation tenants 03, a relative: the version table's name is taken."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        with estate.connect() as connection:
            connection.execute("CREATE TABLE t001.tidegate_migration (version text PRIMARY KEY)")
        run = estate.upgrade()
        assert "table of somebody else" in estate.items(run)["t001"].message
        assert estate.tables("t001") == ["tidegate_migration"]

    def test_a_clash_that_cannot_be_told_apart_is_refused_at_once(self, estate: Estate) -> None:
        """Situation tenants 03: `migrations create` refuses what cannot share a table."""
        estate.write("001_orders.sql", ORDERS)
        estate.service.sources.add("shop", estate.source)
        with pytest.raises(InvalidArgumentError, match="'shop' already"):
            estate.service.sources.add("again", estate.source)
        with pytest.raises(InvalidArgumentError, match="another role"):
            estate.service.sources.check("other", "sql:/elsewhere", role="someone")
        assert estate.service.sources.check("x", estate.source, version_table="x").name == "x"
