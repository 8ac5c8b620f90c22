"""Defects that are designed out and have no better place (docs/internals/defects.md)."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tidegate.cluster import issuing
from tidegate.cluster.identity import Engine, Identity, IdentityFolder
from tidegate.server.config import Settings
from tidegate.server.node_cluster import NodeCluster

if TYPE_CHECKING:
    from pathlib import Path


def test_a_list_of_members_is_kept_when_it_differs_and_only_then(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = issuing.make_authority("a-cluster", now)
    member = issuing.make_member(authority, "a", now)
    identity = Identity("a-cluster", 1, "a", "10.0.0.1:7", Engine.SHARED, peers=("10.0.0.2:7",))
    folder = IdentityFolder(tmp_path)
    folder.prepare(identity, authority, member)
    folder.commit()
    settings = Settings.model_validate({"state_dir": tmp_path})
    node = NodeCluster(settings, reopen=threading.Event(), stage=dict)
    node.identity = identity
    node.note_peers(["10.0.0.2:7", "10.0.0.1:7"])
    assert node.identity is identity
    node.note_peers(["10.0.0.3:7", "10.0.0.1:7", "10.0.0.2:7"])
    found = folder.read()
    assert found == node.identity
    assert found is not None
    assert found.peers == ("10.0.0.2:7", "10.0.0.3:7")
