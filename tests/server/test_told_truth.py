"""Situation 23: readiness, doctor and log say when a node cannot work, and when it can again."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx2

from fix_node import NodeProcess, until
from tidegate.cli.main import run
from tidegate.server.state_disk import PROBE, unwritable
from tidegate.steady_lines import SteadyLines

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def readyz(node: NodeProcess) -> tuple[int, str]:
    answer = httpx2.get(f"{node.url}/readyz", timeout=30, trust_env=False)
    return answer.status_code, str(answer.json().get("why", ""))


def errors_in_log(node: NodeProcess) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in node.log.read_text().splitlines() if line[:1] == "{")
    return [line for line in lines if line["level"] == "error"]


def test_a_state_directory_that_cannot_be_written_is_told_everywhere(
    node: NodeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situation 23: readyz 503, doctor 1, an error in the log; ready again when there is room."""
    until(lambda: readyz(node)[0] == 200)
    (node.state_dir / PROBE).mkdir()  # a write fails there from now on, as on a full disk
    status, why = until(lambda: found if (found := readyz(node))[0] == 503 else None)
    assert (status, "cannot be written" in why) == (503, True)
    assert run(["doctor", "--url", node.url, "--token", node.token]) == 1
    assert "cannot be written" in capsys.readouterr().out
    assert [e["event"] for e in errors_in_log(node)] == ["state cannot be written"]
    (node.state_dir / PROBE).rmdir()
    until(lambda: readyz(node)[0] == 200)
    assert run(["doctor", "--url", node.url, "--token", node.token]) == 0
    assert "state can be written again" in node.log.read_text()


def test_a_cluster_database_that_takes_no_writes_is_told(node: NodeProcess) -> None:
    """Situation 23, a relative: reads work, the lease of the work runs out all the same."""
    until(lambda: readyz(node)[0] == 200)
    with closing(sqlite3.connect(node.state_dir / "cluster.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, why = until(lambda: found if (found := readyz(node))[0] == 503 else None, 20)
        assert (status, "takes no writes" in why) == (503, True)
    until(lambda: readyz(node)[0] == 200, 20)


def test_a_node_whose_log_cannot_be_written_works_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Situation 23, a relative: the log's disk is full."""
    made = NodeProcess(tmp_path / "state")
    made.log.symlink_to("/dev/full")
    try:
        made.start()
        until(lambda: readyz(made)[0] == 200)
        assert run(["keyspace", "create", "shop", "--url", made.url, "--token", made.token]) == 0
        assert run(["doctor", "--url", made.url, "--token", made.token]) == 1
        assert "the log cannot be written: No space left on device" in capsys.readouterr().out
        assert made.stop() == 0
    finally:
        made.kill()


def test_what_is_found_out_about_a_folder_is_whether_it_can_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / PROBE).symlink_to("/dev/full")
    assert "No space left" in str(unwritable(tmp_path))
    assert "No such file" in str(unwritable(tmp_path / "gone"))


def test_lines_that_cannot_be_written_are_lost_and_counted(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lines = SteadyLines(full)
    lines.write("one\n")
    lines.write("two\n")
    assert (lines.lost, lines.failure) == (2, "No space left on device")
    os.close(full)
    path = tmp_path / "log"
    with path.open("wb") as file:
        lines = SteadyLines(file.fileno())
        lines.write("half")
        lines.write("whole\n")
        assert lines.failure is None
    assert path.read_text() == "half\nwhole\n"


def test_a_process_whose_reader_has_gone_ends_with_its_own_status() -> None:
    code = (
        "import sys; from tidegate.steady_lines import SteadyLines\n"
        "lines = SteadyLines(1)\nfor _ in range(1000): lines.write('x' * 100 + chr(10))\n"
        "sys.exit(143)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 143
