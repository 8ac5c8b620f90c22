"""The tutorial, run as it stands: each command in order, its output beside what the page shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from docs.shell import Block, Shell, blocks_of, shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def conninfo(server: LocalServer, database: str) -> str:
    return f"host=127.0.0.1 port={server.port} dbname={database}"


@pytest.fixture
def shell(
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> Iterator[Shell]:
    """A reader's shell: their two databases, their password file, `tidegate` on their path."""
    source, target = new_database(source_server), new_database(target_server)
    passwords = tmp_path / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(
        "".join(
            f"127.0.0.1:{server.port}:*:{server.superuser}:{server.password}\n"
            for server in (source_server, target_server)
        )
    )
    programs = [str(ROOT / ".venv" / "bin"), str(source_server.programs.root / "bin")]
    shell = Shell(
        tmp_path,
        {
            "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
            "HOME": str(tmp_path),
            "PGPASSFILE": str(passwords),
            "TIDEGATE_STATE_DIR": str(tmp_path / "state"),
            "TIDEGATE_LISTEN": "127.0.0.1:0",
            "SOURCE": conninfo(source_server, source),
            "TARGET": conninfo(target_server, target),
            "ADMIN": source_server.superuser,
        },
        words={source: "shop", target: "shop"},
    )
    yield shell
    shell.close()


def orders(shell: Shell, side: str) -> list[str]:
    """Every order of a side, as its own server tells it."""
    printed = shell.run(Block("check", "", f"on_{side} -c 'SELECT o::text FROM orders o'", None))
    return sorted(printed.splitlines())


def left_behind(server: LocalServer) -> list[tuple[str]]:
    with psycopg.connect(server.conninfo(), password=server.password) as connection:
        return connection.execute(
            "SELECT rolname::text FROM pg_roles WHERE rolname IN ('shop', 'tidegate')"
            " UNION ALL SELECT slot_name::text FROM pg_replication_slots"
            "  WHERE slot_name LIKE 'tidegate%'"
        ).fetchall()


def test_the_tutorial_does_what_it_says(
    shell: Shell, source_server: LocalServer, target_server: LocalServer
) -> None:
    placed: list[str] = []
    for block in blocks_of(TUTORIAL):
        if block.note == "yours":
            continue
        if "complete" in block.code and "--yes" in block.code:
            placed = orders(shell, "target")
            assert len(placed) > 100_000
            assert orders(shell, "source") == placed, "the way back carried every order"
        printed = shell.run(block)
        if block.expected is not None:
            assert shape(printed) == shape(block.expected), f"{block.heading}:\n{printed}"
        if block.note == "interrupt":
            assert '"state": "running"' in printed
        if "vdiff create" in block.code:
            assert "equal      yes" in printed
        if "complete" in block.code and "--yes" in block.code:
            assert orders(shell, "target") == placed
    assert placed, "the tutorial completes its workflow"
    for server in (source_server, target_server):
        assert left_behind(server) == []
