"""A full disk: what a member does before libdqlite meets one.

Decides when a member gives up leadership, its node is stopped, and started again, for lack of room.
libdqlite 1.11 ends its process when a leader cannot write its log. A follower's that cannot only
falls behind. So a member whose disk is nearly full stops leading while it still can; and if nobody
takes over, its node is stopped, which costs the cluster database and not the node's process.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT_BYTES: Final = 8 * 1024**2
"""Raft takes the room for its log in pieces of this size, several ahead."""

LOW_BYTES: Final = 16 * SEGMENT_BYTES
"""Below this a member does not lead if another one can; above it a stopped node is started."""

CRITICAL_BYTES: Final = 6 * SEGMENT_BYTES
"""Below this a node that still leads is stopped."""


class DiskAction(Enum):
    """What is to be done."""

    NOTHING = "nothing"
    HAND_OVER = "hand over"
    STOP = "stop"
    START = "start"


def disk_action(free_bytes: int, *, runs: bool, leads: bool, has_heir: bool) -> DiskAction:
    """What a member does with this much room.

    Args:
        free_bytes: on the disk of its folder.
        runs: its node does.
        leads: it does.
        has_heir: another voter may take over.
    """
    if not runs:
        return DiskAction.START if free_bytes >= LOW_BYTES else DiskAction.NOTHING
    if not leads or free_bytes >= LOW_BYTES:
        return DiskAction.NOTHING
    if free_bytes < CRITICAL_BYTES:
        return DiskAction.STOP
    return DiskAction.HAND_OVER if has_heir else DiskAction.NOTHING


def free_bytes(folder: Path) -> int:
    """The room that an ordinary account has on the folder's disk."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
