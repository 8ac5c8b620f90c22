"""Schemas of shards are compared and copied through the command line and a real node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tidegate.cli.main import run

if TYPE_CHECKING:
    from fix_node import Shop

pytestmark = [pytest.mark.servers, pytest.mark.slow]

BETWEEN = ["commerce/0", "customer/0"]


def test_the_command_line_compares_copies_and_says_what_was_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_URL", shop.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", shop.node.token)

    def tidegate(*line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["schema", *line])
        said = capsys.readouterr()
        return status, said.out, said.err

    def answer(*line: str) -> tuple[int, dict[str, Any]]:
        status, text, _ = tidegate(*line, "-o", "json")
        return status, json.loads(text)

    status, found = answer("diff", *BETWEEN)
    assert (status, found["equal"]) == (5, False)
    assert found["missing"][:2] == ["table corder", "table customer"]
    status, tried = answer("copy", *BETWEEN, "--dry-run")
    assert (status, tried["dry_run"], tried["verified"]) == (0, True, True)
    assert shop.tables("target") == []
    status, shown, _ = tidegate("copy", *BETWEEN, "--tables", "customer", "--dry-run")
    assert status == 0
    assert "CREATE TABLE public.customer" in shown
    assert "corder" not in shown
    status, made = answer("copy", *BETWEEN)
    assert (status, made["statements"]) == (0, tried["statements"])
    assert shop.tables("target") == ["corder", "customer"]
    assert answer("diff", *BETWEEN)[0] == 0
    assert "nothing to copy" in tidegate("copy", *BETWEEN)[1]
    with shop.connect("target") as connection:
        connection.execute("ALTER TABLE customer ALTER name TYPE varchar")
    status, _, error = tidegate("copy", *BETWEEN)
    assert status == 4
    assert "error TG-SCH-001: customer/0 has objects" in error
    assert "table customer: column name differs" in error
    assert tidegate("diff", *BETWEEN, "--exclude-tables", "customer")[0] == 0
    assert tidegate("diff", *BETWEEN, "--tables", "nope")[0] == 3
    assert tidegate("copy", "commerce/0", "commerce/0")[0] == 2
    with shop.node.client() as client:
        whats = [entry["what"] for entry in client.audit.list()["items"]]
    copies = [what for what in whats if what.startswith("POST /v1/schema/copy")]
    assert any('"source_shard": "0"' in what and '"tables"' in what for what in copies)
    assert not any("/v1/schema/diff" in what for what in whats)
    assert shop.traces() == {"source": [], "target": []}
