"""A password changes under a workflow that runs: it goes on by itself, and nobody hammers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_databases import wait_until
from fix_fleet import move_tables, switch_request
from tidegate.errors import TidegateError
from tidegate.workflow.service import WorkflowService
from tidegate.workflow.switch_steps import SwitchActions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

ROLE = "tidegate_rotated"


class Rotated:
    """Tidegate's role at the target, whose password can be changed on either side."""

    def __init__(self, fleet: Fleet, server: LocalServer, secret: Path) -> None:
        self.fleet, self.server, self.secret = fleet, server, secret
        self.database = fleet.shards["shop", "0"]

    def execute(self, statement: str, *values: str) -> None:
        with self.database.admin() as session:
            session.execute(
                sql.SQL(statement).format(sql.Identifier(ROLE), *map(sql.Literal, values))
            )

    def alter(self, password: str) -> None:
        """Change it on the server, and end every session that the old one opened."""
        self.execute("ALTER ROLE {} PASSWORD {}", password)
        with self.database.admin() as session:
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [ROLE]
            )

    def refusals(self) -> int:
        """How often the server has refused the role so far."""
        return self.server.log.read_text().count(
            f'password authentication failed for user "{ROLE}"'
        )

    def span(self) -> dict[str, Any]:
        assert self.fleet.supervisor is not None
        (span,) = self.fleet.supervisor.status()
        return span


@pytest.fixture
def rotated(moving: Fleet, target_server: LocalServer, tmp_path: Path) -> Iterator[Rotated]:
    secret = tmp_path / "rotated.password"
    secret.write_text("one")
    made = Rotated(moving, target_server, secret)
    made.execute("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}", "one")
    alias = moving.topology.read().primary_of("shop", "0").alias
    name = moving.shards["shop", "0"].name
    moving.service.change_tablet(
        alias, conninfo=target_server.conninfo(name, user=ROLE), secret=f"file:{secret}"
    )
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    yield made
    if moving.supervisor is not None:
        moving.supervisor.stop()
        moving.supervisor = None
    made.execute("REASSIGN OWNED BY {} TO postgres")
    made.execute("DROP OWNED BY {}")
    made.execute("DROP ROLE {}")


def test_a_rotated_password_is_picked_up_when_its_file_changes(rotated: Rotated) -> None:
    fleet = rotated.fleet
    app = fleet.start_application()
    before = rotated.refusals()
    rotated.alter("two")
    wait_until(lambda: rotated.span()["last_end"] == "refused" and not rotated.span()["pid"], 60)
    span = rotated.span()
    assert not span["held"]
    assert span["retry_in_s"] > 10
    assert "password authentication failed" in span["error"]
    assert "two" not in str(span)
    app.wait_for_progress()
    assert rotated.refusals() - before <= 4, "the server was asked again and again"
    rotated.secret.write_text("two\n")
    wait_until(lambda: rotated.span()["pid"] is not None, 30)
    app.finish()
    fleet.wait_equal("shop", "commerce")
    app.check(fleet, "shop")
    assert fleet.service.switch_traffic(switch_request()).current_state.endswith("Writes Switched")


def test_a_secret_that_is_away_for_a_moment_stops_nothing_for_good(rotated: Rotated) -> None:
    fleet = rotated.fleet
    rotated.secret.unlink()
    rotated.alter("one")
    wait_until(lambda: rotated.span()["last_end"] == "refused" and not rotated.span()["pid"], 60)
    assert "cannot be read" in rotated.span()["error"]
    rotated.secret.write_text("one")
    wait_until(lambda: rotated.span()["pid"] is not None, 30)
    fleet.wait_running("shop", "move")
    (stream,) = fleet.service.status("shop", "move", room=False).streams
    assert stream.state == "Running"


def test_a_switch_cut_off_by_a_password_is_taken_back_when_it_is_right_again(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = rotated.fleet
    app = fleet.start_application()
    real = SwitchActions._raise_sequences

    def raise_sequences(actions: SwitchActions) -> None:
        rotated.alter("two")
        real(actions)

    with monkeypatch.context() as patched:
        patched.setattr(SwitchActions, "_raise_sequences", raise_sequences)
        with pytest.raises(TidegateError):
            fleet.service.switch_traffic(switch_request(tablet_types=("PRIMARY",)))
    assert fleet.service.show("shop", "move").operation is not None
    app.wait_for_progress()
    later = WorkflowService(fleet.database, fleet.topology, holder="later")
    assert later.recover(["test"])["shop.move"].startswith("not yet")
    seen = rotated.refusals()
    assert [later.recover() for _ in range(20)] == [{}] * 20
    assert rotated.refusals() == seen
    rotated.secret.write_text("two")
    assert later.recover() == {"shop.move": "switch_writes taken back"}
    app.wait_for_progress()
    fleet.wait_running("shop", "move")
