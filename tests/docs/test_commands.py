"""Every command in the documents is one the command line takes, and the README's are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from docs.shell import Block, Shell
from tidegate.cli.main import build_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.engines.postgres.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = sorted(
    [ROOT / "README.md", ROOT / "docs/tutorial.md", *(ROOT / "docs/how-to").glob("*.md")]
)
#: What ends a command within a line of shell.
OPERATORS = re.compile(r"\s(?:2?>|\||&|&&|;|\|\|)(?:\s|$)")


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """Fenced and indented code, continued lines joined."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    if language == r"\w*":
        found += re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    return [re.sub(r" *\\\n\s*", " ", block) for block in found]


def commands(path: Path) -> list[str]:
    lines = (
        line.strip() for block in blocks(path.read_text("utf-8")) for line in block.split("\n")
    )
    return [OPERATORS.split(line)[0] for line in lines if line.startswith("tidegate ")]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_the_command_line_takes(path: Path) -> None:
    for command in commands(path):
        build_app().parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_commands_are_found() -> None:
    assert sum(len(commands(path)) for path in WRITTEN) > 40


@pytest.mark.parametrize(
    "path", [*WRITTEN, *(ROOT / "docs/reference").glob("router.md")], ids=lambda path: path.stem
)
def test_python_in_documents_can_be_read(path: Path) -> None:
    for block in blocks(path.read_text("utf-8"), "python"):
        compile(block, str(path), "exec")


@pytest.mark.parametrize("target", ["demo", "test", "demo KEEP=1"])
def test_the_two_commands_of_the_readme_exist(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text("utf-8")
    done = subprocess.run(
        ["make", "-n", *target.split()], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.servers
def test_the_taste_in_the_readme_runs(
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> None:
    source, target = new_database(source_server), new_database(target_server)
    for server, name in ((source_server, "source"), (target_server, "target")):
        with psycopg.connect(
            server.conninfo(source if name == "source" else target),
            password=server.password,
            autocommit=True,
        ) as connection:
            connection.execute("CREATE ROLE mover LOGIN SUPERUSER PASSWORD 'throw-away'")
            if name == "source":
                connection.execute(
                    "CREATE TABLE customers (id bigint PRIMARY KEY, name text);"
                    "CREATE TABLE orders (id bigint PRIMARY KEY, of bigint REFERENCES customers);"
                    "INSERT INTO customers SELECT n, 'c' FROM generate_series(1, 100) n;"
                    "INSERT INTO orders SELECT n, n FROM generate_series(1, 100) n"
                )
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("throw-away\n")
    shell = Shell(
        tmp_path,
        {
            "PATH": os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]]),
            "HOME": str(tmp_path),
            "TIDEGATE_STATE_DIR": str(tmp_path / "state"),
            "TIDEGATE_LISTEN": "127.0.0.1:0",
            "SOURCE": source_server.conninfo(source, "mover"),
            "TARGET": target_server.conninfo(target, "mover"),
        },
    )
    try:
        for line in taste():
            shell.run(Block("README", "", f"{line}\n", None))
            if line.endswith("&"):
                ready = "until tidegate keyspace list > /dev/null 2>&1; do sleep 1; done\n"
                shell.run(Block("README", "", ready, None))
    finally:
        shell.close()
    with psycopg.connect(target_server.conninfo(target), password=target_server.password) as there:
        assert there.execute("SELECT count(*) FROM public.orders").fetchone() == (100,)
    with psycopg.connect(source_server.conninfo(source), password=source_server.password) as here:
        assert here.execute("SELECT to_regclass('public.orders')").fetchone() == (None,)
        assert here.execute("SELECT to_regnamespace('_tidegate')").fetchone() == (None,)


def taste() -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = (block for block in blocks(text) if "tidegate serve" in block)
    return [line.strip() for line in block.splitlines() if line.strip()]
