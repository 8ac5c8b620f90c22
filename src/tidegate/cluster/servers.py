"""The list of servers that a cluster database may be reached through.

Decides how the list is kept, so that a node finds the database again after all addresses but one
have changed. What a driver makes of the list is the engine's business.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tidegate.cluster.files import sync_folder
from tidegate.cluster.members import Role
from tidegate.errors import ClusterStateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One server. ``address`` is a URL, or HOST:PORT where the engine knows its protocol."""

    id: int
    address: str
    role: Role = Role.VOTER


class ServerStore(Protocol):
    """Where the list is kept."""

    def get(self) -> Sequence[ServerInfo]:
        """The servers known; in the order in which to try them."""

    def set(self, servers: Sequence[ServerInfo]) -> None:
        """Replace the list."""


class FixedServers:
    """A list in memory."""

    def __init__(self, *servers: ServerInfo) -> None:
        self._servers: tuple[ServerInfo, ...] = servers

    def get(self) -> Sequence[ServerInfo]:
        """The servers known."""
        return self._servers

    def set(self, servers: Sequence[ServerInfo]) -> None:
        """Replace the list."""
        self._servers = tuple(servers)


class FileServers:
    """A list in a file, replaced as a whole: a crash leaves the old list or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self) -> Sequence[ServerInfo]:
        """The servers known; none when there is no file.

        Raises:
            ClusterStateError: the file cannot be understood.
        """
        try:
            found: Any = json.loads(self._path.read_text(encoding="utf-8"))
            return tuple(
                ServerInfo(int(each["id"]), str(each["address"]), Role(each["role"]))
                for each in found
            )
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterStateError(
                f"the list of servers {self._path} cannot be understood: {error}",
                next_step="copy it from another member, or write it anew",
            ) from None

    def set(self, servers: Sequence[ServerInfo]) -> None:
        """Replace the list, durably."""
        scratch = self._path.with_suffix(".tmp")
        with scratch.open("w", encoding="utf-8") as file:
            json.dump([asdict(server) for server in servers], file)
            file.flush()
            sync_folder(scratch)
        scratch.replace(self._path)
        sync_folder(self._path.parent)
