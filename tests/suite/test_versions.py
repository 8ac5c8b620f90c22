"""The run's setting decides which PostgreSQL the source and target servers are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_servers import VARIABLE, wanted_majors
from tidegate.engines.postgres.local import BASE_SETTINGS, base_settings, programs_in
from tidegate.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("setting", "majors"),
    [(None, (18, 18)), ("15", (15, 15)), ("15:18", (15, 18)), ("18:19", (18, 19))],
)
def test_a_run_names_one_version_or_a_source_and_a_target(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, majors: tuple[int, int]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if setting is not None:
        monkeypatch.setenv(VARIABLE, setting)
    assert wanted_majors() == majors


def test_a_version_that_was_not_fetched_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no PostgreSQL 17 in"):
        programs_in(tmp_path / "17", 17)


def test_an_older_server_gets_no_setting_it_does_not_know() -> None:
    assert base_settings(16) == BASE_SETTINGS
    assert base_settings(15).keys() == BASE_SETTINGS.keys() - {"scram_iterations"}
