"""What each program imports: what a start loads needlessly is paid thousands of times."""

from __future__ import annotations

import json
import subprocess
import sys

SERVER = ("fastapi", "uvicorn", "pydantic", "sqlalchemy", "tidegate.server")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    told = (
        f"{code}\nimport json, sys\nprint(json.dumps([m for m in {names!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_node_loads_nothing_that_only_members_need() -> None:
    """Situation 25: what starting a node costs."""
    members_only = (
        "cryptography.x509",
        "dqliteclient",
        "dqlitewire",
        "httpx2",
        "alembic",
        "django",
    )
    assert loaded("import tidegate.server.serving, tidegate.server.config", members_only) == []


def test_a_worker_loads_neither_the_server_nor_a_cipher() -> None:
    """Situation 25: what starting a worker costs."""
    unneeded = (*SERVER, "structlog", "rich", "cryptography", "tidegate.workflow", "tidegate.cli")
    assert loaded("import tidegate.dataplane.worker", unneeded) == []


def test_the_parser_of_bodies_is_not_loaded_by_the_process_that_asks() -> None:
    """It aborts on some valid bodies, and takes the process with it."""
    asked = (
        "from tidegate.engines.postgres.bodies import child, names\n"
        "body = names.Body('plpgsql', 'BEGIN RETURN NEW; END', returns='trigger')\n"
        "assert not child.read_all([body])[body].error"
    )
    assert loaded(asked, ("pgparse",)) == []
