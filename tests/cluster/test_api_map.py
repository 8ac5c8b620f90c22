"""The map of names of the cluster database's package is complete and can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_map_pages import IN_NOTES, NOTHING, resolve, rows_of

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


ROWS = rows_of(PAGE)


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _, _ in ROWS] == EXPORTED


@pytest.mark.parametrize(
    ("go", "python"), [(go, python) for go, python, _ in ROWS if python != NOTHING]
)
def test_every_python_name_can_be_imported(go: str, python: str) -> None:
    assert resolve(python) is not None, go


@pytest.mark.parametrize(
    "python", sorted({name for _, _, note in ROWS for name in IN_NOTES.findall(note)})
)
def test_every_python_name_in_a_note_can_be_imported(python: str) -> None:
    assert resolve(python) is not None


def test_a_name_without_a_place_says_why() -> None:
    for go, python, note in ROWS:
        if python == NOTHING:
            assert note.startswith("only serves Go"), go
