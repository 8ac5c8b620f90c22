"""Copies of a SQLite file that are made before its schema changes.

Decides what they are called, that an unfinished one never looks like a copy, that none replaces
another, and which are kept: of each label the first and the newest, :data:`KEPT` together, so that
a node which fails and is started again for a night does not fill the disk.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tidegate.cluster.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

KEPT: Final = 4
"""How many copies of one label there may be."""

_STAMP: Final = "%Y%m%dT%H%M%S"
_FINISHED: Final = r"\.\d{8}T\d{6}\.\d{3}Z\.bak"


def copy(path: Path, label: str, now_ms: int, copy_into: Callable[[str], object]) -> Path:
    """Copy a file.

    Args:
        path: the database.
        label: what the copy is of; lower-case letters, digits and ``-``.
        now_ms: the database's time.
        copy_into: copies the database into a new file of this name.

    Raises:
        OSError: it could not be copied; nothing is left of it.
    """
    assert re.fullmatch(r"[a-z0-9-]+", label), label
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC)
    name = f"{path.name}.{label}.{stamp.strftime(_STAMP)}.{now_ms % 1000:03}Z.bak"
    target = path.with_name(name)
    part = path.with_name(f"{name}.{os.getpid()}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        copy_into(str(part))
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        # Unlike a rename, a link never replaces another copy; one of the same millisecond, which
        # another process has just completed, is as good as this one.
        with suppress(FileExistsError):
            target.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    names = [each.name for each in path.parent.iterdir()]
    for surplus in to_remove(path.name, label, names):
        path.with_name(surplus).unlink(missing_ok=True)
    return target


def to_remove(database: str, label: str, names: Iterable[str]) -> list[str]:
    """Which copies of a label are too many: all but the first and the newest."""
    pattern = re.compile(re.escape(f"{database}.{label}") + _FINISHED)
    found = sorted(name for name in names if pattern.fullmatch(name))
    return found[1 : len(found) - KEPT + 1] if len(found) > KEPT else []
