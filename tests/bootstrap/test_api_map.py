"""The map of names of the bootstrap package is complete and can be imported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api_map_pages import resolve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api-map-bootstrap.md"
EXPORTED = [
    "GetAccountIdByName",
    "Locker",
    "Locker.Get",
    "Option",
    "WithCheckUpgradeDuration",
    "WithCheckUpgradeTenantDuration",
    "WithCheckUpgradeTenantWorkers",
    "WithUpgradeHandles",
    "WithUpgradeTenantBatch",
    "Service",
    "Service.Bootstrap",
    "Service.BootstrapUpgrade",
    "Service.MaybeUpgradeTenant",
    "Service.UpgradeTenant",
    "Service.GetFinalVersion",
    "Service.GetFinalVersionOffset",
    "Service.Close",
    "VersionHandle",
    "VersionHandle.Metadata",
    "VersionHandle.Prepare",
    "VersionHandle.HandleClusterUpgrade",
    "VersionHandle.HandleTenantUpgrade",
    "VersionHandle.HandleCreateFrameworkDeps",
    "versions.Version",
    "versions.UpgradeEntry",
]


def rows() -> list[tuple[str, str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = (re.match(r"\| `([^`]+)` \| `([^`]+)` \|", line) for line in lines)
    return [(row[1], row[2]) for row in found if row is not None]


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _ in rows()] == EXPORTED


@pytest.mark.parametrize(("go", "python"), rows())
def test_every_python_name_can_be_imported(go: str, python: str) -> None:
    assert resolve(python) is not None, go
