"""Which endpoint may stand in for another one: decided on values, then tried on real servers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fix_databases import Database, wait_until
from fix_fleet import move_tables, switch_request
from free_ports import free_port
from tidegate.engines.postgres.local import THROW_AWAY_SETTINGS, LocalServer
from tidegate.errors import AuthenticationError, ConflictError, FailedPreconditionError
from tidegate.workflow.relocation import Known, Place, judge
from tidegate.workflow.work import Locks, workflow_lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_fleet import Fleet

OLD = Place("7001", 1, "shop", "tidegate", started_at="monday")
KNOWN = Known(
    users=("shop.move",),
    old=OLD,
    recorded=frozenset({("7001", 1)}),
    database="shop",
    role="tidegate",
)
PROMOTED = replace(OLD, timeline=2, started_at="tuesday")


def test_the_same_place_under_another_address_is_silent() -> None:
    assert judge("z-1", OLD, KNOWN) == []
    assert judge("z-1", OLD, replace(KNOWN, recorded=frozenset())) == []


@pytest.mark.parametrize(
    ("new", "known", "why"),
    [
        (replace(OLD, system_identifier="7002"), KNOWN, "another server"),
        (replace(OLD, system_identifier="7002"), replace(KNOWN, old=None), "another server"),
        (replace(OLD, database="other"), KNOWN, "another database"),
        (replace(OLD, database="other"), replace(KNOWN, old=None), "another database"),
        (replace(OLD, role="boss"), KNOWN, "another role"),
        (replace(OLD, in_recovery=True), KNOWN, "standby"),
        (PROMOTED, KNOWN, "still takes writes"),
        (replace(OLD, started_at="copy"), KNOWN, "still takes writes"),
        (OLD, replace(KNOWN, rows_missing=("shop.move",)), "does not hold the streams"),
        (OLD, replace(KNOWN, old=None, recorded=frozenset()), "nobody can tell"),
    ],
)
def test_what_is_not_the_same_is_refused(new: Place, known: Known, why: str) -> None:
    with pytest.raises(FailedPreconditionError, match=why) as refused:
        judge("z-1", new, known)
    assert refused.value.next_step
    assert "shop.move" in refused.value.message


@pytest.mark.parametrize(
    "known",
    [
        replace(KNOWN, old=None),
        replace(KNOWN, old=replace(OLD, in_recovery=True)),
        replace(KNOWN, old=None, recorded=frozenset(), rows_found=True),
    ],
)
def test_a_promoted_standby_is_taken_with_a_warning(known: Known) -> None:
    (warning,) = judge("z-1", PROMOTED, known)
    assert "timeline 2" in warning
    assert "TG-STR-002" in warning


@pytest.fixture
def frail(fleet: Fleet) -> Iterator[LocalServer]:
    """A server of its own for the target, which may be lost."""
    server = LocalServer.create("frail", settings=THROW_AWAY_SETTINGS).start()
    server.create_database("shop")
    fleet.add_keyspace("shop", {"0": Database.make(server, "shop")})
    fleet.start_workers()
    fleet.service.create(move_tables())
    fleet.wait_running("shop", "move")
    yield server
    server.destroy()


def alias_of(fleet: Fleet, keyspace: str) -> str:
    return fleet.topology.read().primary_of(keyspace, "0").alias


def pid_of(fleet: Fleet) -> int | None:
    assert fleet.supervisor is not None
    (span,) = fleet.supervisor.status()
    pid: int | None = span["pid"]
    return pid


def standby_of(server: LocalServer) -> LocalServer:
    """A copy of a server that is down, started as a standby that follows nobody."""
    folder = server.folder.with_name(f"{server.folder.name}-standby")
    folder.mkdir(mode=0o700)
    made = replace(server, folder=folder, port=free_port(), process=None)
    server.account.own(folder)
    shutil.copy2(server.folder / "password", folder)
    shutil.copytree(server.data, made.data)
    (made.data / "postmaster.pid").unlink(missing_ok=True)
    (made.data / "standby.signal").touch()
    for path in (folder, *folder.rglob("*")):
        server.account.own(path)
    made.data.chmod(0o700)
    return made.start()


@pytest.mark.servers
@pytest.mark.slow
def test_a_target_moves_to_its_promoted_standby_while_the_workflow_runs(
    fleet: Fleet, frail: LocalServer, target_server: LocalServer
) -> None:
    app = fleet.start_application()
    app.wait_for_progress()
    alias = alias_of(fleet, "shop")
    for session in fleet.observers.values():
        session.close()
    for database in fleet.shards.values():
        database.close()
    frail.stop()
    standby = standby_of(frail)
    try:

        def move(server: LocalServer, database: str = "shop", **options: Any) -> list[str]:
            done = fleet.service.change_tablet(
                alias, conninfo=server.conninfo(database), secret=server.secret, **options
            )
            return list(done.warnings)

        with pytest.raises(FailedPreconditionError, match="is a standby"):
            move(standby)
        with pytest.raises(FailedPreconditionError, match="does not hold the streams"):
            move(target_server, "postgres")
        with Database(standby, "shop").admin() as session:
            session.execute("SELECT pg_promote(true, 30)")
        assert move(standby, dry_run=True)
        assert fleet.topology.read().tablet(alias).conninfo == frail.conninfo("shop")
        (warning,) = move(standby)
        assert "promoted standby" in warning
        fleet.shards["shop", "0"] = Database(standby, "shop")
        fleet.wait_running("shop", "move", 90.0)
        app.wait_for_progress()
        app.finish()
        fleet.wait_equal("shop", "commerce", 60.0)
        app.check(fleet, "shop")
        assert fleet.service.switch_traffic(switch_request()).lines
        assert fleet.supervisor is not None
        fleet.supervisor.stop()
        fleet.supervisor = None
    finally:
        for database in fleet.shards.values():
            database.close()
        for session in fleet.observers.values():
            session.close()
        standby.destroy()


@pytest.mark.servers
@pytest.mark.slow
def test_an_address_changes_while_a_workflow_runs_and_another_place_is_refused(
    fleet: Fleet, frail: LocalServer, target_server: LocalServer
) -> None:
    source = fleet.shards["commerce", "0"]
    alias, server = alias_of(fleet, "commerce"), source.server
    before = pid_of(fleet)
    assert before is not None
    app = fleet.start_application()
    for other, conninfo, why in (
        (target_server, target_server.conninfo("postgres"), "another server"),
        (server, server.conninfo("postgres"), "another database"),
    ):
        with pytest.raises(FailedPreconditionError, match=why):
            fleet.service.change_tablet(alias, conninfo=conninfo, secret=other.secret)
    with pytest.raises(AuthenticationError):
        fleet.service.change_tablet(alias, without_secret=True)
    assert pid_of(fleet) == before
    moved = server.conninfo(source.name).replace("127.0.0.1", "localhost")
    flow = fleet.service.show("shop", "move")
    with (
        Locks(fleet.service._cluster, workflow_lease("shop", flow.name)),
        pytest.raises(ConflictError),
    ):
        fleet.service.change_tablet(alias, conninfo=moved)
    done = fleet.service.change_tablet(alias, conninfo=moved)
    assert (done.tablet.conninfo, done.warnings) == (moved, ())
    wait_until(lambda: pid_of(fleet) not in {None, before}, 60)
    fleet.wait_running("shop", "move")
    app.wait_for_progress()
    assert fleet.service.switch_traffic(switch_request()).current_state.endswith("Writes Switched")
    app.wait_for_progress()
    app.finish()
    fleet.wait_equal("shop", "commerce")
    app.check(fleet, "shop")
    assert frail.process is not None
