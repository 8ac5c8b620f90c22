"""Shards as tenants: the schema `_tidegate` moves from release to release on real servers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from bootstrap.make_service import ShiftedDatabase, fresh_database, settle
from tidegate.bootstrap.model import TenantState, UpgradeState
from tidegate.bootstrap.service import Service
from tidegate.bootstrap.shards import TRACK, ShardDirectory, shard_handles
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.sidecar import releases as sidecar_releases
from tidegate.engines.postgres.sidecar.releases import Release, current
from tidegate.topology.model import Snapshot
from tidegate.topology.records import Keyspace, Shard, Tablet
from tidegate.topology.rules import TabletType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

NOW = sidecar_releases.NEWEST
NEXT = "2.0.0"
NEW = Release(NEXT, "ALTER TABLE _tidegate.stream ADD COLUMN note text NOT NULL DEFAULT ''")
BOTH = (*sidecar_releases.RELEASES, NEW)


@pytest.fixture
def shards(
    source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> list[Database]:
    return [make_database(source_server) for _ in range(3)]


def topology(shards: list[Database]) -> Snapshot:
    made = Snapshot()
    for number, database in enumerate(shards):
        name = f"k{number}"
        made = made.with_keyspace(Keyspace(name)).with_shard(Shard(name, "0"))
        tablet = Tablet(
            f"zone1-{number}",
            name,
            "0",
            frozenset({TabletType.PRIMARY}),
            database.endpoint.conninfo,
            database.endpoint.secret,
        )
        made = made.with_tablet(tablet)
    return made


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ShiftedDatabase]:
    with fresh_database(f"sqlite:///{tmp_path}/cluster.db") as database:
        yield database


def service(
    cluster: ShiftedDatabase, shards: list[Database], known: tuple[Release, ...]
) -> Service[Any]:
    snapshot = topology(shards)
    directory = ShardDirectory(cluster, lambda: snapshot, newest=known[-1].version)
    return Service(cluster, shard_handles(known), directory, holder="node", track=TRACK)


def releases(shards: list[Database]) -> list[str | None]:
    found = []
    for shard in shards:
        with shard.admin() as session:
            found.append(current(session))
    return found


def columns(database: Database) -> list[tuple[str, ...]]:
    with database.admin() as session:
        return session.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = '_tidegate'"
            " AND table_name <> 'release'"
            " ORDER BY 1, 2"
        ).fetchall()


@pytest.mark.servers
def test_shards_move_to_the_next_release_and_one_that_cannot_keeps_no_other_back(
    cluster: ShiftedDatabase, shards: list[Database]
) -> None:
    for shard in shards[:2]:
        with shard.admin() as session:
            sidecar.install(session)
    assert releases(shards) == [NOW, NOW, None]
    service(cluster, shards, BOTH[:-1]).bootstrap()
    new = service(cluster, shards, BOTH)
    new.plan()
    blocker = shards[1].admin()
    with blocker.transaction():
        blocker.execute("LOCK TABLE _tidegate.stream")
        assert not settle(new)
        trouble = new.status().steps[0].trouble
        assert [(t.name, t.state) for t in trouble] == [("k1/0", TenantState.FAILED)]
        assert "shard k1/0 was interrupted: a lock was not to be had in time" in trouble[0].error
        assert releases(shards) == [NEXT, NOW, None]
    assert new.retry_tenant("k1/0") == 1
    assert settle(new)
    assert releases(shards) == [NEXT, NEXT, None]
    with shards[0].admin() as session:
        session.execute("SELECT note FROM _tidegate.stream")
    row = new.status().row
    assert row is not None
    assert row.state is UpgradeState.READY
    assert new.finalise()


@pytest.mark.servers
def test_a_shard_that_cannot_be_reached_is_reported_and_caught_up_with(
    cluster: ShiftedDatabase, shards: list[Database]
) -> None:
    with shards[0].admin() as session:
        sidecar.install(session)
    service(cluster, shards, BOTH[:-1]).bootstrap()
    good = shards[0].endpoint.conninfo
    broken = topology(shards)
    away = replace(broken.tablets["zone1-0"], conninfo="host=127.0.0.1 port=1 dbname=x user=x")
    seen = [broken.with_tablet(away)]
    directory = ShardDirectory(cluster, lambda: seen[0], newest=NEXT)
    new = Service(cluster, shard_handles(BOTH), directory, holder="node", track=TRACK)
    new.plan()
    assert not settle(new)
    (trouble,) = new.status().steps[0].trouble
    assert trouble.name == "k0/0"
    assert "TG-CON" in trouble.error
    assert good not in trouble.error
    seen[0] = broken
    new.retry_tenant()
    assert settle(new)
    assert releases(shards) == [NEXT, None, None]


@pytest.mark.servers
def test_a_change_and_its_note_are_one_transaction(
    cluster: ShiftedDatabase, shards: list[Database]
) -> None:
    with shards[0].admin() as session:
        sidecar.install(session)
    bad = Release("3.0.0", "CREATE TABLE _tidegate.half (id int); SELECT 1 / 0")
    service(cluster, shards[:1], BOTH[:-1]).bootstrap()
    new = service(cluster, shards[:1], (*BOTH, bad))
    new.plan()
    assert not settle(new)
    assert releases(shards[:1]) == [NEXT], "the release before has been reached"
    with shards[0].admin() as session, pytest.raises(psycopg.errors.UndefinedTable):
        session.execute("SELECT FROM _tidegate.half")


@pytest.mark.servers
def test_a_fresh_schema_equals_the_first_one_with_all_changes(
    shards: list[Database], datadir: Path
) -> None:
    """Whoever changes schema.sql or a part's DDL adds a release with the same change."""
    with shards[0].admin() as session:
        sidecar.install(session)
    with shards[1].admin() as session, session.transaction():
        session.execute((datadir / "sidecar-1.0.0.sql").read_text().encode())
        later: tuple[Release, ...] = sidecar_releases.RELEASES[1:]
        for release in later:
            sidecar_releases.apply(session, release)
    assert columns(shards[0]) == columns(shards[1])
    assert constraints(shards[0]) == constraints(shards[1])
    with shards[1].admin() as session:
        sidecar.install(session)
    assert releases(shards[:2]) == [sidecar_releases.NEWEST] * 2


def constraints(database: Database) -> list[tuple[str, ...]]:
    with database.admin() as session:
        return session.execute(
            "SELECT c.conrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid)"
            " FROM pg_constraint AS c WHERE c.connamespace = '_tidegate'::regnamespace"
            " AND c.conrelid <> coalesce(to_regclass('_tidegate.release'), 0)"
            " UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes"
            " WHERE schemaname = '_tidegate' AND tablename <> 'release' ORDER BY 1, 2, 3"
        ).fetchall()


@pytest.mark.servers
def test_install_brings_an_older_schema_along_and_leaves_a_newer_one(
    shards: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    with shards[0].admin() as session:
        sidecar.install(session)
        monkeypatch.setattr(sidecar_releases.missing, "__defaults__", (BOTH,))
        monkeypatch.setattr(sidecar_releases, "NEWEST", NEXT)
        sidecar.install(session)
        assert current(session) == NEXT
        session.execute("SELECT note FROM _tidegate.stream")
        monkeypatch.undo()
        sidecar.install(session)
        assert current(session) == NEXT
