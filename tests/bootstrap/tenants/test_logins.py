"""What `ensure` costs and needs when a tenant is at its version: no file, and hardly any CPU."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from make_apps import make_function
from tidegate.bootstrap.tenants import freshness
from tidegate.bootstrap.tenants.faults import MigrationSourceError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

FILES = 300
REPEATABLE = 30
ROUNDS = 200
CPU_MS_MAX = 2.0


def age(path: Path) -> None:
    """Let the last change of a folder or file be an hour ago."""
    then = time.time() - 3600
    os.utime(path, (then, then))


def test_a_folder_whose_time_is_young_tells_nothing(tmp_path: Path) -> None:
    """Situation tenants 06, a relative: two changes within one tick of the file system."""
    (tmp_path / "001_a.sql").write_text("SELECT 1;")
    assert not freshness.is_untouched(freshness.look(str(tmp_path), recursive=False))
    age(tmp_path)
    marks = freshness.look(str(tmp_path), recursive=False)
    assert freshness.is_untouched(marks)
    (tmp_path / "001_a.sql").write_text("SELECT 2;")
    assert freshness.is_untouched(marks)  # written in its place: seen by the look at every file
    assert not freshness.is_same(marks, freshness.look(str(tmp_path), recursive=False))
    (tmp_path / "r__v.SQL").write_text("SELECT 1;")
    age(tmp_path)
    assert not freshness.look(str(tmp_path), recursive=False).is_settled
    age(tmp_path / "r__v.SQL")
    marks = freshness.look(str(tmp_path), recursive=False)
    assert freshness.is_untouched(marks)
    (tmp_path / "r__v.SQL").write_text("SELECT 2;")
    assert not freshness.is_untouched(marks)
    marks = freshness.look(str(tmp_path), recursive=False)
    (tmp_path / "002_b.sql").write_text("SELECT 1;")
    assert not freshness.is_untouched(marks)


def test_a_change_in_a_folder_below_is_a_change(tmp_path: Path) -> None:
    below = tmp_path / "2026"
    below.mkdir()
    for each in (below, tmp_path):
        age(each)
    marks = freshness.look(str(tmp_path), recursive=True)
    assert freshness.is_untouched(marks)
    (below / "001_a.sql").write_text("SELECT 1;")
    assert not freshness.is_untouched(marks)


@pytest.mark.servers
@pytest.mark.slow
class TestOfTenants:
    @pytest.mark.alone
    def test_the_login_of_a_tenant_at_its_version_costs_next_to_nothing(
        self, estate: Estate, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Situation tenants 06, and tenants 12: at most 2 ms with 300 files and 30 repeatable."""
        estate.add_schemas(1)
        for number in range(REPEATABLE):
            estate.write(f"R__v{number}.sql", f"CREATE OR REPLACE VIEW v{number} AS SELECT 1 AS a;")
        for number in range(FILES):
            estate.write(f"{number + 1:03d}_t.sql", f"CREATE TABLE t{number} ();\n" * 1 + "\n" * 50)
        estate.service.sources.add("app", estate.source)
        assert estate.service.ensure("t001", "app") == (True, "300")
        for each in (*estate.folder.glob("R__*"), estate.folder):
            age(each)
        estate.service.ensure("t001", "app")
        started = time.process_time()
        for _ in range(ROUNDS):
            assert estate.service.ensure("t001", "app") == (False, "300")
        cpu_ms = (time.process_time() - started) * 1000 / ROUNDS
        with capsys.disabled():
            sys.stderr.write(f"\nensure at its version, {FILES} files: {cpu_ms:.2f} ms of CPU\n")
        assert cpu_ms <= CPU_MS_MAX
        edited = "CREATE OR REPLACE VIEW v7 AS SELECT 2 AS a;"
        estate.write("R__v7.sql", edited)  # in its place: the folder's time stays
        age(estate.folder)
        assert estate.service.ensure("t001", "app") == (True, "300")
        assert estate.service.ensure("t001", "app") == (False, "300")

    def test_a_folder_that_is_wrong_for_a_moment_concerns_only_who_needs_it(
        self, estate: Estate
    ) -> None:
        """Situation tenants 06: logins of tenants at the head go on."""
        estate.add_schemas(2)
        first = estate.write("001_orders.sql", ORDERS)
        assert estate.service.ensure("t001", estate.source) == (True, "001")
        assert estate.service.ensure("t001", estate.source) == (False, "001")
        half = estate.write("002_half.sql", "SELECT 'not closed")
        assert estate.service.ensure("t001", estate.source) == (False, "001")
        with pytest.raises(MigrationSourceError):
            estate.service.ensure("t002", estate.source)
        half.unlink()
        moved = estate.folder.rename(estate.folder.with_name("away"))
        assert estate.service.ensure("t001", estate.source) == (False, "001")
        moved.rename(estate.folder)
        assert first.exists()
        estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
        assert estate.service.ensure("t001", estate.source) == (True, "002")
        assert estate.service.ensure("t002", estate.source) == (True, "002")

    def test_a_file_that_is_added_is_seen_at_the_next_login(self, estate: Estate) -> None:
        """Situation tenants 06: what was parsed is parsed again when the folder changes."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        for number in range(2, 6):
            estate.service.ensure("t001", estate.source)
            if number % 2:
                age(estate.folder)
                estate.service.ensure("t001", estate.source)
            estate.write(f"00{number}_t.sql", f"CREATE TABLE t{number} ();")
            assert estate.service.ensure("t001", estate.source) == (True, f"00{number}")

    def test_a_program_that_cannot_be_loaded_concerns_only_who_needs_it(
        self, estate: Estate, tmp_path: Path
    ) -> None:
        """Situation tenants 06, a relative: Python functions."""
        estate.add_schemas(2)
        folder = tmp_path / "jobs"
        make_function(folder, "pass", '("1",)')
        estate.service.sources.add("jobs", "python:upgrades:migrate", folder=str(folder))
        assert estate.service.ensure("t001", "jobs") == (True, "1")
        assert estate.service.ensure("t001", "jobs") == (False, "1")
        (folder / "upgrades.py").write_text("def migrate(: half written")
        assert estate.service.ensure("t001", "jobs") == (False, "1")
        with pytest.raises(MigrationSourceError):
            estate.service.ensure("t002", "jobs")
