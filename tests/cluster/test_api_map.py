"""The map of names of the cluster database's package is complete and can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflow.test_api_map import IN_NOTES, NOTHING, resolve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api-map-cluster.md"

#: Every name that the documentation of the Go package exports; methods with their type.
EXPORTED = [
    "StmtSelectNodesVersions",
    "StmtUpdateNodeVersion",
    "ErrSomeNodesAreBehind",
    "StmtInitialNode",
    "FreshSchema",
    "APIExtensions",
    "APIExtensions.Count",
    "BasicAPIExtensions",
    "NewBasicAPIExtensions",
    "BasicAPIExtensions.Count",
    "Cluster",
    "New",
    "Cluster.EnsureSchema",
    "Cluster.Open",
    "Cluster.SchemaVersion",
    "DQliteNameProvider",
    "DQliteNameProvider.DriverName",
    "DatabaseDriver",
    "DatabaseDriver.Create",
    "DatabaseIO",
    "DatabaseOpener",
    "DatabaseOpener.Open",
    "DatabaseRegistrar",
    "DatabaseRegistrar.Register",
    "DatabaseRegistrar.Drivers",
    "NameProvider",
    "NameProvider.DriverName",
    "Option",
    "WithAPIExtensions",
    "WithDatabase",
    "WithDatabaseIO",
    "WithFileSystem",
    "WithNameProvider",
    "WithSchemaProvider",
    "WithSleeper",
    "Schema",
    "Schema.Fresh",
    "Schema.File",
    "Schema.Check",
    "Schema.Hook",
    "Schema.Ensure",
    "SchemaProvider",
    "SchemaProvider.Schema",
    "SchemaProvider.Updates",
    "NewSchema",
    "ServerInfo",
    "ServerStore",
    "ServerStore.Get",
    "ServerStore.Set",
]


def rows() -> list[tuple[str, str, str]]:
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            go, python, note = (cell.strip() for cell in line.strip("|").split("|"))
            found.append((go.strip("`"), python.strip("`"), note))
    return found


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _, _ in rows()] == EXPORTED


@pytest.mark.parametrize(
    ("go", "python"), [(go, python) for go, python, _ in rows() if python != NOTHING]
)
def test_every_python_name_can_be_imported(go: str, python: str) -> None:
    assert resolve(python) is not None, go


@pytest.mark.parametrize(
    "python", sorted({name for _, _, note in rows() for name in IN_NOTES.findall(note)})
)
def test_every_python_name_in_a_note_can_be_imported(python: str) -> None:
    assert resolve(python) is not None


def test_a_name_without_a_place_says_why() -> None:
    for go, python, note in rows():
        if python == NOTHING:
            assert note.startswith("only serves Go"), go
