"""What a member does for others as well as it can: it fails alone, and the member stays open."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tidegate.cluster import issuing
from tidegate.cluster.cluster_settings import ClusterSettings
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.identity import Engine, Identity, IdentityFolder
from tidegate.cluster.member_store import MemberStore
from tidegate.errors import ClusterDatabaseError
from tidegate.server.config import load
from tidegate.server.membership import Membership
from tidegate.server.node_cluster import NodeCluster
from tidegate.server.peer_client import PeerClient

if TYPE_CHECKING:
    from pathlib import Path

ME = Identity("uuid", 1, "n1", "127.0.0.1:1", Engine.DQLITE)


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    """A member's."""
    made = IdentityFolder(tmp_path)
    now = datetime.now(UTC)
    authority = issuing.make_authority(ME.cluster, now)
    made.prepare(ME, authority, issuing.make_member(authority, ME.name, now))
    made.commit()
    return made


def test_a_database_that_fails_keeps_nobody_from_being_open(
    tmp_path: Path, folder: IdentityFolder
) -> None:
    """Situation 48: the members cannot be read while they are to be told of an upgrade."""
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'without-tables.db'}") as database:
        membership = Membership(
            database,
            store=MemberStore(database),
            settings=ClusterSettings(database),
            identity=ME,
            peers=PeerClient(folder.path),
        )
        with pytest.raises(ClusterDatabaseError):
            membership.list()
        assert membership.tell_upgraded() == 0


def test_a_disk_that_refuses_keeps_no_heartbeat_from_being_answered(
    tmp_path: Path, folder: IdentityFolder
) -> None:
    """Situation 48: where the others are is kept for the next start, and only for that."""
    settings = load({"state_dir": str(tmp_path)})
    cluster = NodeCluster(settings, reopen=threading.Event(), stage=dict)
    cluster.identity = ME
    before = cluster.heard_at
    cluster.note_peers(["127.0.0.1:1", "127.0.0.1:3"])
    found = folder.read()
    assert found is not None
    assert found.peers == ("127.0.0.1:3",)
    folder.path.rename(tmp_path / "away")
    cluster.note_peers(["127.0.0.1:1", "127.0.0.1:5"])
    assert cluster.identity.peers == ("127.0.0.1:5",)
    assert cluster.heard_at >= before
