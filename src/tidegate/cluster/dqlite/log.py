"""How far a stopped member's log goes: what decides on whom to recover.

Decides which entry of Raft's log is the last one in a folder. It reads the files as raft 0.15
writes them and changes nothing; libdqlite 1.11 has no function for it.

Closed segments carry their first and last index in their names, snapshots the last index they hold.
An open segment is a version, then batches: two checksums, the number of entries, for each its term,
type and size, and then their contents; behind the last batch it is zero.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.errors import DqliteError

if TYPE_CHECKING:
    from pathlib import Path

_CLOSED: Final = re.compile(r"(\d{16})-(\d{16})")
_OPEN: Final = re.compile(r"open-(\d+)")
_SNAPSHOT: Final = re.compile(r"snapshot-(\d+)-(\d+)-\d+")
_VERSION: Final = struct.Struct("<Q")
_BATCH: Final = struct.Struct("<IIQ")
_ENTRY: Final = struct.Struct("<QB3xI")
_MAX_BATCH: Final = 1_000_000


@dataclass(frozen=True, slots=True, order=True)
class LogEnd:
    """The last entry of a log; the larger one has more, as Raft compares them."""

    term: int
    index: int


def log_end(folder: Path) -> LogEnd:
    """The last entry of the log in a stopped member's folder of Raft files.

    What was being written when the power went may count as written: nobody was told so.

    Raises:
        DqliteError: a file cannot be read, or is of another version.
    """
    try:
        return _log_end(folder)
    except OSError as error:
        raise DqliteError(f"the log in {folder} cannot be read: {error}") from None


def _log_end(folder: Path) -> LogEnd:
    ends = [LogEnd(0, 0)]
    opened = []
    for path in folder.iterdir():
        if match := _CLOSED.fullmatch(path.name):
            term, _ = _entries(path)
            ends.append(LogEnd(term, int(match[2])))
        elif match := _SNAPSHOT.fullmatch(path.name):
            ends.append(LogEnd(int(match[1]), int(match[2])))
        elif match := _OPEN.fullmatch(path.name):
            opened.append((int(match[1]), path))
    end = max(ends, key=lambda each: each.index)
    for _, path in sorted(opened):
        term, count = _entries(path)
        if count:
            end = LogEnd(term, end.index + count)
    return end


def _entries(path: Path) -> tuple[int, int]:
    """The last term in a segment, and how many entries it has."""
    data = path.read_bytes()
    if len(data) < _VERSION.size:
        return 0, 0
    (version,) = _VERSION.unpack_from(data)
    if version not in {0, 1}:  # 0: an open segment that nothing has been written to
        raise DqliteError(f"{path} is of version {version}, which this program does not know")
    at, last_term, total = _VERSION.size, 0, 0
    while at + _BATCH.size <= len(data):
        _, _, count = _BATCH.unpack_from(data, at)
        headers = at + _BATCH.size
        contents = headers + count * _ENTRY.size
        if not 0 < count <= _MAX_BATCH or contents > len(data):
            break
        entries = [_ENTRY.unpack_from(data, headers + n * _ENTRY.size) for n in range(count)]
        at = contents + sum(size for _, _, size in entries)
        if at > len(data):
            break
        last_term, total = entries[-1][0], total + count
    return last_term, total
