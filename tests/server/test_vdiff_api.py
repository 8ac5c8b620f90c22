"""Comparisons as a user makes them: command line and client against a real node."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from fix_node import until
from tidegate.cli.main import run
from tidegate.client import token_of
from tidegate.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_node import Shop

pytestmark = [pytest.mark.servers, pytest.mark.slow]

WHERE = ["-w", "move", "-t", "customer"]


@pytest.fixture
def moved(shop: Shop) -> Shop:
    """A workflow that runs and is in step."""
    with shop.node.client() as client:
        client.movetables.create("move", "customer", source_keyspace="commerce", all_tables=True)

        def runs() -> bool:
            status = client.workflow.status("move", "customer")
            return bool(status["phase"] == "running")

        until(runs)
    return shop


@pytest.fixture
def tidegate(
    moved: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """The command line; its exit status and JSON."""
    monkeypatch.setenv("TIDEGATE_URL", moved.node.url)
    monkeypatch.setenv("TIDEGATE_TOKEN", moved.node.token)

    def call(*line: str) -> tuple[int, Any]:
        capsys.readouterr()
        status = run(["vdiff", *line, *WHERE, "-o", "json"])
        text = capsys.readouterr().out
        return status, json.loads(text) if text else None

    return call


def test_every_verb_has_a_dry_run_that_changes_nothing(
    tidegate: Callable[..., tuple[int, Any]],
) -> None:
    status, planned = tidegate("create", "--dry-run", "--tables", "corder")
    assert (status, planned["dry_run"], planned["Tables"]) == (0, True, ["corder"])
    assert tidegate("list")[1]["items"] == []
    assert tidegate("create", "--dry-run", "--tables", "nothing")[0] == 3
    _, made = tidegate("create", "--no-auto-start")
    name = made["uuid"]
    _, before = tidegate("show", name)
    assert tidegate("resume", name, "--dry-run")[1]["WouldResume"] == ["0"]
    assert tidegate("stop", name, "--dry-run")[1]["WouldStop"] == []
    assert tidegate("delete", name, "--dry-run")[1]["deleted"] == 1
    assert tidegate("delete", "all", "--dry-run")[1] == {
        "schema_version": 1,
        "deleted": 1,
        "dry_run": True,
    }
    assert tidegate("show", name)[1] == before
    assert tidegate("resume", name, "--wait")[0] == 0
    assert tidegate("stop", name, "--target-shards", "-80")[0] == 3


def test_options_reach_the_comparison_and_differences_the_exit_status(
    moved: Shop, tidegate: Callable[..., tuple[int, Any]]
) -> None:
    with moved.connect("target") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE customer SET name = repeat('y', 100) WHERE id = 5")
    options = "--max-diff-duration 10m --update-table-stats --row-diff-column-truncate-at 10"
    status, report = tidegate("create", *options.split(), "--debug-query", "--wait")
    assert status == 5
    assert report["RowsCompared"] == 4000
    (sample,) = report["Reports"]["customer"]["0"]["MismatchedRowsSample"]
    assert sample["Target"]["name"] == "y" * 10 + "...[TRUNCATED]"
    with moved.connect("target") as connection:
        row = connection.execute(sample["TargetQuery"]).fetchone()
    assert row is not None
    assert row[:2] == (5, "y" * 100)
    assert tidegate("create", "--max-diff-duration", "soon")[0] == 2
    assert tidegate("show", "last")[0] == 5


@pytest.mark.alone
def test_a_client_that_waits_gets_the_end_at_once(moved: Shop) -> None:
    with moved.node.client() as client:
        name = client.vdiff.create("move", "customer", auto_start=False)["uuid"]
        assert client.vdiff.wait("move", "customer", name, timeout_s=5)["State"] == "stopped"
        client.vdiff.resume("move", "customer", name)
        began = time.monotonic()
        report = client.vdiff.wait("move", "customer", name, timeout_s=60)
        assert (report["State"], report["HasMismatch"]) == ("completed", False)
        assert time.monotonic() - began < 5  # one request; it did not wait for its time to be over
        assert client.vdiff.wait("move", "customer", timeout_s=60) == report
        with pytest.raises(NotFoundError):
            client.vdiff.show("move", "customer", "0" * 32, wait_s=5)


def test_a_change_to_another_version_than_was_seen_is_refused(moved: Shop) -> None:
    with (
        moved.node.client() as client,
        httpx2.Client(
            base_url=moved.node.url,
            headers={"Authorization": f"Bearer {token_of(moved.node.token)}"},
            trust_env=False,
        ) as http,
    ):
        path = "/v1/workflows/customer/move"
        seen = http.get(path).headers["ETag"]
        assert http.get(f"{path}/status").headers["ETag"] == seen
        version = int(seen.strip('"'))
        stale = {"If-Match": f'"{version + 1}"'}
        refused = http.post(f"{path}/stop", json={}, headers=stale)
        assert (refused.status_code, refused.json()["code"]) == (409, ConflictError.code)
        assert refused.json()["details"]["version"] == version
        with pytest.raises(ConflictError):
            client.workflow.stop("move", "customer", version=version + 1)
        wrong = http.post(f"{path}/stop", json={}, headers={"If-Match": "x"})
        assert wrong.status_code == 400
        assert client.workflow.status("move", "customer")["phase"] == "running"
        done = http.post(f"{path}/stop", json={}, headers={"If-Match": seen})
        assert done.status_code == 200
        assert http.post(f"{path}/start", json={}, headers={"If-Match": "*"}).status_code == 200
