"""Copies of a SQLite file that are made before its schema changes.

Decides what they are called, that an unfinished one never looks like a copy, that none replaces
another, that only what its label says becomes one, and which are kept: of each label the first and
the newest, :data:`KEPT` together, so that a node which fails and is started again for a night does
not fill the disk. What a process left of a copy when it was killed is removed by the next one.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.cluster.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

KEPT: Final = 4
"""How many copies of one label there may be."""

WRITTEN: Final = steps.declare(
    "cluster.schema.copy_written",
    runs_in="node",
    plan="schema",
    description="a copy of the database file is whole and on the disk; it has no name yet",
)

_STAMP: Final = "%Y%m%dT%H%M%S"
_FINISHED: Final = r"\.\d{8}T\d{6}\.\d{3}Z\.bak"


def copy(
    path: Path,
    label: str,
    now_ms: int,
    copy_into: Callable[[Path], object],
    is_right: Callable[[Path], bool],
) -> Path | None:
    """Copy a file; None when the copy is not what its label says.

    Args:
        path: the database.
        label: what the copy is of; lower-case letters, digits and ``-``.
        now_ms: the database's time.
        copy_into: copies the database into this empty file.
        is_right: whether this copy holds what the label says.

    Raises:
        OSError: it could not be copied; nothing is left of it.
    """
    assert re.fullmatch(r"[a-z0-9-]+", label), label
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC)
    name = f"{path.name}.{label}.{stamp.strftime(_STAMP)}.{now_ms % 1000:03}Z.bak"
    target = path.with_name(name)
    remove_abandoned(path)
    part = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}.part")
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # says that this process still writes it
        copy_into(part)
        if not is_right(part):
            return None
        os.fsync(handle)
        steps.reached(WRITTEN)
        # Unlike a rename, a link never replaces another copy; one of the same millisecond, which
        # another process has just completed, is as good as this one.
        with suppress(FileExistsError):
            target.hardlink_to(part)
    finally:
        os.close(handle)
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    names = [each.name for each in path.parent.iterdir()]
    for surplus in to_remove(path.name, label, names):
        path.with_name(surplus).unlink(missing_ok=True)
    return target


def remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left of copies of a database.

    One that has just made its file and not locked it yet looks abandoned; a file is one only when
    something is in it.
    """
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with suppress(OSError), part.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


def to_remove(database: str, label: str, names: Iterable[str]) -> list[str]:
    """Which copies of a label are too many: all but the first and the newest."""
    pattern = re.compile(re.escape(f"{database}.{label}") + _FINISHED)
    found = sorted(name for name in names if pattern.fullmatch(name))
    return found[1 : len(found) - KEPT + 1] if len(found) > KEPT else []
