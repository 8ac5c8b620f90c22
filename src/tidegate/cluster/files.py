"""The few things the cluster database does with files beside it.

Decides that a rename is durable before it counts. It is an argument of whoever uses it, so that a
test can make a disk fail.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from tidegate.errors import ClusterDatabaseError

if TYPE_CHECKING:
    from pathlib import Path


class FileSystem(Protocol):
    """Where patch files lie."""

    def read(self, path: Path, limit_bytes: int) -> bytes | None:
        """The first bytes of a file; None when there is none."""

    def rename(self, path: Path, to: Path) -> None:
        """Give a file another name in its folder, durably; one of that name is replaced."""


class LocalFiles:
    """The files of this machine."""

    def read(self, path: Path, limit_bytes: int) -> bytes | None:
        """The first bytes of a file; None when there is none.

        Raises:
            ClusterDatabaseError: it is there and cannot be read.
        """
        try:
            with path.open("rb") as file:
                return file.read(limit_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterDatabaseError(
                f"the file {path} cannot be read: {error.strerror}",
                next_step="give it to the node's account, or take it away",
            ) from None

    def rename(self, path: Path, to: Path) -> None:
        """Give a file another name in its folder, durably; nothing happens when it is gone.

        Raises:
            ClusterDatabaseError: it cannot be renamed.
        """
        try:
            path.replace(to)
            sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ClusterDatabaseError(
                f"the file {path} cannot be renamed to {to.name}: {error.strerror}",
                next_step="rename it by hand; what it asks for has been done",
            ) from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
