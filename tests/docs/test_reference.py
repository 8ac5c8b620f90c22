"""Generated reference pages are what the code says now."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tidegate.errors import ExitStatus, TidegateError

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = (
    "cli.md",
    "database-errors.md",
    "errors.md",
    "exit-status.md",
    "openapi.json",
    "operation-states.md",
    "span-transitions.md",
    "stream-states.md",
    "upgrades.md",
)


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(reference: ModuleType, name: str) -> None:
    page = {path.name: (path, text) for path, text in reference.pages().items()}[name]
    assert page[0].read_text(encoding="utf-8") == page[1], "run scripts/reference.py"


def test_every_exit_status_is_explained(reference: ModuleType) -> None:
    assert set(reference.MEANINGS) == set(ExitStatus)


def test_every_error_code_has_one_meaning(reference: ModuleType) -> None:
    reference.errors()
    waiting, codes = list(TidegateError.__subclasses__()), []
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        if each.__module__.startswith("tidegate.") and "code" in vars(each):
            codes.append(each.code)
    repeated = [code for code, count in Counter(codes).items() if count > 1]
    assert repeated == []


def test_every_command_has_an_example(reference: ModuleType) -> None:
    for words in reference.commands():
        assert "Example" in reference.help_of(words), f"{words} has no example"
