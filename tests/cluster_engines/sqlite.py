"""SQLite under the conformance suite: files in a folder."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar, Self

from cluster_engines.engine import Engine


class SqliteEngine(Engine):
    """SQLite files."""

    name: ClassVar[str] = "sqlite"

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
