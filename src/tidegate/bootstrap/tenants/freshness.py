"""Whether a folder of SQL files is as it was when it was read, at two prices.

Decides from what the file system says, without reading a file. The cheap look asks the folders, and
the files that may be edited in their place, which are the repeatable ones: a file that is added,
removed or renamed changes the time of its folder. The other asks every file, and so finds any that
was written in its place. A time that was young when the folder was read is not trusted by the cheap
look, because a second change would leave it as it is.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from tidegate.bootstrap.tenants.repeatables import is_repeatable

SETTLED_NS: Final = 2_000_000_000
"""How old the last change of a folder must be for its time to tell of another one."""

type _Mark = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Marks:
    """How the folders and files were at one time."""

    folders: tuple[_Mark, ...]
    files: tuple[_Mark, ...]
    read_at_ns: int
    watched: tuple[_Mark, ...]
    """What the cheap look asks: the folders, and the files that may be edited in their place."""

    @property
    def is_settled(self) -> bool:
        """Whether the times of what the cheap look asks tell of any later change."""
        return all(self.read_at_ns - mark[3] > SETTLED_NS for mark in self.watched)


def look(path: str, *, recursive: bool) -> Marks:
    """How a folder is now.

    Raises:
        OSError: it cannot be read.
    """
    now_ns = time.time_ns()
    folders = [_mark(path)]
    files: list[_Mark] = []
    editable: list[_Mark] = []
    waiting = [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if recursive:
                        folders.append(_mark(entry.path))
                        waiting.append(entry.path)
                else:
                    files.append(_mark(entry.path))
                    if is_repeatable(entry.name.upper()):
                        editable.append(files[-1])
    folders.sort()
    return Marks(tuple(folders), tuple(sorted(files)), now_ns, (*folders, *editable))


def is_untouched(marks: Marks) -> bool:
    """Whether nothing was added, removed or renamed since, and no repeatable file edited.

    False when that cannot be told.
    """
    if not marks.is_settled:
        return False
    try:
        return all(_mark(mark[0]) == mark for mark in marks.watched)
    except OSError:
        return False


def is_same(one: Marks, other: Marks) -> bool:
    """Whether every file is as it was."""
    return one.folders == other.folders and one.files == other.files


def _mark(path: str) -> _Mark:
    status = os.stat(path)  # noqa: PTH116 - called for each file
    return path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
