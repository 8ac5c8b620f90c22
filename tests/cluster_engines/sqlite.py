"""SQLite under the conformance suite: files in a folder."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sqlalchemy import event
from sqlalchemy.pool import Pool

from cluster_engines.engine import Engine, Fault

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

#: SQLite's own bound of a file: reaching it is SQLITE_FULL, as on a disk without a free block.
PAGES = 1000


class SqliteEngine(Engine):
    """SQLite files."""

    name: ClassVar[str] = "sqlite"
    faults: ClassVar[frozenset[Fault]] = frozenset({"full disk"})

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    @classmethod
    def start(cls) -> Self:
        return cls(Path(tempfile.mkdtemp(prefix="tidegate-sqlite-")))

    def stop(self) -> None:
        shutil.rmtree(self.folder)

    def fresh_url(self) -> str:
        return f"sqlite:///{self.folder}/cluster-{next(self._numbers)}.db"

    @contextmanager
    def small_disk(self) -> Iterator[str]:
        def bound(connection: sqlite3.Connection, _record: Any) -> None:
            connection.execute(f"PRAGMA max_page_count={PAGES}")

        event.listen(Pool, "connect", bound)
        try:
            yield self.fresh_url()
        finally:
            event.remove(Pool, "connect", bound)
